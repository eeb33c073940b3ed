"""Results held against known ones: what is equal, near or far, and which differences of protocol are named."""

import json
from pathlib import Path

import pytest

from semcorr import cli, params
from semcorr.artifacts.files import write_json
from semcorr.artifacts.provenance import provenance, write_result
from semcorr.engine import graph, shipped
from semcorr.errors import UserError
from semcorr.params import Params
from semcorr.report import references
from semcorr.report.references import References

ROOT = Path(__file__).parents[2]
ARGMAX, SOFTARGMAX = (f"dinov2_tiny/frozen/toy_willow/{rule}" for rule in ("argmax", "softargmax"))


def _experiment(smoke: dict) -> dict:
    """One network, frozen, on one dataset: two cells."""
    values = json.loads(json.dumps(smoke))
    values["grid"] |= {"backbones": ["dinov2_tiny"], "tunings": [], "weights": ["frozen"], "trunks": []}
    values["grid"] |= {"train": None, "validate": None}
    values["evaluate"] |= {"thresholds": [0.05, 0.10], "references": {"pfwillow": ["bbox_kp", "image"]}}
    return values


def _overall(mean: float) -> dict:
    """Three averages that differ: per keypoint, a point less per image, two less per category."""
    return {
        f"overall_{average}": {f"PCK@{at}": {"mean": mean - less + (at == "0.10") / 10} for at in ("0.05", "0.10")}
        for average, less in (("keypoint", 0), ("image", 0.01), ("category", 0.02))
    }


def _made(values: dict, means: dict[str, float]) -> Params:
    """Write params.yaml, and each cell with a PCK@0.05 per keypoint; under the reference image it is 0.2 higher."""
    write_json(Path("params.yaml"), values)
    experiment = graph.Graph(params.load())
    for name, mean in means.items():
        job = experiment.job("evaluate", *name.split("/"))
        scores = {"bbox_kp": _overall(mean), "image": _overall(mean + 0.2)}
        write_result(job.outputs["cell"], {**scores["bbox_kp"], "references": scores, "provenance": provenance(job)})
    return experiment.params


def _known(preset: str = "smoke", literature: tuple[dict, ...] = (), **cells: dict) -> dict:
    rows = {"argmax": ARGMAX, "softargmax": SOFTARGMAX}
    measured = {"preset": preset, "source": "here", "cells": {rows.get(name, name): row for name, row in cells.items()}}
    return {"tolerance": 0.2, "measured": [measured], "literature": list(literature)}


@pytest.fixture
def made(smoke, tmp_path, monkeypatch) -> Params:
    """By argmax 40 % at 0.05 and 50 % at 0.10, by softargmax ten points more."""
    monkeypatch.chdir(tmp_path)
    return _made(_experiment(smoke), {ARGMAX: 0.4, SOFTARGMAX: 0.5})


def _said(made: Params, known: dict) -> tuple[list[str], bool]:
    text, passed = references.verify(made, References.model_validate(known))
    return text.splitlines(), passed


EQUAL = {"pck@0.05": 40.0, "pck@0.10": 50.0, "pck@0.10_per_image": 49.0, "pck@0.10_reference_image": 70.0}


@pytest.mark.parametrize(
    ("change", "verdict", "passes"),
    [
        ({}, "equal", True),
        ({"pck@0.10_per_image": 49.04}, "equal", True),
        ({"pck@0.10": 50.2}, "within 0.2 points: pck@0.10 50.2, here 50.0", True),
        ({"pck@0.05": 39.8}, "within 0.2 points: pck@0.05 39.8, here 40.0", True),
        ({"pck@0.10": 50.3}, "outside: pck@0.10 50.3, here 50.0", False),
        (
            {"pck@0.10": 50.1, "pck@0.05": 30.0, "pck@0.10_reference_image": 71.0},
            "outside: pck@0.05 30.0, here 40.0, pck@0.10_reference_image 71.0, here 70.0",
            False,
        ),
        ({"pck@0.20": 60.0}, "outside: pck@0.20 60.0, here none", False),
    ],
)
def test_verdicts(made, change, verdict, passes):
    softargmax = {"pck@0.10": 60.0}
    lines, passed = _said(made, _known(argmax=EQUAL | change, softargmax=softargmax))
    [line] = [line for line in lines if line.startswith("dinov2_tiny frozen toy_willow argmax")]
    assert line.endswith(f"50.0   {verdict}")
    assert passed == passes
    assert lines[-1] == f"{1 + passes} of 2 cells within 0.2 points of the reference"


def test_the_shown_digit_decides(smoke, tmp_path, monkeypatch):
    """0.40049 is shown as 40.0, and 0.40051 as 40.1."""
    monkeypatch.chdir(tmp_path)
    for mean, verdict in ((0.40049, "equal"), (0.40051, "within 0.2 points: pck@0.05 40.0, here 40.1")):
        made = _made(_experiment(smoke), {ARGMAX: mean, SOFTARGMAX: 0.5})
        lines, _ = _said(made, _known(argmax={"pck@0.05": 40.0}))
        assert any(line.endswith(verdict) for line in lines)


def test_what_is_not_in_the_grid_is_counted_apart(made):
    lines, passed = _said(made, _known(argmax=EQUAL, **{"dinov2_tiny/last2/toy_willow/argmax": EQUAL}))
    assert passed
    assert lines[-1] == "1 of 1 cells within 0.2 points of the reference; 1 more not in the grid of params.yaml"


def test_a_preset_without_results_says_so(made):
    lines, passed = _said(made, _known(preset="other", argmax=EQUAL))
    assert passed
    assert lines == ["No results of our own are known for preset smoke; they are for: other"]


def test_what_was_changed_since_the_preset_is_named(smoke, tmp_path, monkeypatch):
    """But not where the dataset lies, nor what affects no result."""
    monkeypatch.chdir(tmp_path)
    values = _experiment(smoke)
    write_json(Path("workflow/presets/smoke.yaml"), values)
    values["rules"]["softargmax"]["temperature"] = 0.5
    values["runtime"]["workers"] += 1
    made = _made(values, {ARGMAX: 0.4, SOFTARGMAX: 0.5})
    changed = [line for line in _said(made, _known(argmax=EQUAL))[0] if line.startswith("Changed since")]
    before = smoke["rules"]["softargmax"]["temperature"]
    there = f"{before} in workflow/presets/smoke.yaml"
    assert changed == [f"Changed since: rules.softargmax.temperature is 0.5 in params.yaml, {there}"]
    assert references._is_address("datasets.pfwillow.sources.0.path")
    assert not references._is_address("datasets.toy_willow.sources.0.seed")
    assert not references._is_address("datasets.toy_willow.limit")


PUBLISHED = {
    "what": "a network of theirs",
    "source": "a paper",
    "format": "pfwillow",
    "family": "dinov2",
    "besides": None,
    "protocol": {"data": "pfwillow", "readout": "softargmax", "image size": 840, "norm": False, "reference": "image"},
    "values": {"image": {"PCK@0.10": 77.7}},
}


def _block(made: Params, **changes: object) -> str:
    """What is said of one result of the literature, in one line."""
    text, _ = references.verify(
        made, References.model_validate(_known(argmax=EQUAL, literature=(PUBLISHED | changes,)))
    )
    return " ".join(text.split("\n\n")[1].split())


def test_literature_is_beside_the_nearest_cell_with_its_differences(made):
    said = _block(made)
    assert said.startswith("a network of theirs (a paper) PCK@0.10 per image 77.7, here 79.0")  # 50 + 10 + 20 - 1
    assert "here: dinov2_tiny frozen toy_willow softargmax" in said
    differences = said.split("different here: ")[1].split("; ")
    assert differences == [
        "drawn images instead of pfwillow",
        "image size 112 instead of 840",
        "features after the final norm instead of before the final norm",
    ]


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ({"reference": "bbox"}, "thresholds relative to the box around the keypoints instead of the object's box"),
        ({"layer": 11}, "layer 2 instead of 11"),
        ({"network": "vit_base_patch14_dinov2"}, "instead of vit_base_patch14_dinov2"),
        ({"weights": "official"}, "weights random instead of official"),
        ({"split": "test"}, "split all instead of test"),
        ({"tuned blocks": 2}, "no tuned blocks instead of 2"),
        ({"sampling": "nearest"}, "sampling bilinear instead of nearest"),
        ({"debiased": True}, "features not debiased"),
        ({"pairs": "all"}, "different here: nothing that is stated"),
        ({"norm": None, "layer": None}, "not stated there: norm, layer"),
    ],
)
def test_every_difference_in_words(made, protocol, words):
    assert words in _block(made, protocol=protocol)


def test_a_threshold_that_is_not_measured_is_not_passed_off_as_one_that_is(made):
    said = _block(made, values={"keypoint": {"PCK@0.01": 5.0}}, protocol={"reference": "bbox_kp"})
    assert "PCK@0.01 per keypoint 5.0, here 40.0 (PCK@0.05)" in said
    assert "different here: PCK@0.05 instead of PCK@0.01" in said


def test_literature_on_other_data_or_networks_is_left_out(made):
    for change in ({"format": "spair"}, {"family": "dinov3"}, {"family": "sam"}):
        lines, _ = _said(made, _known(argmax=EQUAL, literature=(PUBLISHED | change,)))
        assert not any("theirs" in line for line in lines)


def test_no_results_yet(made):
    path = graph.Graph(made).job("evaluate", *ARGMAX.split("/")).outputs["cell"]
    path.unlink()
    with pytest.raises(UserError, match=rf"{path}: not made yet\. Run: dvc repro"):
        _said(made, _known(argmax=EQUAL))


def test_exit_codes(smoke, made, capsys):
    file = references.FILE
    for row, code in ((EQUAL, 0), (EQUAL | {"pck@0.10": 40.0}, 1), ({"pck@0.10": "forty"}, 2)):
        write_json(file, _known(argmax=row))
        ended = 0
        try:
            cli.main(["verify"])
        except SystemExit as error:
            ended = error.code
        assert ended == code
        capsys.readouterr()
    write_json(file, _known(argmax=EQUAL))
    _made(_experiment(smoke) | {"threads": 1 + smoke["threads"]}, {})
    with pytest.raises(SystemExit) as stale:
        cli.main(["verify"])
    assert stale.value.code == 2
    assert "made under other parameters" in capsys.readouterr().err


def test_a_wheel_has_the_file():
    assert references.FILE.as_posix() in shipped.FILES
    assert references.find(references.FILE).exists()


def test_ours_are_what_is_published():
    """The demo's rows are the files that git keeps; PF-WILLOW's are those of docs/results.md."""
    known = references.read(ROOT / references.FILE)
    demo, willow = known.measured
    committed = sorted((ROOT / "metrics/demo/headline").rglob("*.json"))
    assert len(committed) == len(demo.cells) == 12
    for path in committed:
        dataset, backbone, weights, rule = path.with_suffix("").parts[-4:]
        row = {key: float(f"{100 * value:.1f}") for key, value in json.loads(path.read_text()).items()}
        assert demo.cells[f"{backbone}/{weights}/{dataset}/{rule}"] == row
    table = (ROOT / "docs/results.md").read_text().replace("**", "")
    for name, row in willow.cells.items():
        backbone, weights, _, rule = name.split("/")
        *thresholds, per_image, image = (f"{value:.1f}" for value in row.values())
        start = " | ".join(["", backbone, weights, rule, *thresholds]).strip()
        [line] = [line for line in table.splitlines() if line.startswith(start)]
        assert [line.split(" | ")[len(thresholds) + 4], line.strip(" |").split(" | ")[-1]] == [per_image, image]


# PCK@0.10 unless said, per average, as published.
LITERATURE = {
    "DINOv2 ViT-B/14, 840 px, last block before the norm, argmax": {"keypoint": [55.6], "image": [53.9]},
    "DINOv2 ViT-B/14, 518 px, after the norm, nearest sampling, argmax": {"keypoint": [52.8], "image": [50.2]},
    "DINOv2-B, zero-shot, nearest neighbour": {"image": [6.3, 38.4, 53.9]},  # at 0.01, 0.05, 0.10
    "Stable Diffusion + DINOv2, zero-shot": {"image": [7.9, 44.7, 59.9]},  # at 0.01, 0.05, 0.10
    "DINOv3 ViT-B/16, 512 px, argmax": {"keypoint": [47.8], "image": [42.7]},
    "SAM ViT-B, block 12, recall per category": {"category": [24.7]},
    "SAM ViT-B, neck, 512 px in a canvas of 1024": {"keypoint": [16.5], "image": [14.3]},
    "DINOv2 ViT-B, last two blocks tuned, soft-argmax": {"keypoint": [69.6], "image": [66.0]},
    "DINOv3 ViT-B, last two blocks tuned, soft-argmax": {"keypoint": [73.9], "image": [70.2]},
    "SAM ViT-B, last two blocks tuned, soft-argmax": {"keypoint": [41.1], "image": [37.3]},
    "DINOv2-B, last two blocks tuned by cross-entropy over the full map": {"image": [85.1]},
    "SimpleMatch, DINOv2-B, 252 px": {"image": [84.1]},  # arXiv 2601.12357
    "MARCO, DINOv2-L": {"image": [27.0, 77.6, 87.2]},  # at 0.01, 0.05, 0.10; arXiv 2604.18267
}
PAPERS = {"SimpleMatch, DINOv2-B, 252 px": "arXiv 2601.12357", "MARCO, DINOv2-L": "arXiv 2604.18267"}


def test_the_literature_is_what_was_published():
    """Every value, at its threshold; a source names its paper, or says that it does not."""
    literature = references.read(ROOT / references.FILE).literature
    assert {
        one.what: {name: list(row.values()) for name, row in one.values.items()} for one in literature
    } == LITERATURE
    for one in literature:
        assert PAPERS.get(one.what, "paper not named") in one.source
        for row in one.values.values():
            assert list(row) == [f"PCK@{at}" for at in (["0.01", "0.05", "0.10"] if len(row) > 1 else ["0.10"])]
