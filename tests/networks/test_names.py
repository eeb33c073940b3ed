"""Weights in the form people have them: each naming scheme of a network, against the network of its own library."""

import pickle
import re
import sys
import types
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import transformers
from conftest import randomised
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file

from semcorr import params
from semcorr.errors import UserError
from semcorr.networks.backbones import names
from semcorr.networks.backbones.base import Backbone
from semcorr.networks.backbones.checkpoint import read_checkpoint
from semcorr.networks.backbones.weights import get

WIDE = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}


def _spec(model: str, layer: int | str, family: str = "timm", **overrides) -> params.BackboneSpec:
    values = {"family": family, "model": model, "overrides": overrides, "layer": layer, "image_size": 128}
    values |= {"weights": {"kind": "random", "seed": 0}, "facet": "token", "norm": False, "debias": None}
    return params.BackboneSpec.model_validate(values | {"compute": "float32", "precision": "float32"})


def _loaded(spec: params.BackboneSpec, path: Path) -> Backbone:
    source = params.FileWeights(kind="file", path=str(path), sha256=None)
    return get(spec, source, path.parent)[0].at(spec)


def _saved(model: torch.nn.Module, folder: Path) -> Path:
    """A model of transformers as its hub has it."""
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def _patches(tokens: torch.Tensor, prefix: int, cells: tuple[int, int]) -> torch.Tensor:
    return tokens[:, prefix:].mT.unflatten(2, cells)


def _dinov2(**changes) -> torch.nn.Module:
    sizes = WIDE | {"image_size": 112, "patch_size": 14} | changes
    if "num_register_tokens" in changes:
        return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes))
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))


def _dinov3(**changes) -> torch.nn.Module:
    sizes = {"image_size": 128, "patch_size": 16, "num_register_tokens": 4, "intermediate_size": 192, **changes}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**WIDE, **sizes))


THIN = {"depth": 2, "embed_dim": 48, "num_heads": 3}
# Model of transformers, timm's name and arguments, and tokens before the patches.
VITS: dict[str, tuple[Callable, str, dict, int]] = {
    "DINOv2": (_dinov2, "vit_small_patch14_dinov2", THIN | {"img_size": 112}, 1),
    "DINOv2, gated": (
        partial(_dinov2, use_swiglu_ffn=True),
        "vit_giant_patch14_dinov2",
        THIN | {"img_size": 112, "mlp_ratio": 256 / 48},
        1,
    ),
    "DINOv2, registers": (
        partial(_dinov2, num_register_tokens=4),
        "vit_small_patch14_reg4_dinov2",
        THIN | {"img_size": 112},
        5,
    ),
    "DINOv3": (_dinov3, "vit_small_patch16_dinov3_qkvb", THIN, 5),
    "DINOv3, gated": (
        partial(_dinov3, use_gated_mlp=True, hidden_act="silu"),
        "vit_small_plus_patch16_dinov3_qkvb",
        THIN | {"mlp_ratio": 4.0},
        5,
    ),
}


@pytest.mark.parametrize("case", VITS)
def test_hugging_faces_transformers_give_their_own_features(tmp_path, case):
    """At the size that position embeddings were made for; at others libraries interpolate them each in its way."""
    make, model, overrides, prefix = VITS[case]
    theirs = randomised(make())
    spec = _spec(model, 1, **overrides)
    ours = _loaded(spec, _saved(theirs, tmp_path))
    for size in [(112, 112)] if "dinov2" in model else [(128, 128), (64, 160)]:
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            hidden = theirs(images, output_hidden_states=True).hidden_states
            for layer in (0, 1):
                at = spec.model_copy(update={"layer": layer})
                expected = _patches(hidden[layer + 1], prefix, ours.cells(images))
                found = ours.features(images, at)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


OFFICIAL = {
    "DINOv2 ViT-S/14": ("vit_small_patch14_dinov2", {"depth": 2}),
    "DINOv2 ViT-B/14": ("vit_base_patch14_dinov2", {"depth": 2}),
    "DINOv2 ViT-S/14, registers": ("vit_small_patch14_reg4_dinov2", {"depth": 2}),
    "DINOv2 ViT-g/14": ("vit_giant_patch14_dinov2", {"depth": 1, "embed_dim": 192, "num_heads": 3}),
    "DINOv3 ViT-S/16": ("vit_small_patch16_dinov3", {"depth": 2}),
    "DINOv3 ViT-B/16": ("vit_base_patch16_dinov3", {"depth": 2}),
    "DINOv3 ViT-S/16, biases": ("vit_small_patch16_dinov3_qkvb", {"depth": 2}),
    "DINOv3 ViT-S+/16": ("vit_small_plus_patch16_dinov3", {"depth": 1}),
}


def _official_dinov2(reference: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Timm's tensors as facebookresearch/dinov2 names and keeps them."""
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    if "reg_token" in state:  # there, the class token's position is kept apart, and added when it is used
        position = torch.randn(state["cls_token"].shape)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    if reference.blocks[0].mlp.__class__.__name__ != "Mlp":
        state = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in state.items()}
    return state | {"mask_token": torch.zeros(1, reference.embed_dim)}


def _official_dinov3(reference: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Timm's tensors as facebookresearch/dinov3 names and keeps them."""
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    names |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2"}
    gated = any("fc1_g" in name for name in reference.state_dict())
    names |= {"mlp.fc2": "mlp.w3"} if gated else {}
    width = reference.embed_dim
    state = {"mask_token": torch.zeros(1, width), "rope_embed.periods": torch.ones(16)}
    biases: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in reference.state_dict().items():
        block, _, last = name.rpartition(".")
        if last in ("q_bias", "k_bias", "v_bias"):
            biases.setdefault(block, {})[last[0]] = tensor
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = tensor.clone()
    for index in range(len(reference.blocks)):
        block = f"blocks.{index}.attn"
        parts = biases.get(block, {})
        zero = torch.zeros(width)
        state[f"{block}.qkv.bias"] = torch.cat([parts.get("q", zero), torch.randn(width), parts.get("v", zero)])
        state[f"{block}.qkv.bias_mask"] = torch.full((3 * width,), float("nan"))
    return state


def _in_hugging_faces_names(official: dict) -> dict:
    """The official tensors under transformers' names, written down here from its conversion scripts."""
    v3 = "storage_tokens" in official or "rope_embed.periods" in official
    block = "layer." if v3 else "encoder.layer."
    attention, proj = ("attention.", "o_proj") if v3 else ("attention.attention.", "output.dense")
    parts = ("q_proj", "k_proj", "v_proj") if v3 else ("query", "key", "value")
    gated = any(".mlp.w1." in name for name in official)
    found = {}
    for name, tensor in official.items():
        if name.endswith("bias_mask") or name == "rope_embed.periods":
            continue
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for part, piece in zip(parts, tensor.chunk(3), strict=True):
                if not (v3 and part == "k_proj" and match[2] == "bias"):
                    found[f"{block}{match[1]}.{attention}{part}.{match[2]}"] = piece.clone()
            continue
        new = re.sub(r"^blocks\.", block, name)
        new = new.replace(".attn.proj.", f".attention.{proj}.").replace(".ls1.gamma", ".layer_scale1.lambda1")
        new = new.replace(".ls2.gamma", ".layer_scale2.lambda1")
        new = re.sub(r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1", new)
        new = re.sub(r"^storage_tokens$", "embeddings.register_tokens", new)
        new = re.sub(r"^pos_embed$", "embeddings.position_embeddings", new)
        patches = "embeddings.patch_embeddings." + ("" if v3 else "projection.")
        new = re.sub(r"^patch_embed\.proj\.", patches, new)
        new = new if v3 else re.sub(r"^norm\.", "layernorm.", new)
        for old, theirs in (("w12", "weights_in"), ("w1", "gate_proj"), ("w2", "up_proj")):
            new = new.replace(f".mlp.{old}.", f".mlp.{theirs}.")
        new = new.replace(".mlp.w3.", ".mlp.down_proj." if v3 else ".mlp.weights_out.")
        if v3 and not gated:
            new = new.replace(".mlp.fc1.", ".mlp.up_proj.").replace(".mlp.fc2.", ".mlp.down_proj.")
        found[new] = tensor
    return found


@pytest.mark.parametrize("case", OFFICIAL)
def test_all_forms_of_the_same_tensors_agree(tmp_path, case):
    """Official, timm's and Hugging Face's, through our contract, against timm's own forward, at several sizes."""
    model, overrides = OFFICIAL[case]
    reference = randomised(timm.create_model(model, num_classes=0, dynamic_img_size=True, **overrides))
    official = (_official_dinov3 if "dinov3" in model else _official_dinov2)(reference)
    forms = {"timm": reference.state_dict(), "official": official, "hugging face": _in_hugging_faces_names(official)}
    assert len({frozenset(form) for form in forms.values()}) == 3
    spec = _spec(model, len(reference.blocks) - 1, **overrides)
    for name, form in forms.items():
        torch.save({key: tensor.contiguous() for key, tensor in form.items()}, tmp_path / f"{name}.pth")
        ours = _loaded(spec, tmp_path / f"{name}.pth")
        for height, width in ((4, 4), (3, 7), (37, 2)):
            images = torch.randn(2, 3, height * ours.stride, width * ours.stride)
            for norm in (False, True):
                [expected] = reference.forward_intermediates(images, indices=1, norm=norm, intermediates_only=True)
                found = ours.features(images, spec.model_copy(update={"norm": norm}))
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_biases_that_timms_network_does_not_have(tmp_path):
    """Dropping them would be another network."""
    reference = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, depth=1)
    official = _official_dinov3(randomised(reference))
    for form in (official, _in_hugging_faces_names(official)):
        torch.save(form, tmp_path / "x.pth")
        with pytest.raises(UserError, match="Take model vit_small_patch16_dinov3_qkvb"):
            _loaded(_spec("vit_small_patch16_dinov3", 0, depth=1), tmp_path / "x.pth")


SMALL_SAM = {"img_size": 128, "embed_dim": 48, "depth": 2, "num_heads": 3, "out_chans": 32, "window_size": 4}


def _hugging_faces_sam() -> torch.nn.Module:
    vision = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 128}
    vision |= {"output_channels": 32, "global_attn_indexes": [1], "window_size": 4, "mlp_dim": 192, "patch_size": 16}
    prompts = {"hidden_size": 32, "image_size": 128, "patch_size": 16}
    decoder = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    return transformers.SamModel(config)


def test_sams_forms_agree(tmp_path):
    """Hugging Face's file against its own network; and the same tensors as SAM's authors and as timm name them."""
    theirs = randomised(_hugging_faces_sam())
    spec = _spec("vit_b", "neck", "sam", **SMALL_SAM, global_attn_indexes=[1])
    ours = _loaded(spec, _saved(theirs, tmp_path))
    state = {f"image_encoder.{name}": tensor for name, tensor in ours.net.state_dict().items()}
    torch.save(state | {"mask_decoder.x": torch.zeros(1), "prompt_encoder.y": torch.zeros(1)}, tmp_path / "sam.pth")
    timms = {n.removeprefix("image_encoder.").replace("mlp.lin", "mlp.fc"): t for n, t in state.items()}
    save_file(timms, tmp_path / "timm.safetensors")
    overrides = {key: value for key, value in SMALL_SAM.items() if key != "out_chans"} | {"neck_chans": 32}
    in_timm = _spec("samvit_base_patch16", 1, **overrides, global_attn_indexes=[1])
    for size in ((128, 128), (80, 128)):
        images = ours.pad(torch.randn(1, 3, *size))
        with torch.inference_mode():
            expected = theirs.vision_encoder(images).last_hidden_state
            blocks = ours.features(images, spec.model_copy(update={"layer": 1}))
            for file in ("model.safetensors", "sam.pth", "timm.safetensors"):
                found = _loaded(spec, tmp_path / file).features(images, spec)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
                other = _loaded(in_timm, tmp_path / file).features(images, in_timm)
                torch.testing.assert_close(other, blocks, rtol=1e-4, atol=1e-5 * blocks.abs().max().item())


def test_dinov3s_convnexts(tmp_path):
    """Hugging Face's file against its own network, and the official names."""
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    theirs = randomised(transformers.DINOv3ConvNextModel(config))
    overrides = {"dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
    spec = _spec("convnext_tiny", 0, **overrides)
    path = _saved(theirs, tmp_path)
    official = {}
    for name, tensor in load_file(path).items():
        name = re.sub(r"^stages\.(\d)\.downsample_layers\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.layers\.(\d)\.", r"stages.\1.\2.", name)
        name = name.replace("depthwise_conv", "dwconv").replace("pointwise_conv", "pwconv")
        official[re.sub(r"(^|\.)layer_norm\.", r"\1norm.", name)] = tensor
    official |= {f"norms.3.{part}": official[f"norm.{part}"].clone() for part in ("weight", "bias")}
    torch.save(official, tmp_path / "official.pth")
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = theirs(images, output_hidden_states=True).hidden_states
    for file in (path, tmp_path / "official.pth"):
        ours = _loaded(spec, file)
        for layer in range(4):
            at = spec.model_copy(update={"layer": layer})
            found = ours.at(at).features(images, at)
            wanted = next(hidden for hidden in expected[1:] if hidden.shape[1:] == found.shape[1:])
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def _clip(activation: Callable = torch.nn.GELU) -> torch.nn.Module:
    vision = CLIPVisionCfg(layers=2, width=64, head_width=16, patch_size=16, image_size=64)
    text = CLIPTextCfg(context_length=8, vocab_size=20, width=32, heads=2, layers=1)
    return CLIP(24, vision, text, quick_gelu=activation is not torch.nn.GELU)


CLIP_SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": 64}


def _clips_blocks(clip: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The patches after each block of CLIP's image tower, caught on their way."""
    caught: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, output: caught.append(output))
        for block in clip.visual.transformer.resblocks
    ]
    with torch.inference_mode():
        clip.encode_image(images)
    for hook in hooks:
        hook.remove()
    batch = [tokens if len(tokens) == len(images) else tokens.transpose(0, 1) for tokens in caught]
    return [_patches(tokens, 1, (4, 4)) for tokens in batch]


@pytest.mark.parametrize("form", ["open_clip's", "CLIP's own"])
def test_clips_files_give_clips_features(tmp_path, form):
    """open_clip saves a dictionary of tensors; OpenAI a TorchScript archive in float16, with QuickGELU."""
    own = form == "CLIP's own"
    theirs = randomised(_clip("quick" if own else torch.nn.GELU))
    if own:
        holder = torch.nn.Module()
        for name, tensor in theirs.state_dict().items():
            path, _, last = name.rpartition(".")
            place = holder
            for step in filter(None, path.split(".")):
                if not hasattr(place, step):
                    place.add_module(step, torch.nn.Module())
                place = getattr(place, step)
            place.register_parameter(last, torch.nn.Parameter(tensor.half(), requires_grad=False))
        for name in names.OPENAI:
            holder.register_buffer(name, torch.tensor(7))
        torch.jit.script(holder).save(tmp_path / "clip.pt")
        theirs.load_state_dict({name: tensor.half().float() for name, tensor in theirs.state_dict().items()})
    else:
        torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "clip.pt")
    quick = "quickgelu_" if own else ""
    spec = _spec(f"vit_base_patch16_clip_{quick}224", 1, **CLIP_SMALL)
    ours, images = _loaded(spec, tmp_path / "clip.pt"), torch.randn(2, 3, 64, 64)
    for layer, expected in enumerate(_clips_blocks(theirs, images)):
        found = ours.features(images, spec.model_copy(update={"layer": layer}))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    if own:
        other = _spec("vit_base_patch16_clip_224", 1, **CLIP_SMALL)
        with pytest.raises(UserError, match="OpenAI's CLIP has the activation QuickGELU"):
            _loaded(other, tmp_path / "clip.pt")


def test_an_image_tower_of_timm_in_open_clips_names(tmp_path):
    """As its SigLIP models are saved; text tower and heads are left out, what nobody knows is not."""
    reference = randomised(timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **CLIP_SMALL))
    state = {f"visual.trunk.{name}": tensor for name, tensor in reference.state_dict().items()}
    state |= {
        "visual.head.proj.weight": torch.ones(3, 64),
        "text.transformer.x": torch.ones(2),
        "logit_scale": torch.ones(1),
    }
    torch.save(state, tmp_path / "a.pt")
    spec = _spec("vit_base_patch16_siglip_224", 1, **CLIP_SMALL)
    ours, images = _loaded(spec, tmp_path / "a.pt"), torch.randn(1, 3, 64, 64)
    [expected] = reference.forward_intermediates(images, indices=1, intermediates_only=True)
    torch.testing.assert_close(ours.features(images, spec), expected, rtol=1e-5, atol=1e-4)
    torch.save(state | {"visual.trunk.surprise": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="unexpected surprise"):
        _loaded(spec, tmp_path / "b.pt")


def test_timms_own_file_has_a_classifier(tmp_path):
    """As its hub has it; the classifier is left out, a counter of batches is kept."""
    whole = randomised(timm.create_model("resnet18", num_classes=10))
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    spec = _spec("resnet18", 4)
    ours, images = _loaded(spec, tmp_path / "model.safetensors"), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours.features(images, spec), whole.forward_features(images), rtol=1e-5, atol=1e-4)


def test_a_hugging_face_file_with_a_tensor_missing_or_left_over(tmp_path):
    make, model, overrides, _ = VITS["DINOv2"]
    state = load_file(_saved(randomised(make()), tmp_path))
    spec = _spec(model, 1, **overrides)
    for case, changed, message in (
        ("more", state | {"pooler.dense.weight": torch.ones(1)}, "unexpected pooler.dense.weight"),
        ("less", {n: t for n, t in state.items() if n != "layernorm.bias"}, "missing norm.bias"),
    ):
        save_file(changed, tmp_path / f"{case}.safetensors")
        with pytest.raises(UserError, match=message):
            _loaded(spec, tmp_path / f"{case}.safetensors")


def test_position_embeddings_of_another_size_say_which(tmp_path):
    make, model, overrides, _ = VITS["DINOv2"]
    path = _saved(randomised(make()), tmp_path)
    other = {key: value for key, value in overrides.items() if key != "img_size"}
    with pytest.raises(UserError, match=r"made for images of 112 pixels: overrides: \{img_size: 112\}"):
        _loaded(_spec(model, 1, **other), path)


def test_two_tensors_of_one_name_are_not_merged():
    with pytest.raises(ValueError, match=r"two tensors would be named norm\.bias"):
        names.renamed({"norm.bias": torch.ones(1), "layernorm.bias": torch.ones(1)}, names.HUGGING_FACE_DINOV2)


class _Executed:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_torchscript_archive_is_data(tmp_path, capsys):
    """Its tensors come back as they are; one that asks for anything else is refused, and nothing in it runs."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.Linear(3, 4).half())
    torch.jit.script(net).save(tmp_path / "net.pt")
    found, expected = read_checkpoint(tmp_path / "net.pt"), net.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    contents = {"code": pickle.dumps(_Executed()), "garbage": b"garbage", "list": pickle.dumps([1])}
    contents["memory"] = b"\x80\x02Nr\xff\xff\xff\x7f."  # room for two thousand million objects
    contents["bytes"] = b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b"x."
    for case, content in contents.items():
        with zipfile.ZipFile(tmp_path / f"{case}.pt", "w") as archive:
            archive.writestr("net/data.pkl", content)
            archive.writestr("net/constants.pkl", pickle.dumps(()))
        with pytest.raises(UserError, match=r"could run code|not a readable checkpoint"):
            read_checkpoint(tmp_path / f"{case}.pt")
    assert "this must not run" not in capsys.readouterr().out


def test_a_torchscript_archive_is_not_larger_than_its_file(tmp_path, monkeypatch):
    """Compressed members, one module in many places, and many views of one storage would fill the memory."""
    net = torch.nn.Sequential(torch.nn.Linear(64, 64))
    torch.jit.script(net).save(tmp_path / "net.pt")
    with zipfile.ZipFile(tmp_path / "net.pt") as before, zipfile.ZipFile(tmp_path / "small.pt", "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"member .* is compressed"):
        read_checkpoint(tmp_path / "small.pt")
    module = type("Module", (), {"__module__": "__torch__"})
    monkeypatch.setitem(sys.modules, "__torch__", types.SimpleNamespace(Module=module))
    deep = module()
    for _ in range(60):  # 2 to the power of 60 paths
        outer = module()
        outer.a = outer.b = deep
        deep = outer
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(deep, protocol=2))
        archive.writestr("net/constants.pkl", pickle.dumps(()))
    with pytest.raises(UserError, match="appears twice"):
        read_checkpoint(tmp_path / "twice.pt")
    views = torch.nn.Module()
    whole = torch.zeros(10_000)
    for number in range(20):
        views.register_buffer(f"part{number}", whole[number : number + 9_000])
    torch.jit.script(views).save(tmp_path / "views.pt")
    with pytest.raises(UserError, match="more than the file has"):
        read_checkpoint(tmp_path / "views.pt")


def test_a_file_that_only_resembles_an_official_one(tmp_path):
    tensors = {name: torch.zeros(3) for name in ("mask_token", "blocks.0.ls1.gamma", "register_tokens", "pos_embed")}
    torch.save(tensors | {"cls_token": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="not the tensors of this network"):
        _loaded(_spec("vit_small_patch14_reg4_dinov2", 1, **THIN), tmp_path / "x.pth")
