"""Held-out keypoints and categories: never trained on, counted apart in every cell, and marked where tuning loses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_stages, setting

from semcorr import params
from semcorr.artifacts import provenance
from semcorr.artifacts.provenance import read_result
from semcorr.datasets import hold_outs
from semcorr.datasets.base import IMAGE_SCHEMA, PAIR_SCHEMA, Pair, read_images, read_pairs, write_index
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.report import tables
from semcorr.report.compare import compare

B, VAL, TRN = "dinov2_tiny", "toy_spair_val", "toy_spair_trn"
DRAW = {"keypoints": {"seed": 0, "fraction": 0.4}, "categories": ["dog"]}


def _hold_outs(**values) -> params.HoldOuts:
    return params.HoldOuts.model_validate({"keypoints": None, "categories": None} | values)


def test_a_name_is_drawn_by_itself():
    """In every category alike, in the seeded fraction, and a larger fraction holds the smaller."""
    names = [f"{number}" for number in range(3000)]
    drawn = {
        (seed, fraction): {
            name
            for name in names
            if hold_outs.is_held_out(name, _hold_outs(keypoints={"seed": seed, "fraction": fraction}))
        }
        for seed in (0, 1)
        for fraction in (0.3, 0.5)
    }
    assert len(drawn[0, 0.3]) == pytest.approx(900, abs=90)
    assert drawn[0, 0.3] < drawn[0, 0.5]
    assert drawn[0, 0.3] != drawn[1, 0.3]


def test_groups_and_what_is_left_to_train_on():
    held_out = _hold_outs(keypoints={"seed": 0, "fraction": 0.5}, categories=["cow"])
    names = [str(number) for number in range(12)]
    unseen = {name for name in names if hold_outs.is_held_out(name, held_out)}
    assert 0 < len(unseen) < 12
    for category, expected in (("cat", None), ("cow", 2), ("cat to cow", 2), ("cow to cat", 2)):
        found = hold_outs.groups([category] * 12, names, held_out)
        assert found.tolist() == [int(name in unseen) if expected is None else expected for name in names]
    points = [[float(number), 0.0] for number in range(12)]
    parts = {"keypoint_ids": names, "source_keypoints": points, "target_keypoints": points[::-1]}
    pairs = [Pair(id=c, category=c, source="a", target="b", **parts) for c in ("cat", "cow")]
    cat, cow = hold_outs.seen(pairs, held_out)
    assert cat.keypoint_ids == [name for name in names if name not in unseen]
    assert cat.source_keypoints == [[float(name), 0.0] for name in cat.keypoint_ids]
    assert cat.target_keypoints == [[11.0 - float(name), 0.0] for name in cat.keypoint_ids]
    assert cow.keypoint_ids == cow.source_keypoints == cow.target_keypoints == []
    assert hold_outs.seen(pairs, None) == pairs


@pytest.fixture
def experiment(smoke, tmp_path, monkeypatch):
    """A function that runs stages of one small experiment, in the folder that it is called in."""
    monkeypatch.chdir(tmp_path)

    def run(*stages: str, **changes: object) -> graph.Graph:
        values = json.loads(json.dumps(smoke))
        values["grid"] |= {"backbones": [B], "datasets": [VAL], "trunks": [TRN, VAL]}
        values["hold_outs"] = DRAW
        setting("grid", "weights", ["frozen", *values["grid"]["tunings"]])(values)
        values["grid"]["baselines"] = ["frozen"]
        values["grid"]["layers"]["backbones"], values["grid"]["layers"]["datasets"] = [], []
        values |= changes
        return run_stages(values, *stages)

    return run


def _moved(path: Path, held_out: params.HoldOuts | None) -> int:
    """Move annotated points of an index, those held out or, without `held_out`, all; how many."""
    moved, pairs = 0, []
    for pair in read_pairs(path):
        group = np.ones(len(pair.keypoint_ids), int)
        if held_out is not None:
            group = hold_outs.groups([pair.category] * len(group), pair.keypoint_ids, held_out)
        sides = {
            side: [[1.0, 2.0] if which else point for which, point in zip(group, getattr(pair, side), strict=True)]
            for side in ("source_keypoints", "target_keypoints")
        }
        pairs.append(replace(pair, **sides))
        moved += int((group > 0).sum())
    write_index(path, pairs, PAIR_SCHEMA, provenance.read(path))
    return moved


def test_nothing_that_is_held_out_is_trained_on(experiment):
    """Moved, held-out points change not a byte of the checkpoint; others do."""
    job = experiment("fetch", "weights", "trunk", "finetune").job("finetune", B, "last1")
    tensors = job.outputs["tensors"]
    before = tensors.read_bytes()
    for role in ("train_pairs", "validate_pairs"):
        assert _moved(job.inputs[role], params.HoldOuts.model_validate(DRAW)) > 10
    tensors.unlink()
    tensors.with_name("last.pt").unlink()
    experiment("finetune")
    assert _tensors(tensors) == _tensors_of(before, tensors)
    _moved(job.inputs["train_pairs"], None)
    tensors.unlink()
    tensors.with_name("last.pt").unlink()
    experiment("finetune")
    assert _tensors(tensors) != _tensors_of(before, tensors)


def _tensors(path: Path) -> bytes:
    """The tensors of a file, without the record of what they were made from."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return b"".join(file.get_tensor(name).tobytes() for name in sorted(file.keys()))  # not a dict


def _tensors_of(content: bytes, path: Path) -> bytes:
    other = path.with_name("other.safetensors")
    other.write_bytes(content)
    return _tensors(other)


def test_holding_out_everything_is_refused(experiment):
    experiment("fetch", "weights", "trunk")
    kinds = sorted({pair.category for pair in read_pairs(Path(f"data/{TRN}/pairs.parquet"))})
    with pytest.raises(UserError, match=r"the training set has no pair with a keypoint; see .* and hold_outs"):
        experiment("finetune", hold_outs={"keypoints": None, "categories": kinds})


def test_a_held_out_category_that_no_set_has_is_said(experiment, caplog):
    experiment("fetch", "weights", "trunk", "finetune", hold_outs={"keypoints": None, "categories": ["dgo", "dog"]})
    said = [record.getMessage() for record in caplog.records if "hold_outs" in record.getMessage()]
    assert said == ["hold_outs.categories: dgo is in neither the training nor the validation set"]


def test_pictures_that_are_trained_on_are_not_validated_on(experiment, caplog):
    """By their bytes: under another name it is said, under the same name refused."""
    job = experiment("fetch", "weights", "trunk").job("finetune", B, "last1")
    train, held = (read_images(job.inputs[f"{which}_images"]) for which in ("train", "validate"))
    for name, found in (("another", held[0].id), ("the same", train[0].id)):
        copy = replace(held[0], id=found, sha256=train[0].sha256)
        record = provenance.read(job.inputs["validate_images"])
        write_index(job.inputs["validate_images"], [copy, *held[1:]], IMAGE_SCHEMA, record)
        if name == "another":
            experiment("finetune")
            assert f"1 pictures are trained on and validated on under two names, such as {found}" in caplog.text
        else:
            with pytest.raises(UserError, match=f"1 of its images are trained on, such as {train[0].id}"):
                experiment("finetune")


def test_every_cell_splits_into_seen_and_unseen(experiment):
    """Counted again from the matches, frozen and tuned; tables, page and compare say the same."""
    stages = ("fetch", "weights", "extract", "trunk", "finetune", "adapt", "match", "evaluate", "draw", "report")
    plan = experiment(*stages)
    held_out = params.HoldOuts.model_validate(DRAW)
    gains = {}
    for weights in ("frozen", "last1"):
        job = plan.job("evaluate", B, weights, VAL, "argmax")
        cell, matches = read_result(job.outputs["cell"]), pd.read_parquet(job.inputs["matches"])
        distance = np.hypot(matches.predicted_x - matches.true_x, matches.predicted_y - matches.true_y)
        boxes = {pair.id: pair.target_bbox for pair in read_pairs(Path(f"data/{VAL}/pairs.parquet"))}
        sides = [max(boxes[id_][2] - boxes[id_][0], boxes[id_][3] - boxes[id_][1]) for id_ in matches.pair]
        right = distance.to_numpy() <= 0.1 * np.array(sides)
        unseen = (matches.category == "dog").to_numpy()
        drawn = np.array([hold_outs.is_held_out(name, held_out) for name in matches.keypoint])
        masks = {"seen": ~unseen & ~drawn, "unseen keypoints": ~unseen & drawn, "unseen categories": unseen}
        for name, mask in masks.items():
            row = cell["hold_outs"][name]["PCK@0.10"]
            assert mask.any()
            assert row["num_keypoints"] == mask.sum()
            assert row["mean"] == pytest.approx(right[mask].mean())
            assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
            gains.setdefault(name, []).append(right[mask].mean())
        assert sum(row["PCK@0.10"]["num_keypoints"] for row in cell["hold_outs"].values()) == cell["num_keypoints"]
    values = params.load()
    rows = compare(f"frozen/{VAL}/argmax", "last1", values)
    found = {row["category"]: row for row in rows if row["threshold"] == "PCK@0.10"}
    text = plan.job("report").outputs["markdown"].read_text()
    assert f"### {VAL}: seen and unseen" in text
    shown = [line.split(" | ") for line in text.splitlines() if "| last1 | argmax |" in line and "seen" in line]
    for line, (name, (frozen, tuned)) in zip(shown, gains.items(), strict=True):
        assert line[3:5] == [name, f"{100 * tuned:.1f}"]
        assert line[6] == f"{100 * (tuned - frozen):+.1f}"
        assert found[name]["difference"] == pytest.approx(tuned - frozen)
        assert line[7] == "{:+.1f} to {:+.1f}".format(*(100 * bound for bound in found[name]["ci95"]))
    assert "<h3>Seen and unseen</h3>" in plan.job("report").outputs["html"].read_text()


def test_a_tuning_that_loses_on_the_unseen_is_marked():
    """Ten pairs of four keypoints: tuned, all of the seen are right and none of the unseen, which frozen had."""
    values = params.load(Path(__file__).parents[2] / "workflow/presets/smoke.yaml")
    values = values.model_copy(update={"hold_outs": params.HoldOuts.model_validate(DRAW)})
    groups = {"seen": 2, "unseen keypoints": 2, "unseen categories": 0}

    def table(seen: int, unseen: int) -> pd.DataFrame:
        right = {"seen": seen, "unseen keypoints": unseen, "unseen categories": 0}
        columns: dict = {"pair": list("abcdefghij")} | {group: [count] * 10 for group, count in groups.items()}
        return pd.DataFrame(columns | {f"{group} correct": [count] * 10 for group, count in right.items()})

    def cell(seen: int, unseen: int) -> dict:
        scores = {"seen": (seen, 2), "unseen keypoints": (unseen, 2), "unseen categories": (0, 0)}
        return {
            "hold_outs": {
                group: {"PCK@0.10": {"num_keypoints": 10 * count, "mean": hits / max(count, 1), "ci95": [0.0, 1.0]}}
                for group, (hits, count) in scores.items()
            }
        }

    row = {"name": f"{B}/last1/d/argmax", "backbone": B, "weights": "last1", "dataset": "d", "rule": "argmax"}
    for tuned, expected in (((2, 0), ["unseen keypoints"]), ((2, 1), []), ((2, 2), []), ((0, 0), [])):
        names = {f"{B}/frozen/d/argmax": (1, 1), row["name"]: tuned}
        cells, pairs = ({name: of(*counts) for name, counts in names.items()} for of in (cell, table))
        found = tables._hold_outs(row, cells, pairs, values)
        assert found["loses"] == expected
        assert list(found["groups"]) == ["seen", "unseen keypoints"]
        assert found["groups"]["seen"]["gain"]["difference"] == pytest.approx(100 * (tuned[0] - 1) / 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"keypoints": None, "categories": None}, "hold_outs: holds out nothing"),
        ({"keypoints": {"seed": 0, "fraction": 1.0}, "categories": None}, r"hold_outs\.keypoints\.fraction"),
        ({"keypoints": {"fraction": 0.3}, "categories": None}, r"hold_outs\.keypoints\.seed"),
        ({"keypoints": None, "categories": ["cow", "cow"]}, r"hold_outs\.categories: a value is listed twice"),
        ({"keypoints": None}, r"hold_outs\.categories"),
        ([], "hold_outs"),
    ],
)
def test_bad_values_are_refused(smoke, value, message):
    values = json.loads(json.dumps(smoke)) | {"hold_outs": value}
    with pytest.raises(UserError, match=message):
        params.validate(values, "x")
