"""Two backbones as one: the weighted mean of two cosines, from stores, on own images, and in both engines."""

import copy
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Clone, run_stages, setting
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from semcorr import cli, match_images, params
from semcorr.api import images
from semcorr.artifacts.files import write_json
from semcorr.artifacts.store import Store, describe
from semcorr.datasets.base import read_images
from semcorr.engine import graph, plan
from semcorr.engine.project import require_dvcs_keys
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.networks.fusion import fused
from semcorr.networks.views import Seen

A, B, DATA = "dinov2_tiny", "sam_tiny", "toy_willow"
JOINED = {"name": "both", "a": A, "b": B}


def _seen(size: tuple[int, int], stride: int, channels: int, seed: int) -> Seen:
    grid = Grid(image_size=(90, 120), resized_size=size, stride=stride)
    features = torch.randn(*grid.shape, channels, generator=torch.Generator().manual_seed(seed))
    return Seen(features, grid, mirrored=False)


def _unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


@given(weight=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_on_one_grid_units_stand_side_by_side(weight, seed):
    a, b = _seen((84, 112), 14, 5, seed), _seen((84, 112), 14, 7, seed + 100)
    found, grid = fused(a, b, weight)
    units = [_unit(one.features.double().numpy()) for one in (a, b)]
    expected = np.concatenate([np.sqrt(weight) * units[0], np.sqrt(1 - weight) * units[1]], axis=-1)
    assert grid == a.grid
    np.testing.assert_allclose(found, expected, atol=1e-6)
    flat = [one.reshape(-1, one.shape[-1]) for one in (found.numpy(), *units)]
    cosines = [one @ one.T for one in flat]
    np.testing.assert_allclose(cosines[0], weight * cosines[1] + (1 - weight) * cosines[2], atol=1e-5)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_coarser_is_sampled_where_the_finer_cells_lie(swapped):
    """By scipy's interpolation, at places computed by hand from strides and sizes."""
    fine, coarse = _seen((84, 112), 14, 4, 0), _seen((96, 128), 32, 3, 1)
    found, grid = fused(*((coarse, fine) if swapped else (fine, coarse)), 0.5)
    assert grid == fine.grid
    y, x = (((np.arange(count) + 0.5) * 14 / old * new) / 32 - 0.5 for count, old, new in ((6, 84, 96), (8, 112, 128)))
    places = np.meshgrid(np.clip(y, 0, 2), np.clip(x, 0, 3), indexing="ij")
    units = _unit(coarse.features.double().numpy())
    sampled = [map_coordinates(units[..., channel], places, order=1) for channel in range(3)]
    parts = [_unit(fine.features.double().numpy()), _unit(np.stack(sampled, axis=-1))]
    expected = np.sqrt(0.5) * np.concatenate(parts[::-1] if swapped else parts, axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture
def values(smoke, tmp_path, monkeypatch) -> dict:
    """Two networks and what joins them, frozen, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    values = copy.deepcopy(smoke)
    values["grid"] |= {"backbones": [A, B], "fusions": [JOINED], "datasets": [DATA], "rules": ["argmax"]}
    values["grid"] |= {"tunings": [], "weights": ["frozen"], "train": None, "validate": None, "trunks": []}
    values["fusions"] = {"both": {"a": A, "b": B, "weight": 0.3}}
    for name in (A, B):
        values["backbones"][name]["precision"] = "float32"
    return values


def test_a_fusion_is_a_row_like_any(values, capsys):
    """Its store holds what its networks' do, own images see the same, and similarities are the mean of theirs."""
    stages = ("validate", "fetch", "weights", "extract", "fuse", "match", "evaluate", "draw", "report")
    run = run_stages(values, *stages)
    stores = [
        Store(run.job(stage, name, "frozen", DATA).outputs["store"], None)
        for stage, name in (("extract", A), ("extract", B), ("fuse", "both"))
    ]
    a, b, both = stores
    matcher = images.Matcher("both")
    index = run.job("fetch", DATA).outputs["images"]
    for image in read_images(index):
        assert both.grid(image.id) == a.grid(image.id)  # 112 px by 14, against 128 by 16
        here, grid = matcher.features(images.open_image(index.parent / "images" / image.file))
        assert grid == both.grid(image.id)
        np.testing.assert_allclose(here, both.array(image.id), atol=1e-6)
        own = _unit(a.array(image.id).astype(float)).reshape(-1, 48)
        joined = both.array(image.id).reshape(len(own), -1)
        assert joined.shape[1] == 48 + b.array(image.id).shape[-1]
        np.testing.assert_allclose(joined[:, :48] @ joined[:, :48].T, 0.3 * own @ own.T, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-6)
    job = run.job("fuse", "both", "frozen", DATA)
    cost = plan.Costs(run).of(job)
    assert cost.disk == pytest.approx(job.outputs["store"].stat().st_size, rel=0.35)
    assert any("fusions.both" in line for line in describe(job.outputs["store"]))
    page = run.job("report").outputs["markdown"].read_text()
    assert page.count("| both |") == page.count(f"| {A} |") > 0
    assert images.available()["both"] == ["frozen"]
    first = images.open_image(index.parent / "images" / read_images(index)[0].file)
    found = match_images(first, first, [[20, 20]], backbone="both")
    assert found.made_by["backbone"] == "both"
    cli.main(["compare", f"both/{DATA}", f"{A}/{DATA}"])
    assert "both" in capsys.readouterr().out


def test_another_weight_is_another_request(values):
    """Of the fusion's cells alone; the weight of one fusion is nothing to another."""
    values["fusions"]["other"] = {"a": B, "b": A, "weight": 0.5, "precision": "float16"}
    values["grid"]["fusions"] = ["both", "other"]

    def asked() -> dict[str, str]:
        return {job.name: job.fingerprint for job in graph.Graph(params.validate(values, "x")).jobs()}

    before = asked()
    values["fusions"]["both"]["weight"] = 0.4
    changed = {name for name, now in asked().items() if now != before[name]}
    cell = f"fusion0-frozen-{DATA}"
    expected = {f"fuse@{cell}", f"match_fused@{cell}-argmax", f"evaluate_fused@{cell}-argmax", f"draw_fused@{cell}"}
    assert changed == expected | {"report", "headline"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("fusions", "both", "weight", 0), r"fusions\.both\.weight: .*above 0|fusions\.both\.weight: .*greater"),
        (setting("fusions", "both", "weight", 1), r"fusions\.both\.weight: "),
        (setting("fusions", "both", "b", A), rf"fusions\.both\.b: '{A}' is also a"),
        (setting("fusions", "both", "b", "x"), r"fusions\.both\.b: 'x' is not in grid\.backbones"),
        (setting("grid", "backbones", [A]), rf"fusions\.both\.b: '{B}' is not in grid\.backbones"),
        (setting("grid", "fusions", ["other"]), r"grid\.fusions: 'other' is not defined; allowed: both"),
        (setting("grid", "fusions", ["both", JOINED]), r"grid\.fusions: a name is listed twice"),
        (setting("grid", "fusions", [JOINED | {"b": A}]), r"grid\.fusions: 'both' does not join .*semcorr fix"),
        (setting("fusions", {A: {"a": A, "b": B, "weight": 0.5}}), rf"fusions\.{A}: this name is taken"),
        (setting("fusions", "both", "weights", 0.5), r"fusions\.both\.weights: "),
    ],
)
def test_mistakes_are_told(values, change, message):
    change(values)
    with pytest.raises(UserError, match=message):
        params.validate(values, "params.yaml")


def test_fix_says_what_is_joined(values, capsys):
    """DVC needs it; a name is enough for Snakemake and for `semcorr fix`."""
    values["grid"]["fusions"] = ["both"]
    write_json(Path("params.yaml"), values)
    with pytest.raises(UserError, match=r"'both' does not say what it joins, which dvc\.yaml reads\. Run: semcorr fix"):
        require_dvcs_keys(params.load())
    cli.main(["fix"])
    expected = f"{{name: both, a: {A}, b: {B}}}"
    assert capsys.readouterr().out.splitlines()[0] == f"grid.fusions: [both] -> [{expected}]"
    require_dvcs_keys(params.load())
    del values["grid"]["fusions"], values["fusions"]
    write_json(Path("params.yaml"), values)
    with pytest.raises(UserError, match=r"grid\.fusions is missing, which dvc\.yaml reads"):
        require_dvcs_keys(params.load())
    cli.main(["fix"])
    assert params.load().to_dict()["grid"]["fusions"] == []


@pytest.mark.pipeline
def test_both_engines_join(clone, values):
    """Snakemake makes it, DVC finds it made; another weight, and DVC runs what follows, Snakemake then nothing."""
    project: Clone = clone("smoke")
    project.edit(lambda there: (there.clear(), there.update(json.loads(json.dumps(values)))))
    project.commit("a fusion")
    assert "fuse@both-frozen-toy_willow" in project.snakemake()
    made = project.metrics()
    assert project.dvc() == set()
    project.edit(setting("fusions", "both", "weight", 0.9))
    cell = "fusion0-frozen-toy_willow"
    expected = {f"fuse@{cell}", f"match_fused@{cell}-argmax", f"evaluate_fused@{cell}-argmax", f"draw_fused@{cell}"}
    assert project.dvc() - {"report", "headline"} == expected
    assert project.metrics() != made
    assert project.snakemake() == set()
    project.edit(setting("fusions", "both", "weight", 0.3))
    assert project.snakemake("--forcerun", "fuse")
    assert project.metrics() == made
    with h5py.File(project.root / "features/both/frozen/toy_willow.h5") as file:
        assert json.loads(file.attrs["semcorr"])["settings"]["fusions.both"]["weight"] == 0.3
