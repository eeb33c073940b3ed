"""Every kind of network that timm has, against timm's own output, and what is refused of each."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from semcorr import params
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.matching import match_points
from semcorr.networks import architectures
from semcorr.networks.backbones import build
from semcorr.networks.backbones.base import Blockwise
from semcorr.readouts.argmax import argmax
from semcorr.tensors import normalise

THIN = {"depth": 2, "embed_dim": 48, "num_heads": 3}
# Model -> arguments that make it small, the strides of its layers, whether it takes images of any size, and whether
# queries, keys and values can be read. One of every family that people ask about.
FAMILIES: dict[str, tuple[dict, list[int], bool, bool]] = {
    "vit_small_patch14_reg4_dinov2": (THIN, [14, 14], True, True),
    "vit_base_patch16_clip_224": (THIN, [16, 16], True, True),
    "vit_base_patch16_siglip_224": (THIN, [16, 16], True, True),
    "vit_base_patch16_224": (THIN, [16, 16], True, True),  # MAE, DINO, AugReg
    "vit_huge_patch14_gap_224": (THIN, [14, 14], True, True),  # I-JEPA
    "deit3_small_patch16_224": (THIN, [16, 16], True, True),
    "vit_base_patch16_rpn_224": (THIN, [16, 16], True, True),  # norms behind the attention, not before it
    "vit_small_patch16_18x2_224": (THIN, [16, 16], True, False),  # two attentions side by side
    "vit_pe_core_tiny_patch16_384": ({"depth": 2}, [16, 16], True, True),
    "eva02_tiny_patch14_224": ({"depth": 2}, [14, 14], True, True),
    "vit_small_patch16_rope_mixed_224": (THIN, [16, 16], False, True),
    "vit_base_patch16_radio_v3": (THIN, [16, 16], True, True),
    "naflexvit_base_patch16_gap": (THIN, [16, 16], True, True),
    "beit_base_patch16_224": (THIN, [16, 16], False, True),
    "vit_relpos_small_patch16_224": (THIN, [16, 16], False, True),
    "cait_xxs24_224": (THIN, [16, 16], False, True),
    "xcit_nano_12_p8_224": ({"depth": 2}, [8, 8], False, True),
    "samvit_base_patch16": (THIN | {"img_size": 128, "global_attn_indexes": (1,)}, [16, 16], False, False),
    "hiera_tiny_224": ({"embed_dim": 24}, [4, 8, 16, 32], False, False),
    "sam2_hiera_tiny": ({"embed_dim": 24}, [4, 8, 16, 32], True, False),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 24, "depths": (1, 1, 2, 1)}, [4, 8, 16, 32], False, False),
    "swinv2_tiny_window8_256": ({"embed_dim": 24, "depths": (1, 1, 1, 1)}, [4, 8, 16, 32], False, False),
    "pvt_v2_b0": ({}, [4, 8, 16, 32], True, False),
    "convnext_atto": ({}, [4, 8, 16, 32], True, False),
    "resnet18": ({}, [2, 4, 8, 16, 32], True, False),
    "efficientnet_b0": ({}, [2, 4, 8, 16, 32], True, False),
    "coatnet_nano_rw_224": ({}, [2, 4, 8, 16, 32], False, False),
}
SPEC = {
    "family": "timm",
    "weights": {"kind": "random", "seed": 3},
    "image_size": 112,
    "facet": "token",
    "norm": False,
    "debias": None,
    "compute": "float32",
    "precision": "float32",
}


def _spec(model: str, layer: int | list[int] = 0, **changes) -> params.BackboneSpec:
    overrides = FAMILIES[model][0] if model in FAMILIES else {}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
    return params.BackboneSpec.model_validate(SPEC | {"model": model, "overrides": plain, "layer": layer} | changes)


def _randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Tensors that differ from one another, so that positions and scales count."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return net.eval()


@pytest.mark.parametrize("model", FAMILIES)
def test_features_are_timms(model):
    """Each layer by itself, with and without the final norm, against one pass of timm over all of them."""
    _, strides, anywhere, _ = FAMILIES[model]
    network = build(_spec(model))
    assert (network.strides, network.side is None) == (strides, anywhere)
    _randomised(network.net)
    unit = network.multiple
    sizes = [(2 * unit, 3 * unit), (3 * unit, unit)] if anywhere else [(network.side, network.side)]
    for size in sizes:
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            for norm in (False, True) if network.norms else (False,):
                expected = network.net.forward_intermediates(images, norm=norm, intermediates_only=True)
                for layer in range(network.depth) if not norm else network.norms:
                    at = _spec(model, layer, norm=norm)
                    found = network.at(at).features(images, at)
                    assert found.shape == (2, network.channels(at), *network.cells(images))
                    scale = max(1.0, expected[layer].abs().max().item())
                    torch.testing.assert_close(found, expected[layer], rtol=1e-5, atol=1e-5 * scale)


NOT_BY_TIMM = {"hiera_tiny_224"}  # it has a final norm, which timm does not apply to a map


def _last_norm(net: torch.nn.Module) -> torch.nn.Module | None:
    norm = getattr(net, "norm", None)
    return None if isinstance(norm, torch.nn.Identity) else norm


@pytest.mark.parametrize("model", FAMILIES)
def test_the_final_norm_is_applied_where_it_is_allowed(model):
    """The network's own layer, applied by hand to tokens without it; and elsewhere timm would not apply it."""
    network = build(_spec(model))
    if not network.norms:
        assert _last_norm(network.net) is None or model in NOT_BY_TIMM
        return
    _randomised(network.net)
    images = torch.randn(1, 3, *network.canvas((network.multiple, network.multiple)))
    with torch.inference_mode():
        plain, normed = (
            network.net.forward_intermediates(images, norm=norm, intermediates_only=True) for norm in (False, True)
        )
        for layer, (before, after) in enumerate(zip(plain, normed, strict=True)):
            assert torch.equal(before, after) == (layer not in network.norms)
            if layer in network.norms and type(network.net.norm) is torch.nn.LayerNorm:
                by_hand = network.net.norm(before.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                torch.testing.assert_close(after, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [model for model, row in FAMILIES.items() if row[3]])
def test_facets_are_what_the_attention_computes(model):
    """Against queries, keys and values as the attention splits them for its heads, caught in its own code."""
    network = build(_spec(model))
    _randomised(network.net)
    canvas = network.canvas((2 * network.multiple, 3 * network.multiple))
    images = torch.randn(2, 3, *canvas)
    attention = network.net.blocks[1].attn
    caught: list[torch.Tensor] = []
    linear = torch.nn.functional.linear

    def watched(tokens, weight, bias=None):
        caught.append(linear(tokens, weight, bias))
        return caught[-1]

    layers = [getattr(attention, name, None) for name in ("qkv", "q_proj", "k_proj", "v_proj")]
    weights = [layer.weight for layer in layers if layer is not None]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "linear",
            lambda x, weight, bias=None: (watched if any(weight is w for w in weights) else linear)(x, weight, bias),
        )
        network.net.forward_intermediates(images, indices=[1], intermediates_only=True)
    whole = torch.cat(caught, dim=-1)
    height, width = network.cells(images)
    patches = whole[:, whole.shape[1] - height * width :]
    for index, facet in enumerate(("query", "key", "value")):
        expected = patches.chunk(3, dim=-1)[index].mT.unflatten(2, (height, width))
        with torch.inference_mode():
            found = network.features(images, _spec(model, 1, facet=facet))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", FAMILIES)
def test_an_image_is_matched_with_itself(model):
    """Within half a cell of each layer's own stride, on an image whose sides are no multiples of anything."""
    network = build(_spec(model))
    _randomised(network.net)
    pixels = np.random.default_rng(0).integers(0, 255, (75, 101, 3), np.uint8)
    points = np.array([[0.0, 0.0], [50.3, 33.0], [100.0, 74.0], [17.0, 70.2]])
    for layer, stride in enumerate(network.strides):
        if stride > 16:
            continue  # a handful of cells that all see the whole image
        spec = _spec(model, layer)
        given, grid = network.at(spec).preprocess(Image.fromarray(pixels), spec.image_size)
        assert grid == Grid(image_size=(75, 101), resized_size=(83, 112), stride=stride)
        with torch.inference_mode():
            whole = network.features(given[None], spec)[0].permute(1, 2, 0)
        unit = normalise(whole[: grid.shape[0], : grid.shape[1]])
        found, _ = match_points(points, (unit, grid), (unit, grid), "nearest", argmax)
        assert (np.abs(found - points) <= stride * 101 / 112 / 2 + 0.5).all(), layer


@pytest.mark.parametrize("model", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_stages_against_timms_feature_extractor(model):
    """The same tensors in the network that timm builds for dense prediction, which is another code path."""
    network = build(_spec(model))
    _randomised(network.net)
    other = timm.create_model(model, features_only=True, **FAMILIES[model][0]).eval()
    known = {name.replace(".", "_"): tensor for name, tensor in network.net.state_dict().items()}
    own = {name: known.get(name.replace(".", "_")) for name in other.state_dict()}
    assert all(tensor is not None for tensor in own.values())
    other.load_state_dict(own)
    images = torch.randn(1, 3, *network.canvas((64, 96)))
    with torch.inference_mode():
        expected = other(images)
        for layer, features in enumerate(expected):
            if features.shape[1] != network.widths[layer]:  # channels last
                features = features.permute(0, 3, 1, 2)
            spec = _spec(model, layer)
            torch.testing.assert_close(network.at(spec).features(images, spec), features, rtol=1e-5, atol=1e-4)


def _problems(smoke: dict, tmp_path, monkeypatch, **changes) -> str:
    """What `semcorr validate` says of an entry with some changes."""
    monkeypatch.chdir(tmp_path)
    values = {**smoke, "grid": {**smoke["grid"], "backbones": ["dinov2_tiny"], "tunings": [], "weights": ["frozen"]}}
    values["grid"] |= {"train": None, "validate": None, "trunks": []} | changes.pop("grid", {})
    values["backbones"] = {"dinov2_tiny": SPEC | {"overrides": {}, "layer": 0} | changes}
    try:
        architectures.check(params.validate(values, "params.yaml"))
    except UserError as error:
        return str(error)
    return ""


REFUSED = {
    "a facet of a ConvNet": (
        {"model": "convnext_atto", "facet": "key"},
        "facet: key cannot be read from convnext_atto",
    ),
    "a facet in windows": (
        {"model": "swin_tiny_patch4_window7_224", "facet": "query"},
        "facet: query cannot be read from swin_tiny",
    ),
    "a norm below the last stage": (
        {"model": "swin_tiny_patch4_window7_224", "norm": True, "layer": 1},
        "norm: swin_tiny_patch4_window7_224's final norm belongs to its last stage, 3; allowed with layer 1: false",
    ),
    "no norm": ({"model": "resnet18", "norm": True}, "norm: resnet18 has no final norm"),
    "nothing to debias": (
        {"model": "resnet18", "debias": {"components": 2}},
        "debias: resnet18 has no position embedding",
    ),
    "stages of two strides": (
        {"model": "convnext_atto", "layer": [1, 2]},
        r"layer: \[1, 2\] have different strides \(1 has 8, 2 has 16 pixels\)",
    ),
    "no such stage": (
        {"model": "convnext_atto", "layer": 4},
        "layer: 4 does not exist; convnext_atto has stages 0 to 3",
    ),
    "a facet where there are two": (
        {"model": "vit_small_patch16_18x2_224", "overrides": {"depth": 1}, "facet": "key"},
        "facet: key cannot be read from vit_small_patch16_18x2_224",
    ),
    "norm1_post is no position": (
        {"model": "focalnet_tiny_srf", "debias": {"components": 2}},
        "debias: focalnet_tiny_srf has no position embedding",
    ),
    "what semcorr decides": (
        {"model": "resnet18", "overrides": {"pretrained": True}},
        "overrides: pretrained is not the architecture's",
    ),
    "a canvas that is not square": (
        {"model": "swin_tiny_patch4_window7_224", "overrides": {"img_size": [224, 448]}},
        r"img_size: \[224, 448\] is not square",
    ),
    "larger than its canvas": (
        {"model": "beit_base_patch16_224", "image_size": 300},
        "image_size: 300 is more than the network's canvas of 224 pixels; another size: overrides: {img_size: ...}",
    ),
    "cells that do not cover the image": (
        {"model": "inception_v3"},
        "model: 'inception_v3' is not possible: its layers of 147 x 147",
    ),
    "a stride of patches that vanish": ({"model": "levit_128s"}, "'levit_128s' is not possible: its layers of 14 x 14"),
    "an unknown tag": (
        {"model": "resnet18", "weights": {"kind": "timm", "tag": "nope"}},
        "timm has no weights 'resnet18.nope'; tags of resnet18: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(smoke, tmp_path, monkeypatch, case):
    changes, message = REFUSED[case]
    said = _problems(smoke, tmp_path, monkeypatch, **changes)
    assert said.startswith("params.yaml: backbones.dinov2_tiny")
    assert re.search(message.replace("{", r"\{"), said), said


def test_what_cannot_be_tuned_says_what_is_possible(smoke, tmp_path, monkeypatch):
    tuned = {key: smoke["grid"][key] for key in ("tunings", "weights", "train", "validate", "trunks")}
    said = _problems(smoke, tmp_path, monkeypatch, model="convnext_atto", layer=3, grid=tuned)
    assert "dinov2_tiny cannot be tuned: convnext_atto does not run block by block" in said
    assert "grid.tunings: []" in said
    assert not isinstance(build(_spec("convnext_atto")), Blockwise)


def test_how_images_are_prepared_is_the_weights_own(smoke, tmp_path, monkeypatch, caplog):
    """MAE and AugReg share an architecture, but not the mean of their images."""
    model = "vit_base_patch16_224"
    for tag, mean in (("mae", (0.485, 0.456, 0.406)), ("augreg_in1k", (0.5, 0.5, 0.5))):
        with torch.device("meta"):
            assert build(_spec(model, weights={"kind": "timm", "tag": tag}, overrides={"depth": 1})).mean == mean
            of_file = {"kind": "file", "path": "x.pth", "sha256": None, "tag": tag}
            assert build(_spec(model, weights=of_file, overrides={"depth": 1})).mean == mean
    plain = {"kind": "file", "path": "x.pth", "sha256": None}
    assert _problems(smoke, tmp_path, monkeypatch, model=model, weights=plain) == ""
    assert "backbones.dinov2_tiny.weights.tag: is not given, so images are prepared as for augreg2" in caplog.text
    caplog.clear()
    assert _problems(smoke, tmp_path, monkeypatch, model=model, weights=plain | {"tag": "mae"}) == ""
    assert _problems(smoke, tmp_path, monkeypatch, model="vit_small_patch14_dinov2", weights=plain) == ""
    assert caplog.text == ""


@pytest.mark.parametrize("model", ["hiera_tiny_224", "swin_tiny_patch4_window7_224", "volo_d1_224", "mvitv2_tiny"])
def test_another_size_of_a_network_whose_size_is_fixed(model):
    with torch.device("meta"):
        network = build(_spec(model, overrides={"img_size": 448}))
    assert (network.side, network.strides[0]) == (448, {"volo_d1_224": 8}.get(model, 4))


def test_more_is_not_removed_than_a_blank_image_shows():
    spec = _spec("vit_small_patch14_reg4_dinov2", debias={"components": 4})
    network = build(spec)
    assert network.positional_basis((28, 42), spec).shape == (4, 48)
    with pytest.raises(UserError, match=r"debias\.components: 4 needs an image of more than 4 cells"):
        network.positional_basis((28, 28), spec)


def test_a_network_that_sees_no_positions_is_not_debiased():
    """Relative positions do not show on a blank image; what would be removed then is rounding."""
    spec = _spec("swin_tiny_patch4_window7_224", 2, debias={"components": 2})
    network = build(spec)
    with pytest.raises(UserError, match="see no positions"):
        network.positional_basis((224, 224), spec)


def test_features_too_large_for_float16_name_the_layer():
    network = build(_spec("resnet18"))
    images = torch.randn(1, 3, 64, 64)
    assert "no output is too large" in network.overflow_in(images, 3, key="k", precision="float16")
    with torch.no_grad():
        network.net.bn1.weight.mul_(1e7)
    why = network.overflow_in(images, 3, key="backbones.x.precision", precision="float16")
    assert why.startswith("the output of layer 0 reaches")
    assert "Set backbones.x.precision: float32" in why


def test_the_docs_list_what_was_tried():
    """Each network of docs/networks.py has its row, or its reason, in docs/networks.md; they are at least forty."""
    docs = Path(__file__).parents[2] / "docs"
    tried = re.findall(r'^    "(\w+\.\w+)",$', (docs / "networks.py").read_text(), re.MULTILINE)
    listed = re.findall(r"^(?:\| |- )`(\w+\.\w+)`", (docs / "networks.md").read_text(), re.MULTILINE)
    assert sorted(tried) == sorted(listed)
    assert len(set(tried)) == len(tried) > 40
    assert all(timm.is_model_pretrained(tag) for tag in tried)
