"""Tuned networks as folders: what they give elsewhere is what they give in their project, and nothing else is taken."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import run_stages

from semcorr import UnifiedBackbone, cli, match_images, params
from semcorr.api import export as exporting
from semcorr.artifacts.files import sha256
from semcorr.artifacts.provenance import read_result
from semcorr.datasets.base import read_image, read_images
from semcorr.errors import UserError

B, DATA = "dinov2_tiny", "toy_spair_val"
STAGES = ("fetch", "weights", "trunk", "finetune", "extract", "adapt", "match", "evaluate")


def _values(smoke: dict) -> dict:
    values = json.loads(json.dumps(smoke))
    values["grid"] |= {"backbones": [B], "datasets": [DATA], "trunks": ["toy_spair_trn", DATA], "rules": ["argmax"]}
    values["grid"]["layers"] |= {"backbones": [], "datasets": []}
    values["tunings"]["last1"] |= {"head": {"upsample": 2, "channels": 8}, "epochs": 1}
    return values


@pytest.fixture(scope="module")
def project(smoke, tmp_path_factory):
    """A finished project, and two of its images."""
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        plan = run_stages(_values(smoke), *STAGES)
        index = root / plan.job("fetch", DATA).outputs["images"]
        images = [read_image(index.parent / "images", image) for image in read_images(index)[:2]]
        cell = read_result(plan.job("evaluate", B, "last1", DATA, "argmax").outputs["cell"])
    return root, images, cell


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project[0])
    return project


def _points(images, **network) -> np.ndarray:
    return match_images(*images, [[30, 40], [60.5, 33]], rule="argmax", **network).target_points


@pytest.mark.parametrize("whole", [False, True])
def test_the_same_points_in_an_empty_folder(inside, tmp_path, monkeypatch, whole):
    """As in the project, and the same features to the bit; with its base tensors in the folder or from their source."""
    _, images, _ = inside
    expected = _points(images, backbone=B, weights="last1")
    assert not np.array_equal(expected, _points(images, backbone=B))
    inner = UnifiedBackbone.from_params(B, "checkpoints/dinov2_tiny/last1", device="cpu")
    exporting.export(f"{B}/last1", tmp_path / "mine", whole)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("SEMCORR_CACHE", str(tmp_path / "cache"))
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {"README.md", "backbone.json", "model.safetensors"} | ({"base.safetensors"} if whole else set())
    np.testing.assert_array_equal(_points(images, backbone=str(tmp_path / "mine")), expected)
    outer = UnifiedBackbone.from_checkpoint(tmp_path / "mine", device="cpu")
    picture = torch.rand(1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(outer(picture), inner(picture))


def test_from_an_address(inside, tmp_path, server, monkeypatch):
    """Downloaded once; a changed file is not used, and a new one at the same address is."""
    _, images, _ = inside
    expected = _points(images, backbone=B, weights="last1")
    exporting.export(f"{B}/last1", tmp_path / "mine")
    for path in (tmp_path / "mine").iterdir():
        server.files[f"nets/mine/{path.name}"] = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEMCORR_CACHE", str(tmp_path / "cache"))
    address = server.url("nets/mine")
    np.testing.assert_array_equal(_points(images, backbone=address), expected)
    before = server.requests
    UnifiedBackbone.from_checkpoint(f"{address}/", device="cpu")
    assert server.requests == before + 1  # the entry alone
    shutil.rmtree(tmp_path / "cache")
    tensors = server.files["nets/mine/model.safetensors"]
    server.files["nets/mine/model.safetensors"] = tensors[:-1] + bytes([tensors[-1] ^ 1])
    with pytest.raises(UserError, match="serves another file"):
        UnifiedBackbone.from_checkpoint(address, device="cpu")
    entry = json.loads(server.files["nets/mine/backbone.json"])
    server.files["nets/mine/backbone.json"] = json.dumps(entry | {"tensors": "../../x"}).encode()
    with pytest.raises(UserError, match="is not a SHA-256"):
        UnifiedBackbone.from_checkpoint(address, device="cpu")
    with pytest.raises(UserError, match="could not be downloaded"):
        UnifiedBackbone.from_checkpoint(server.url("nowhere"), device="cpu")


def _edit(folder, **changes) -> None:
    entry = json.loads((folder / "backbone.json").read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            entry[key] |= value
        else:
            entry[key] = value
    (folder / "backbone.json").write_text(json.dumps(entry))


def test_what_was_changed_is_not_used(inside, tmp_path):
    exporting.export(f"{B}/last1", tmp_path / "mine")

    def refused(message: str, **changes) -> None:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "mine", tmp_path / "copy")
        _edit(tmp_path / "copy", **changes)
        with pytest.raises(UserError, match=message):
            UnifiedBackbone.from_checkpoint(tmp_path / "copy", device="cpu")

    refused("was tuned from other tensors", backbone={"weights": {"kind": "random", "seed": 99}})
    refused("was tuned from other tensors", base="0" * 64)
    refused("was tuned for layer 2, this backbone has 1", backbone={"layer": 1})
    refused("expects 000", tensors="0" * 64)
    refused("format 7, this version reads 1", format=7)
    refused("backbone: ", backbone={"family": "other"})
    run = {"family": "subprocess:run", "model": "x", "overrides": {"args": "touch taken"}, "layer": 0}
    refused("family 'subprocess:run' names code; allowed: a family of semcorr", backbone=run)
    refused("overrides", backbone={"overrides": {"checkpoint_path": "/etc/passwd"}})
    for path, digest in (("/etc/passwd", "0" * 64), ("../base.safetensors", "0" * 64), ("base.safetensors", None)):
        weights = {"kind": "file", "path": path, "sha256": digest}
        refused(r"allowed: base\.safetensors of the folder", backbone={"weights": weights})
    (tmp_path / "mine" / "backbone.json").write_text("{")
    with pytest.raises(UserError, match="not an exported backbone"):
        UnifiedBackbone.from_checkpoint(tmp_path / "mine", device="cpu")
    with pytest.raises(UserError, match="no such file; a folder written by"):
        UnifiedBackbone.from_checkpoint(tmp_path / "nowhere", device="cpu")


def test_a_base_that_only_this_machine_has(smoke, tmp_path, monkeypatch):
    """A file of this machine is refused without --whole, and travels with it."""
    monkeypatch.chdir(tmp_path)
    plan = run_stages(_values(smoke), "weights")
    shutil.copy(plan.job("weights", B, "frozen").outputs["tensors"], tmp_path / "own.safetensors")
    values = _values(smoke)
    path = {"kind": "file", "path": "own.safetensors", "sha256": sha256(tmp_path / "own.safetensors")}
    values["backbones"][B]["weights"] = path
    run_stages(values, "fetch", "weights", "trunk", "finetune")
    with pytest.raises(UserError, match=r"own\.safetensors is a file of this machine, .* Add --whole"):
        exporting.export(f"{B}/last1", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    exporting.export(f"{B}/last1", tmp_path / "mine", whole=True)
    inner = UnifiedBackbone.from_params(B, "checkpoints/dinov2_tiny/last1", device="cpu")
    (tmp_path / "own.safetensors").unlink()
    picture = torch.rand(1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(UnifiedBackbone.from_checkpoint(tmp_path / "mine", device="cpu")(picture), inner(picture))


def test_the_card_says_what_it_is(inside, tmp_path, capsys):
    _, _, cell = inside
    cli.VERBS["export"](cli.parser().parse_args(["export", f"{B}/last1", str(tmp_path / "mine")]))
    assert f"{B}/last1" in capsys.readouterr().out
    card = (tmp_path / "mine" / "README.md").read_text()
    mean, (low, high) = (cell["overall_keypoint"]["PCK@0.10"][key] for key in ("mean", "ci95"))
    row = next(line for line in card.splitlines() if line.startswith(f"| {DATA} | last1 | argmax | bbox |"))
    assert f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})" in row
    assert any(line.startswith(f"| {DATA} | frozen | argmax |") for line in card.splitlines())
    for words in ("Base: random, seed", "Licence of the base: not known", "Data: toy_spair_trn", "blocks and a head"):
        assert words in card


def test_what_cannot_be_exported(inside, tmp_path, smoke):
    for name, message in ((f"{B}/last9", "tuning: 'last9'"), ("x/last1", "backbone: 'x'"), (B, "tuning: ''")):
        with pytest.raises(UserError, match=message):
            exporting.export(name, tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(UserError, match="exists, and is no empty folder"):
        exporting.export(f"{B}/last1", tmp_path / "mine")
    settings = params.load().to_dict()
    try:
        settings["tunings"]["last1"]["epochs"] = 7
        (inside[0] / "params.yaml").write_text(json.dumps(settings))
        with pytest.raises(UserError, match="made under other parameters"):
            exporting.export(f"{B}/last1", tmp_path / "other")
    finally:
        settings["tunings"]["last1"]["epochs"] = 1
        (inside[0] / "params.yaml").write_text(json.dumps(settings))
    assert not (tmp_path / "other").exists()
