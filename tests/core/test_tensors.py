"""What overflows or is no number is refused by whoever meets it, in words that name the block or tensor."""

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import rewrite
from PIL import Image as PillowImage

import semcorr
from semcorr import cli, params, tensors
from semcorr.api import images
from semcorr.artifacts import store
from semcorr.artifacts.files import write_json
from semcorr.artifacts.provenance import read
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.matching import match_pairs, match_points
from semcorr.networks.backbones import build, load, save
from semcorr.networks.backbones.weights import get
from semcorr.readouts.argmax import argmax

BIAS = "blocks.2.mlp.fc2.bias"
SPEC = {"family": "timm", "model": "vit_small_patch14_dinov2", "norm": False}
REFUSED = r"not finite in float16: the output of block 2 reaches 2e\+05, .* Set {key}: float32"


@pytest.fixture(scope="module")
def values(smoke) -> dict:
    """The smoke preset with one network and without its final norm, which would hide what overflows before it."""
    values = copy.deepcopy(smoke)
    values["grid"]["backbones"] = ["dinov2_tiny"]
    values["backbones"]["dinov2_tiny"] |= {"norm": False}
    return values


@pytest.fixture(scope="module")
def state(values) -> dict[str, torch.Tensor]:
    """The tensors of its network."""
    spec = params.validate(values, "smoke").backbones["dinov2_tiny"]
    return get(spec, spec.weights, Path())[0].net.state_dict()


@pytest.fixture
def project(values, state, tmp_path, monkeypatch):
    """A function that makes an experiment of tensors from a file, changed in one place, and runs stages of it."""
    monkeypatch.chdir(tmp_path)

    def make(name: str = BIAS, index: int = 7, value: float = 2e5, **changes):
        tensors = {key: tensor.clone() for key, tensor in state.items()}
        tensors[name].view(-1)[index] = value
        torch.save(tensors, "net.pth")
        experiment = copy.deepcopy(values)
        experiment["backbones"]["dinov2_tiny"]["weights"] = {"kind": "file", "path": "net.pth", "sha256": None}
        for key, change in changes.items():
            experiment["backbones"]["dinov2_tiny"] |= change if key == "backbone" else {}
            experiment["tunings"]["last1"] |= change if key == "tuning" else {}
            experiment["trunk"] |= change if key == "trunk" else {}
        write_json(tmp_path / "params.yaml", experiment)
        return _run

    return make


def _run(*words: str) -> str:
    return cli.run_stage(cli.parser().parse_args(list(words)))


def _job(*words: str) -> graph.Job:
    return graph.Graph(params.load()).job(*words)


def _picture(seed: int = 0) -> PillowImage.Image:
    return PillowImage.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), np.uint8))


CELL = ("dinov2_tiny", "frozen", "toy_willow")


def test_extract_names_the_block(project):
    run = project()
    run("fetch", "toy_willow")
    run("weights", "dinov2_tiny", "frozen")
    with pytest.raises(UserError, match=REFUSED.format(key=r"backbones\.dinov2_tiny\.precision")):
        run("extract", *CELL)
    assert not _job("extract", *CELL).outputs["store"].exists()
    project(backbone={"precision": "float32"})
    run("weights", "dinov2_tiny", "frozen")
    run("extract", *CELL)


def test_trunk_names_its_own_precision(project):
    """What overflows below the tuned block is cached in the trunk's precision."""
    run = project(name="blocks.1.mlp.fc2.bias", trunk={"precision": "float16"})
    run("fetch", "toy_willow")
    run("weights", "dinov2_tiny", "frozen")
    refused = r"not finite in float16: the output of block 1 reaches 2e\+05, .* Set trunk\.precision: float32"
    with pytest.raises(UserError, match=refused):
        run("trunk", "dinov2_tiny", "toy_willow")


def test_own_images_are_refused(project, tmp_path, capsys, caplog):
    """match_images, the command line, and the page's Matcher; and right with precision: float32."""
    run = project()
    run("weights", "dinov2_tiny", "frozen")
    refused = REFUSED.format(key=r"backbones\.dinov2_tiny\.precision")
    with pytest.raises(UserError, match=refused):
        semcorr.match_images(_picture(), _picture(), [(60, 45)])
    _picture().save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as ended:
        cli.main(["match-images", "a.png", "a.png", "--points", "60,45", "--json", "m.json"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "block 2" in said
    assert "precision: float32" in said
    assert not Path("m.json").exists()
    project(backbone={"precision": "float32"})
    run("weights", "dinov2_tiny", "frozen")
    found = semcorr.match_images(_picture(), _picture(), [(60, 45)])
    assert np.isfinite(found.target_points).all()
    # One channel is so large that all cells look alike: it is said that this answer says nothing.
    assert "1 keypoints are equally similar to every cell of their target" in caplog.text


def test_the_api_refuses(project):
    project()
    changes = {"layer": 2, "overrides": {"depth": 3, "embed_dim": 48, "num_heads": 3, "init_values": 1.0}}
    changes |= {"weights": "net.pth", "model": SPEC["model"], "device": "cpu"}
    image = torch.randn(1, 3, 56, 70)
    with pytest.raises(UserError, match=REFUSED.format(key="precision")):
        semcorr.UnifiedBackbone("dinov2", **changes).extract_features(image)
    backbone = semcorr.UnifiedBackbone("dinov2", **changes, precision="float32")
    assert torch.isfinite(backbone.extract_features(image)).all()
    with pytest.raises(ValueError, match="image holds NaN or infinite values"):
        backbone.extract_features(image.index_fill(3, torch.tensor([3]), float("nan")))


def test_a_tuning_that_overflows_is_refused_by_adapt(project, caplog):
    """Close to the edge before, over it after: training ends, and says so; adapt refuses as extract does."""
    run = project(value=65400.0, tuning={"learning_rate": 1.5, "epochs": 3})
    for dataset in ("toy_spair_trn", "toy_spair_val", "toy_willow"):
        run("fetch", dataset)
    run("weights", "dinov2_tiny", "frozen")
    for dataset in ("toy_spair_trn", "toy_spair_val", "toy_willow"):
        run("trunk", "dinov2_tiny", dataset)
    run("finetune", "dinov2_tiny", "last1")
    assert "adapt will refuse these tensors" in caplog.text
    curve = pd.read_csv(_job("finetune", "dinov2_tiny", "last1").outputs["curve"])
    assert curve["pck"].between(0, 1).all()
    with pytest.raises(UserError, match=r"not finite in float16: the output of block 2 reaches .*precision: float32"):
        run("adapt", "dinov2_tiny", "last1", "toy_willow")
    assert not _job("adapt", "dinov2_tiny", "last1", "toy_willow").outputs["store"].exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_no_numbers(project, state, values, value, tmp_path):
    run = project(name="blocks.1.attn.qkv.weight", value=value)
    with pytest.raises(UserError, match=r"NaN or infinite values in blocks\.1\.attn\.qkv\.weight"):
        run("weights", "dinov2_tiny", "frozen")
    spec = params.validate(values, "smoke").backbones["dinov2_tiny"]
    broken = {name: tensor.clone() for name, tensor in state.items()}
    broken["norm.bias"][0] = value
    save(tmp_path / "broken.safetensors", broken, {})
    with pytest.raises(UserError, match=r"broken\.safetensors: NaN or infinite values in norm\.bias"):
        load(build(spec), tmp_path / "broken.safetensors")
    whole = {name: tensor.to(torch.int32) if name == "norm.bias" else tensor for name, tensor in state.items()}
    torch.save(whole, "net.pth")
    with pytest.raises(UserError, match=r"norm\.bias is torch\.int32"):
        run("weights", "dinov2_tiny", "frozen")


def test_a_store_that_holds_what_is_no_number(project, state):
    """One made by an older version, or by hand: match makes no answer of it, and leaves nothing."""
    run = project(value=0.0)
    run("fetch", "toy_willow")
    run("weights", "dinov2_tiny", "frozen")
    run("extract", *CELL)
    path = _job("extract", *CELL).outputs["store"]
    with store.Store(path, None) as whole:
        arrays = {image_id: whole.array(image_id).copy() for image_id in whole.ids()}
        entries, record = whole.entries(), whole.provenance
    first = next(iter(arrays))
    for spoilt in (np.nan, np.inf):
        arrays[first][0, 0, 5] = spoilt
        path.unlink()
        with store.create(path, record, entries, "float16") as writer:
            for image_id, array in arrays.items():
                writer.add(image_id, array)
        with pytest.raises(UserError, match=r"features are not finite, so nothing can be matched"):
            run("match", *CELL, "argmax")
        assert not _job("match", *CELL, "argmax").outputs["matches"].exists()


def test_matches_that_are_no_numbers_are_not_scored(project):
    run = project(value=0.0)
    run("fetch", "toy_willow")
    run("weights", "dinov2_tiny", "frozen")
    run("extract", *CELL)
    run("match", *CELL, "argmax")
    path = _job("match", *CELL, "argmax").outputs["matches"]
    good = pd.read_parquet(path)
    for column, said in {
        "predicted_x": "a predicted or true keypoint is not finite",
        "bbox_kp": "reference 'bbox_kp' is not known for it",
    }.items():
        rewrite(path, good.assign(**{column: good[column].where(good.index != 13)}))
        pair = good["pair"][13].replace("(", ".")[:4]
        with pytest.raises(UserError, match=rf"argmax\.parquet: pair {pair}.*{said}"):
            run("evaluate", *CELL, "argmax")
        assert not _job("evaluate", *CELL, "argmax").outputs["cell"].exists()
    rewrite(path, good.assign(bbox_kp=good["bbox_kp"].where(good["pair"] != good["pair"][13], 0.0)))
    with pytest.raises(UserError, match=r"pair .*: reference 'bbox_kp' is zero"):
        run("evaluate", *CELL, "argmax")
    rewrite(path, good)
    run("evaluate", *CELL, "argmax")


def test_no_answer_from_a_heatmap_without_a_number():
    grid = Grid(image_size=(20, 20), resized_size=(20, 20), stride=5)
    good = torch.nn.functional.normalize(torch.randn(4, 4, 8), dim=-1)
    for value in (float("nan"), float("inf"), 3e38):
        bad = good.clone()
        bad[1, 2] = value
        pair = "a", "b", np.array([[12.0, 7.0]])
        for maps in ({"a": bad, "b": good}, {"a": good, "b": bad}):
            with pytest.raises(UserError, match="not finite"):
                match_pairs([pair], lambda id_, maps=maps: (maps[id_], grid), "bilinear", argmax)
        with pytest.raises(UserError, match="not finite"):
            tensors.unit(bad, "x")
    with pytest.raises(UserError, match="similarity of 1 keypoints is not finite"):
        match_points(np.array([[12.0, 7.0]]), (good * float("nan"), grid), (good, grid), "bilinear", argmax)


def test_the_largest_value_that_is_kept():
    """At the edge of float16 a feature is kept; one step beyond it is not."""
    edge = torch.full((1, 1, 4), 65504.0)
    assert torch.equal(tensors.rounded(edge, "float16", "x", str).float(), edge)
    with pytest.raises(UserError, match="x: not finite in float16: why"):
        tensors.rounded(edge + 32, "float16", "x", lambda: "why")
    huge = torch.full((1, 1, 4), 1e25)
    with pytest.raises(UserError, match="x: not finite in float32"):  # the squares of its length overflow
        tensors.rounded(huge, "float32", "x", str)


COMPUTE = ("bfloat16", "float16")


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny", "sam_tiny"])
def test_mixed_precision_is_close_and_real(smoke, name, compute):
    """On a CPU too: other numbers than float32's, within what so many bits allow."""
    from semcorr.networks import runtime

    spec = params.validate(smoke, "smoke").backbones[name]
    network = build(spec)
    side = 128 if spec.family == "sam" else 8 * network.stride
    shown = torch.randn(1, 3, side, side)
    exact = network.features(shown, spec)
    with runtime.autocast(torch.device("cpu"), compute):
        mixed = network.features(shown, spec).float()
    error = (mixed - exact).norm() / exact.norm()
    assert 0 < error < {"bfloat16": 0.05, "float16": 0.005}[compute]


@pytest.mark.parametrize("facet", ["token", "key"])
def test_every_stage_computes_as_it_is_told(project, facet):
    """bfloat16 through every stage that runs a network; own images and the API give what extract stores."""
    run = project(value=0.0, backbone={"compute": "bfloat16", "facet": facet})
    for dataset in ("toy_spair_trn", "toy_spair_val", "toy_willow"):
        run("fetch", dataset)
    run("weights", "dinov2_tiny", "frozen")
    for dataset in ("toy_spair_trn", "toy_spair_val", "toy_willow"):
        run("trunk", "dinov2_tiny", dataset)
    run("extract", *CELL)
    run("finetune", "dinov2_tiny", "last1")
    run("adapt", "dinov2_tiny", "last1", "toy_willow")
    run("match", "dinov2_tiny", "last1", "toy_willow", "argmax")
    job = _job("extract", *CELL)
    assert job.settings["backbones.dinov2_tiny.compute"] == "bfloat16"
    matcher = images.Matcher()
    with store.Store(job.outputs["store"], None) as opened:
        image_id = opened.ids()[0]
        stored = torch.from_numpy(opened.array(image_id)).float()
        shown = images.open_image(f"data/toy_willow/images/{image_id}.png")
        features, _ = matcher.features(shown)
    torch.testing.assert_close(features, torch.nn.functional.normalize(stored, dim=-1), rtol=0, atol=2e-2)
    backbone = semcorr.UnifiedBackbone.from_params("dinov2_tiny", device="cpu")
    assert backbone.spec.compute == "bfloat16"
    pixels, _ = matcher.network.preprocess(shown, 112)
    found = backbone.extract_features(pixels[None])[0][: stored.shape[0], : stored.shape[1]]
    torch.testing.assert_close(found, stored, rtol=0, atol=0.02 * stored.abs().max().item())
    settings = json.dumps(read(job.outputs["store"])["settings"])
    assert "bfloat16" in settings


def test_debiasing_projects_in_float32(smoke):
    """Under autocast, what is taken away is as exact as without: nothing of the blank image's directions is left."""
    values = smoke["backbones"]["dinov2_tiny"] | {"debias": {"components": 4}, "norm": True}
    spec = params.BackboneSpec.model_validate(values)
    network = build(spec)
    shown = torch.randn(1, 3, 112, 112)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = network.features(shown, spec)
    basis = network.positional_basis((112, 112), spec)
    left = torch.einsum("kc,bchw->bkhw", basis, features)
    assert features.dtype == torch.float32
    assert left.abs().max() < 1e-5 * features.abs().max()
