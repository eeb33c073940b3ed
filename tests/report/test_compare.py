"""Comparing cells: what a short name stands for, and numbers that are known beforehand."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from conftest import small

from semcorr import cli, params
from semcorr.artifacts.files import write_json
from semcorr.artifacts.provenance import provenance, write_table
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.params import Params
from semcorr.report import compare

SPAIR, WILLOW = "toy_spair_test", "toy_willow"
RIGHT = {"frozen": 3, "last1": 8}  # of ten keypoints, by argmax; softargmax has one more


def _right(cell: tuple[str, ...]) -> int:
    """How many of ten keypoints a cell has right."""
    _, weights, _, rule = cell
    return RIGHT[weights] + (rule == "softargmax")


def _matches(right: int, pairs: int = 20) -> pa.Table:
    """Pairs of two categories, each of ten keypoints: the first ones exactly right, the others far away."""
    rows = [
        {
            "pair": f"{pair:03d}",
            "keypoint": keypoint,
            "category": "cat" if pair % 2 else "dog",
            "true_x": 10.0 * keypoint,
            "true_y": float(pair),
            "predicted_x": 10.0 * keypoint + (0 if keypoint < right else 500),
            "predicted_y": float(pair),
            **dict.fromkeys(("bbox", "bbox_kp", "image"), 100.0),
        }
        for pair in range(pairs)
        for keypoint in range(10)
    ]
    return pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)


def _settings(smoke: dict) -> dict:
    """One backbone, frozen and tuned, two datasets, two rules: eight cells."""
    values = json.loads(json.dumps(smoke))
    willow, references = values["datasets"][WILLOW], values["evaluate"]["references"]
    small(values)
    values["datasets"][WILLOW], values["evaluate"]["references"] = willow, {**references, "pfwillow": ["bbox_kp"]}
    values["grid"]["datasets"] = [SPAIR, WILLOW]
    values["grid"]["trunks"].append(WILLOW)
    values["evaluate"] |= {"thresholds": [0.05, 0.10], "bootstrap": 200}
    return values


def _made(values: dict) -> Params:
    """Write params.yaml and every cell's matches into the current folder."""
    write_json(Path("params.yaml"), values)
    experiment = graph.Graph(params.load())
    for cell in experiment.cells["match"]:
        job = experiment.job("match", *cell)
        write_table(job.outputs["matches"], _matches(_right(cell)), provenance(job))
    return experiment.params


@pytest.fixture
def made(smoke, tmp_path, monkeypatch) -> Params:
    monkeypatch.chdir(tmp_path)
    return _made(_settings(smoke))


def _cells(first: str, second: str, made: Params) -> list[tuple[str, str]]:
    """The pairs of cells that two names stand for, in order, without their backbone."""
    rows = compare.compare(first, second, made)
    pairs = dict.fromkeys((row["first_cell"], row["second_cell"]) for row in rows)
    return [tuple(name.replace("dinov2_tiny/", "") for name in pair) for pair in pairs]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            "dinov2_tiny/last1/toy_willow/argmax",
            "dinov2_tiny/frozen/toy_willow/argmax",
            [("last1/toy_willow/argmax", "frozen/toy_willow/argmax")],
        ),
        ("argmax last1", "frozen toy_willow", [("last1/toy_willow/argmax", "frozen/toy_willow/argmax")]),
        (
            "toy_willow/last1",
            "  softargmax   frozen ",
            [("last1/toy_willow/softargmax", "frozen/toy_willow/softargmax")],
        ),
        ("last1/argmax", "frozen/softargmax/toy_willow", [("last1/toy_willow/argmax", "frozen/toy_willow/softargmax")]),
        (
            "dinov2_tiny last1 softargmax",
            "frozen",
            [(f"last1/{dataset}/softargmax", f"frozen/{dataset}/softargmax") for dataset in (SPAIR, WILLOW)],
        ),
        (
            "softargmax",
            "argmax",
            [
                (f"{weights}/{dataset}/softargmax", f"{weights}/{dataset}/argmax")
                for weights in ("frozen", "last1")
                for dataset in (SPAIR, WILLOW)
            ],
        ),
    ],
)
def test_short_names(made, first, second, expected):
    assert _cells(first, second, made) == expected


def test_numbers_are_those_of_the_cells_in_the_table(made):
    """By softargmax 90 % against 40 %, in every pair alike: no sample of the bootstrap differs by anything but 50."""
    rows = compare.compare("last1/softargmax", "frozen", made)
    assert len(rows) == 2 * 3 * 2  # datasets, all and two categories, thresholds
    for row in rows:
        assert (row["first"], row["second"]) == pytest.approx((0.9, 0.4))
        assert row["ci95"] == pytest.approx([-0.5, -0.5])
    text = compare.table(rows, "PCK@0.05").splitlines()
    assert [line for line in text if "against" in line] == [
        "dinov2_tiny toy_spair_test softargmax: last1 against frozen",
        "dinov2_tiny toy_willow softargmax: last1 against frozen",
    ]
    assert text[1].split()[:4] == ["PCK@0.05", "last1", "frozen", "difference"]
    for line in [line for line in text if line.startswith(("all", "cat", "dog"))]:
        assert line.split()[1:4] == ["90.0", "40.0", "-50.0*"]
    assert text[-1].startswith("* significant at 5 %")


def test_no_star_where_nothing_differs(made):
    text = compare.table(compare.compare("last1/argmax", "last1/argmax", made), "PCK@0.10")
    assert all(line.split()[3] == "+0.0" for line in text.splitlines() if line.startswith("all"))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("last1", "frozn", r"frozn: no such part of a cell[^$]*weights: frozen, last1\n"),
        ("last1/x y", "frozen", r"x, y: no such part"),
        ("last1/frozen", "argmax", r"last1/frozen: more than one weights\..*"),
        ("last1 frozen argmax softargmax toy_willow", "argmax", "more than one weights and rule"),
        ("argmax", "last1", r"both are dinov2_tiny/last1/toy_spair_test/argmax"),
        ("", "last1", "a cell without a name"),
    ],
)
def test_names_that_do_not_fit(made, first, second, said):
    with pytest.raises(UserError, match=said):
        compare.compare(first, second, made)


def test_other_keypoints_are_not_compared(made):
    job = graph.Graph(made).job("match", "dinov2_tiny", "frozen", WILLOW, "argmax")
    write_table(job.outputs["matches"], _matches(3, pairs=19), provenance(job))
    with pytest.raises(UserError, match="do not have the same keypoints"):
        compare.compare("last1/argmax", f"frozen/{WILLOW}", made)


def test_a_name_of_two_axes(smoke, tmp_path, monkeypatch):
    """A rule is called like the tuned weights: only the full form says which is meant."""
    monkeypatch.chdir(tmp_path)
    values = _settings(smoke)
    values["rules"]["last1"] = values["rules"].pop("argmax")
    values["grid"]["rules"] = ["last1", "softargmax"]
    values["grid"].pop("layers")
    made = _made(values)
    with pytest.raises(UserError, match=r"several ways[^$]*\n  weights last1\n  rule last1"):
        compare.compare("last1", "frozen", made)
    full = "dinov2_tiny/last1/toy_willow/last1", "dinov2_tiny/frozen/toy_willow/last1"
    assert _cells(*full, made) == [("last1/toy_willow/last1", "frozen/toy_willow/last1")]
    assert _cells("last1/last1", "frozen/softargmax/toy_willow", made) == [
        ("last1/toy_willow/last1", "frozen/toy_willow/softargmax")
    ]


def test_the_command_line(made, capsys):
    cli.main(["compare", "last1 toy_willow", "frozen/argmax", "--json", "out.json"])
    said = capsys.readouterr().out
    assert "paired bootstrap over image pairs, 200 samples, seed 0" in said
    written = json.loads(Path("out.json").read_text())
    assert (written["first"], written["second"]) == ("last1 toy_willow", "frozen/argmax")
    assert {row["threshold"] for row in written["rows"]} == {"PCK@0.05", "PCK@0.10"}
    keys = {"category", "threshold", "first", "second", "difference", "ci95", "p", "first_cell", "second_cell"}
    assert {key for row in written["rows"] for key in row} == keys
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", "last1", "frozen", "--threshold", "PCK@0.5"])
    assert ended.value.code == 2
    assert "allowed: PCK@0.05, PCK@0.10" in capsys.readouterr().err


def test_the_headline_is_what_is_compared(smoke, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = _settings(smoke)
    values["evaluate"] |= {"thresholds": [0.10, 0.05], "headline": 0.05}
    _made(values)
    cli.main(["compare", "last1/toy_willow/argmax", "frozen"])
    assert capsys.readouterr().out.splitlines()[1].startswith("PCK@0.05 ")


def _git(*words: str) -> None:
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *words], check=True)


def test_cells_of_a_revision_that_todays_params_lack(smoke, tmp_path, monkeypatch):
    """The tuning is gone, and the matches lie in DVC's cache alone."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    values = _settings(smoke)
    _made(values)
    _git("init", "-q", "-b", "main")
    with Repo.init(".") as repo:
        repo.add("matches")
    _git("add", ".")
    _git("commit", "-q", "-m", "with last1")
    shutil.rmtree("matches")
    values["grid"] |= {"tunings": [], "weights": ["frozen"], "train": None, "validate": None, "trunks": []}
    values["tunings"] = {}
    made = _made(values)
    assert _cells(f"main:last1/{WILLOW}", "frozen argmax", made) == [
        ("main:last1/toy_willow/argmax", "frozen/toy_willow/argmax")
    ]
    rows = compare.compare(f"main:last1/{WILLOW}", "frozen/argmax", made)
    assert (rows[0]["first"], rows[0]["second"]) == pytest.approx((0.8, 0.3))
    heading, columns, *_ = compare.table(rows, "PCK@0.10").splitlines()
    assert heading == "dinov2_tiny toy_willow argmax: main:last1 against workspace:frozen"
    assert columns.split()[1:3] == ["main:last1", "workspace:frozen"]
    alone = compare.compare("main:", f"frozen/{WILLOW}/argmax", made)
    assert {row["first_cell"] for row in alone} == {f"main:dinov2_tiny/frozen/{WILLOW}/argmax"}
    for first, second, said in (
        ("last1", "frozen", "last1: no such part"),
        ("main:last1", WILLOW, f"{WILLOW}: has no weights last1 to compare with. Add one of its own: frozen"),
        ("nope:last1", "frozen", "nope: no such git revision"),
    ):
        with pytest.raises(UserError, match=said):
            compare.compare(first, second, made)
