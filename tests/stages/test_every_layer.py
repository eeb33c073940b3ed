"""The stage layers: each layer as its own cell would score it, on little memory; and equal tensors as one file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semcorr import cli, params
from semcorr.artifacts.files import write_json
from semcorr.artifacts.provenance import expect, read_result
from semcorr.datasets.base import Pair
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.networks.backbones import read
from semcorr.stages.layers import Scratch, components

DATASET = "toy_spair_val"
STAGED = {"model": "convnext_atto", "overrides": {}, "norm": False, "precision": "float32", "layer": 0}


@pytest.fixture
def experiment(tmp_path, monkeypatch, smoke):
    """A function that runs one stage under params.yaml in which entries of one network differ in a few keys."""
    monkeypatch.chdir(tmp_path)
    values = json.loads(json.dumps(smoke))
    datasets = {DATASET: values["datasets"][DATASET], "toy_willow": values["datasets"]["toy_willow"]}
    values |= {"datasets": datasets, "tunings": {}}
    values["grid"] |= {"tunings": [], "weights": ["frozen"], "datasets": [DATASET], "rules": ["argmax", "softargmax"]}
    values["grid"] |= {"train": None, "validate": None, "trunks": []}

    def run(stage: str, *cell: str, rule: str = "argmax", facets: tuple = ("token",), **entries: dict) -> graph.Job:
        backbones = {name: values["backbones"]["dinov2_tiny"] | changes for name, changes in entries.items()}
        measured = {"backbones": [next(iter(entries))], "datasets": [DATASET], "facets": [*facets], "rule": rule}
        grid = values["grid"] | {"backbones": [*entries], "layers": measured}
        write_json(tmp_path / "params.yaml", values | {"backbones": backbones, "grid": grid})
        cli.run_stage(cli.parser().parse_args([stage, *cell]))
        return graph.Graph(params.load()).job(stage, *cell)

    return run


CASES = {
    "blocks": ({"norm": False}, "softargmax", ("token", "key")),
    "norm": ({}, "argmax", ("token",)),
    "debiased": ({"norm": False, "debias": {"components": 4}}, "argmax", ("token", "value")),
    "stages": (STAGED, "argmax", ("token",)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layer_scores_as_its_own_cell(experiment, case):
    """One pass over all layers, against a store, matches and scores of each layer and facet by itself."""
    changes, rule, facets = CASES[case]
    asked = {"every": changes}
    experiment("fetch", DATASET, **asked)
    experiment("weights", "every", "frozen", **asked)
    job = experiment("layers", "every", DATASET, rule=rule, facets=facets, **asked)
    measured = read_result(job.outputs["curve"])
    assert expect(job.outputs["curve"], job.fingerprint)["stage"] == "layers"
    assert {(row["layer"], row["facet"]) for row in measured["layers"]} == {
        (layer, facet) for layer in range(4 if case == "stages" else 3) for facet in facets
    }
    for row in measured["layers"]:
        one = {"every": changes | {"layer": row["layer"], "facet": row["facet"]}}
        for stage, cell in (("extract", ()), ("match", (rule,)), ("evaluate", (rule,))):
            own = experiment(stage, "every", "frozen", DATASET, *cell, **one)
        cell = read_result(own.outputs["cell"])
        for average in ("keypoint", "image", "category"):
            assert row[f"overall_{average}"] == cell[f"overall_{average}"]
        assert row["stride"] == (2 ** (row["layer"] + 2) if case == "stages" else 14)


def test_where_there_is_nothing_to_debias_a_layer_is_measured_as_it_is(experiment):
    """The first block's keys of a network with a rotary embedding show no positions; its last tokens do."""
    plain = {"model": "vit_small_patch16_dinov3", "norm": False}
    scores = {}
    for case, entry in (("plain", plain), ("debiased", plain | {"debias": {"components": 3}})):
        experiment("fetch", DATASET, every=entry)
        experiment("weights", "every", "frozen", every=entry)
        job = experiment("layers", "every", DATASET, facets=("token", "key"), every=entry)
        rows = read_result(job.outputs["curve"])["layers"]
        scores[case] = {(row["layer"], row["facet"]): row["overall_keypoint"] for row in rows}
    assert scores["plain"][0, "key"] == scores["debiased"][0, "key"]
    assert scores["plain"][2, "token"] != scores["debiased"][2, "token"]


def test_measuring_again_gives_the_same_bytes(experiment):
    asked = {"every": {"norm": False}}
    experiment("fetch", DATASET, **asked)
    experiment("weights", "every", "frozen", **asked)
    first = experiment("layers", "every", DATASET, **asked).outputs["curve"]
    content = first.read_bytes()
    first.unlink()
    assert experiment("layers", "every", DATASET, **asked).outputs["curve"].read_bytes() == content
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # no scratch is left


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=20))
def test_pairs_that_share_images_stay_together(edges):
    """Every pair once; no image in two groups; and within a group all are joined, by a search from its first."""
    empty = np.empty((0, 2))
    pairs = [
        Pair(
            id=str(number), source=str(a), target=str(b), category="c", keypoint_ids=[], source_keypoints=empty,
            target_keypoints=empty,
        )
        for number, (a, b) in enumerate(edges)
    ]  # fmt: skip
    found = components(pairs)
    assert sorted(number for group in found for number in group) == list(range(len(pairs)))
    images = [{image for number in group for image in edges[number]} for group in found]
    assert sum(map(len, images)) == len(set().union(*images))
    for group, inside in zip(found, images, strict=True):
        reached = {edges[group[0]][0]}
        for _ in edges:
            reached |= {image for number in group for image in edges[number] if reached & {*edges[number]}}
        assert reached == inside


def test_scratch_returns_what_it_was_given_and_leaves_nothing(tmp_path):
    arrays = {name: np.random.default_rng(name).random((name, 3, 2)).astype(np.float16) for name in (1, 4, 0, 7)}
    with Scratch(tmp_path) as scratch:
        for name, array in arrays.items():
            scratch.put(name, array)
        for name in reversed(arrays):
            np.testing.assert_array_equal(scratch.get(name), arrays[name])
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_layers_are_asked_for_in_the_grid(experiment):
    with pytest.raises(UserError, match=r"layers every toy_willow: no such cell in params\.yaml"):
        experiment("layers", "every", "toy_willow", every={})


def test_entries_with_the_same_tensors_share_a_file(experiment):
    """Another layer is the same tensors; what identifies each entry is in a file of its own."""
    entries = {"one": {}, "two": {"layer": 1}, "other": {"weights": {"kind": "random", "seed": 9}}}
    jobs = {name: experiment("weights", name, "frozen", **entries) for name in entries}
    files = {name: job.outputs["tensors"] for name, job in jobs.items()}
    assert files["one"].samefile(files["two"])
    assert not files["one"].samefile(files["other"])
    records = {name: expect(files[name], job.fingerprint) for name, job in jobs.items()}
    assert records["one"]["sha256"] == records["two"]["sha256"] != records["other"]["sha256"]
    assert records["one"]["fingerprint"] != records["two"]["fingerprint"]


def test_a_shared_file_is_replaced_and_never_changed(experiment):
    """An entry that gets other tensors leaves those of the entry that it shared a file with."""
    entries = {"one": {}, "two": {}}
    first, second = (experiment("weights", name, "frozen", **entries).outputs["tensors"] for name in entries)
    assert first.samefile(second)
    before = first.read_bytes()
    experiment("weights", "two", "frozen", one={}, two={"weights": {"kind": "random", "seed": 9}})
    assert first.read_bytes() == before
    assert not first.samefile(second)
    experiment("weights", "two", "frozen", **entries)
    assert first.samefile(second)


def test_a_damaged_file_is_not_shared(experiment):
    entries = {"one": {}, "two": {}}
    first = experiment("weights", "one", "frozen", **entries).outputs["tensors"]
    content = bytearray(first.read_bytes())
    content[-5] ^= 1
    first.write_bytes(content)
    second = experiment("weights", "two", "frozen", **entries).outputs["tensors"]
    assert not first.samefile(second)
    read(second)
    with pytest.raises(UserError, match="their checksum is wrong"):
        read(first)


def test_tensors_beside_the_record_of_others_are_refused(experiment):
    entries = {"one": {}, "other": {"weights": {"kind": "random", "seed": 9}}}
    one, other = (experiment("weights", name, "frozen", **entries) for name in entries)
    one.outputs["tensors"].write_bytes(other.outputs["tensors"].read_bytes())
    with pytest.raises(UserError, match=r"its tensors are not those of data/weights/one/frozen\.json"):
        expect(one.outputs["tensors"], one.fingerprint)
    one.outputs["record"].unlink()
    with pytest.raises(UserError, match=r"frozen\.json: no such file"):
        expect(one.outputs["tensors"], one.fingerprint)


def test_a_file_system_without_hard_links(experiment, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("semcorr.networks.backbones.os.link", refused)
    entries = {"one": {}, "two": {}}
    first, second = (experiment("weights", name, "frozen", **entries).outputs["tensors"] for name in entries)
    assert not first.samefile(second)
    assert first.read_bytes() == second.read_bytes()
    assert torch.equal(*(read(file)["cls_token"] for file in (first, second)))
    assert {path.name for path in Path("data/weights/two").iterdir()} == {"frozen.json", "frozen.safetensors"}
