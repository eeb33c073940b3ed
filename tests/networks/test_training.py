"""Losses against numpy, what an epoch sees, and training runs in one process: stopped, resumed, continued, spoilt."""

import json
import logging
import os
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FORKS, a_pair, run_stages
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from semcorr import cli, params
from semcorr.artifacts.files import sha256, write_json
from semcorr.artifacts.provenance import read
from semcorr.datasets.base import Pair
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.matching import match_pairs
from semcorr.networks import trainer, training
from semcorr.networks.backbones import build, digest, load, save
from semcorr.networks.backbones.weights import read_checkpoint
from semcorr.networks.losses import contrastive, cosine, end_point, gaussian_ce, l2
from semcorr.readouts.argmax import argmax

LOSSES = {
    "gaussian_ce": {"name": "gaussian_ce", "temperature": 0.05, "sigma_cells": 1.0},
    "contrastive": {"name": "contrastive", "temperature": 0.07, "negatives": 8},
    "contrastive, all": {"name": "contrastive", "temperature": 0.07, "negatives": "all"},
    "cosine": {"name": "cosine"},
    "l2": {"name": "l2"},
}


def _tuning(smoke, **changes) -> params.Tuning:
    return params.Tuning.model_validate(smoke["tunings"]["last1"] | changes)


def _case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit descriptors (N, C), a unit target map (h, w, C), and cells (N, 2) inside it."""
    rng = np.random.default_rng(seed)
    count, height, width, channels = rng.integers(1, 5), rng.integers(4, 8), rng.integers(4, 8), 6
    unit = lambda values: values / np.linalg.norm(values, axis=-1, keepdims=True)  # noqa: E731
    cells = rng.uniform(0, 1, (count, 2)) * (width - 1, height - 1)
    return unit(rng.normal(size=(count, channels))), unit(rng.normal(size=(height, width, channels))), cells


def _bilinear(target: np.ndarray, x: float, y: float) -> np.ndarray:
    """A unit descriptor between the cells of a map."""
    x0, y0 = min(int(x), target.shape[1] - 2), min(int(y), target.shape[0] - 2)
    fx, fy = x - x0, y - y0
    value = (1 - fy) * ((1 - fx) * target[y0, x0] + fx * target[y0, x0 + 1])
    value = value + fy * ((1 - fx) * target[y0 + 1, x0] + fx * target[y0 + 1, x0 + 1])
    return value / np.linalg.norm(value)


@given(st.integers(0, 2**31 - 1))
def test_losses_against_numpy(seed):
    """Each from its definition, keypoint by keypoint and cell by cell."""
    descriptors, target, cells = _case(seed)
    height, width = target.shape[:2]
    maps = np.einsum("nc,hwc->nhw", descriptors, target)
    arrays = {"maps": maps, "descriptors": descriptors, "target": target, "cells": cells}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = {
        "gaussian_ce": gaussian_ce.gaussian_ce(**tensors, temperature=0.05, sigma_cells=1.2),
        "cosine": cosine.cosine(**tensors),
        "l2": l2.l2(**tensors),
        "contrastive": contrastive.contrastive(
            **tensors, generator=torch.Generator(), temperature=0.07, negatives="all"
        ),
        "end_point": end_point.end_point(**tensors, temperature=0.05),
    }
    for index, (x, y) in enumerate(cells):
        likely = np.exp(maps[index] / 0.05 - np.log(np.exp(maps[index] / 0.05).sum()))
        weight = np.array(
            [[np.exp(-((j - x) ** 2 + (i - y) ** 2) / 2.88) for j in range(width)] for i in range(height)]
        )
        true = _bilinear(target, x, y)
        positive = descriptors[index] @ true
        far = [maps[index, i, j] for i in range(height) for j in range(width) if abs(j - x) > 1 or abs(i - y) > 1]
        where = [sum(likely[i, j] * (j, i)[axis] for i in range(height) for j in range(width)) for axis in (0, 1)]
        expected = {
            "gaussian_ce": -(weight / weight.sum() * np.log(likely)).sum(),
            "cosine": 1 - positive,
            "l2": ((descriptors[index] - true) ** 2).sum(),
            "contrastive": -np.log(np.exp(positive / 0.07) / np.exp(np.array([positive, *far]) / 0.07).sum()),
            "end_point": np.hypot(where[0] - x, where[1] - y) / max(height, width),
        }
        for name, value in expected.items():
            assert found[name][index].item() == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_negatives_are_drawn_from_their_seed_and_never_near():
    """With far cells all alike, any draw gives one value; with a near one tempting, none takes it."""
    descriptors, target, cells = (torch.from_numpy(one) for one in _case(0))
    cells = torch.full_like(cells, 2.0)
    maps = torch.full((len(cells), 6, 6), 0.1, dtype=torch.float64)
    maps[:, 1:4, 1:4] = 100.0
    values = [
        contrastive.contrastive(
            maps=maps,
            descriptors=descriptors,
            target=target,
            cells=cells,
            generator=torch.Generator().manual_seed(seed),
            temperature=0.07,
            negatives=64,
        )
        for seed in (1, 1, 2)
    ]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    assert (values[0] < 20).all()
    assert not torch.equal(values[0], values[2])  # how many of the 64 were near differs


class _TwoMaps(torch.nn.Module):
    """Feature maps as free parameters: what any network could at best be."""

    def __init__(self, ids, grid):
        super().__init__()
        shape = (*grid.shape, 16)
        self.maps = torch.nn.ParameterDict({id_: torch.nn.Parameter(torch.randn(shape)) for id_ in ids})
        self.grid = grid


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("end_point", [None, {"weight": 1.0, "temperature": 0.05}])
def test_each_loss_overfits_two_pairs(smoke, name, end_point):
    """PCK@0.05 of the pairs it is trained on becomes 1."""
    torch.manual_seed(0)
    tuning = _tuning(smoke, loss=LOSSES[name], end_point=end_point)
    grid = Grid(image_size=(140, 168), resized_size=(140, 168), stride=14)
    rng = np.random.default_rng(1)
    cells = np.array([(x, y) for x in range(0, 12, 2) for y in range(0, 10, 2)])
    points = {id_: (rng.permutation(cells)[:6] * 14 + 6.5).tolist() for id_ in "ab"}
    pairs = [
        a_pair(points[source], points[target], id=source + target, source=source, target=target)
        for source, target in permutations("ab")
    ]
    model = _TwoMaps("ab", grid)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(200):
        batch = training.Batch(ids=["a", "b"], pairs=pairs, seed=step)
        maps = {id_: (tensor, grid) for id_, tensor in model.maps.items()}
        value = training.loss(maps, batch, tuning)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        asked = [(pair.source, pair.target, pair.points("source")) for pair in pairs]
        answers = match_pairs(asked, lambda id_: (model.maps[id_], grid), trainer.VALIDATION_SAMPLING, argmax)
    for pair, (predicted, _) in zip(pairs, answers, strict=True):
        assert (np.hypot(*(predicted - pair.target_keypoints).T) <= 0.05 * 168).all()


def _pairs(categories: int, images: int) -> list[Pair]:
    return [
        Pair(
            id=f"{c}{a}{b}",
            category=f"c{c}",
            source=f"c{c}/{a}",
            target=f"c{c}/{b}",
            keypoint_ids=["0"],
            source_keypoints=[[1.0, 1.0]],
            target_keypoints=[[1.0, 1.0]],
        )
        for c in range(categories)
        for a, b in permutations(range(images), 2)
    ]


@given(st.integers(1, 3), st.integers(2, 7), st.integers(2, 5), st.integers(1, 4), st.integers(0, 9))
def test_an_epoch_of_image_batches_sees_every_image_once(smoke, categories, images, size, accumulate, epoch):
    tuning = _tuning(smoke, batches={"by": "images", "images": size}, accumulate=accumulate)
    batches = training.Batches(_pairs(categories, images), tuning)
    updates = batches.updates(epoch)
    seen = [id_ for update in updates for batch in update for id_ in batch.ids]
    assert len(seen) == len(set(seen))
    assert len(seen) >= categories * images - categories  # a lone image of a category has no pair
    for update in updates:
        assert len(update) <= accumulate
        for batch in update:
            among = {(a, b) for a, b in permutations(batch.ids, 2)}
            assert {(pair.source, pair.target) for pair in batch.pairs} == among
            assert len({id_.split("/")[0] for id_ in batch.ids}) == 1
    assert updates == training.Batches(_pairs(categories, images), tuning).updates(epoch)


@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 5), st.integers(0, 9))
def test_an_epoch_of_pair_batches_sees_every_pair_once(smoke, categories, images, size, epoch):
    pairs = _pairs(categories, images)
    tuning = _tuning(smoke, batches={"by": "pairs", "pairs": size})
    updates = training.Batches(pairs, tuning).updates(epoch)
    assert sorted(pair.id for update in updates for batch in update for pair in batch.pairs) == sorted(
        pair.id for pair in pairs
    )
    batches = training.Batches(pairs, tuning)
    assert f"sees {len(pairs)} of {len(pairs)} pairs" in batches.describe()


def test_the_schedule_ends_with_the_training(smoke):
    """Few annotated pairs: some groups of images have none, so epochs differ; the count is of what really comes."""
    pairs = [pair for pair in _pairs(4, 6) if {pair.source[-1], pair.target[-1]} == {"0", "1"}]
    tuning = _tuning(smoke, batches={"by": "images", "images": 2}, epochs=7)
    pairs += [pair for pair in _pairs(4, 6) if {pair.source[-1], pair.target[-1]} <= {"2", "3", "4"}]
    batches = training.Batches(pairs, tuning)
    counts = [len(batches.updates(epoch)) for epoch in range(1, 8)]
    assert len(set(counts)) > 1
    assert batches.count() == sum(counts)


def test_mirrored_images_keep_their_pairs(smoke):
    """A marked pixel is where its keypoint says, mirrored or not, and all images of a batch are mirrored or none."""
    augment = params.Augment(flip=True, photometric=0.3)
    network = build(params.validate(smoke, "smoke").backbones["dinov2_tiny"])
    mirrored = set()
    for seed in range(8):
        for width, x in ((31, 4), (40, 39)):
            point = [[float(x), 7.0]]
            pair = a_pair(point, point)
            grid = Grid(image_size=(20, width), resized_size=(20, width), stride=4)
            change = training.Augmentation(augment, seed)
            mirrored.add(change.mirrored)
            pixels = np.zeros((20, width, 3), np.uint8)
            pixels[7, x] = 255
            shown = torch.from_numpy(np.asarray(change.image(PillowImage.fromarray(pixels))).sum(axis=2))
            shown = network.mirrored(shown, grid).numpy() if change.mirrored else shown.numpy()
            row, column = np.unravel_index(shown.argmax(), shown.shape)
            moved = change.pair(pair, {"a": grid, "b": grid})
            assert moved.source_keypoints == moved.target_keypoints == [[column, row]]
    assert mirrored == {True, False}


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny", "sam_tiny"])
def test_low_rank_additions(smoke, name):
    """Nothing changes before a step; after one, the exported weights alone give the tuned network's features."""
    spec = params.validate(smoke, "smoke").backbones[name]
    tuning = _tuning(smoke, lora={"rank": 2, "alpha": 4.0, "targets": ["qkv", "proj"]}, blocks=2)
    torch.manual_seed(0)
    network = build(spec)
    original = {key: tensor.clone() for key, tensor in network.net.state_dict().items()}
    side = 128 if spec.family == "sam" else 4 * network.stride
    images = torch.randn(1, 3, side, side)
    before = network.features(images, spec)
    direction = torch.randn(before.shape)
    tuned = training.Tuned(network, spec, tuning)
    torch.testing.assert_close(network.features(images, spec), before, rtol=0, atol=0)
    assert sum(tensor.numel() for tensor in tuned.tensors.values()) < 0.2 * sum(t.numel() for t in original.values())
    optimizer = torch.optim.SGD(tuned.tensors.values(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (network.features(images, spec) * direction).sum().backward()
        torch.nn.utils.clip_grad_norm_(tuned.tensors.values(), 1.0)
        optimizer.step()
    exported = tuned.export()
    blocks = {key.split(".")[1] for key in exported}
    stop = network.stop(spec)
    assert blocks == {str(stop - 1), str(stop - 2)}
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in exported} == {"qkv", "proj"}
    plain = build(spec)
    plain.net.load_state_dict(original | exported)
    after = network.features(images, spec)
    torch.testing.assert_close(plain.features(images, spec), after, rtol=1e-5, atol=1e-5 * after.abs().max().item())
    assert not torch.allclose(after, before, atol=1e-3 * before.abs().max().item())
    for key, tensor in exported.items():
        assert torch.linalg.matrix_rank((tensor - original[key]).double(), rtol=1e-4) <= 2
    with pytest.raises(UserError, match="no tuned block has a layer nothing"):
        training.Tuned(build(spec), spec, _tuning(smoke, lora={"rank": 2, "alpha": 4.0, "targets": ["nothing"]}))


def test_recomputed_activations_give_the_same_gradients(smoke):
    for name in ("dinov2_tiny", "dinov3_tiny", "sam_tiny"):
        spec = params.validate(smoke, "smoke").backbones[name]
        torch.manual_seed(0)
        network = build(spec)
        side = 128 if spec.family == "sam" else 4 * network.stride
        images = torch.randn(1, 3, side, side)
        training.Tuned(network, spec, _tuning(smoke))
        gradients = []
        for network.checkpointing in (False, True):
            network.zero_grad()
            (network.features(images, spec) * torch.linspace(-1, 1, images.shape[3] // network.stride)).sum().backward()
            gradients.append({key: t.grad.clone() for key, t in network.named_parameters() if t.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for key, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][key], gradient)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1, 1, 1]), ("cosine", [0.5, 1, 0.5, 0.0]), ("step", [0.5, 1, 1, 0.01])],
)
def test_learning_rates(smoke, schedule, expected):
    tuning = _tuning(smoke, schedule=schedule, warmup=0.1)
    rates = [training.learning_rate(step, 100, tuning) for step in (5, 10, 55, 100)]
    np.testing.assert_allclose(rates, expected, atol=0.06)
    assert training.learning_rate(0, 100, tuning) > 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, smoke):
    """All that finetune reads, for the smallest network, in a folder to be copied."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stages(_values(smoke), "fetch", "weights", "trunk")
    return folder


def _values(smoke) -> dict:
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]
    return values


@pytest.fixture
def run(prepared, tmp_path, monkeypatch, smoke):
    """A function that trains in a fresh folder, or goes on in it, and returns the job."""
    folder = tmp_path / "experiment"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)

    def train(**changes) -> graph.Job:
        values = _values(smoke)
        runtime = changes.pop("runtime", {})
        values["runtime"] |= runtime
        values["tunings"]["last1"] |= changes
        write_json(folder / "params.yaml", values)
        cli.run_stage(cli.parser().parse_args(["finetune", "dinov2_tiny", "last1"]))
        return graph.Graph(params.load()).job("finetune", "dinov2_tiny", "last1")

    return train


def _outputs(job: graph.Job) -> list[bytes]:
    return [path.read_bytes() for path in job.outputs.values()]


VARIANTS = {
    "plain": {},
    "average, several batches a step, pairs": {"ema": 0.9, "accumulate": 2, "batches": {"by": "pairs", "pairs": 4}},
    "low rank, random negatives": {
        "lora": {"rank": 2, "alpha": 4.0, "targets": ["qkv"]},
        "loss": LOSSES["contrastive"],
    },
    "augmented": {"augment": {"flip": True, "photometric": 0.2}},
    "head, narrowing target": {
        "head": {"upsample": 2, "channels": 8, "learning_rate": 3.0},
        "loss": LOSSES["gaussian_ce"] | {"sigma_cells": {"from": 3.0, "to": 0.7}},
        "ema": 0.9,
    },
    "keeping what was known": {
        "keep": {
            "anchor": 1.0,
            "average": 0.5,
            "distil": {"weight": 0.5, "after": 0.3, "pairs": 2, "points": 16, "confidence": -1},
        },
        "head": {"upsample": 2, "channels": 8},
        "ema": 0.9,
    },
}


class Stop(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_run_ends_with_the_same_bytes(run, monkeypatch, name):
    """Stopped after some step, with last.pt from an earlier one, and run again."""
    changes = VARIANTS[name] | {"epochs": 3}
    whole = _outputs(run(**changes))
    last = Path("checkpoints/dinov2_tiny/last1/last.pt")
    assert _outputs(run(**changes)) == whole  # one that has ended is written again
    update = trainer.Trainer._update
    calls: list[int] = []
    moment = 0

    def stopping(self, *arguments):
        if len(calls) == moment:
            raise Stop
        calls.append(1)
        value = update(self, *arguments)
        if len(calls) == moment - 2:
            self.state["update"] += 1  # as after the step
            self._save()
            self.state["update"] -= 1
        return value

    def counting(self, *arguments):
        calls.append(1)
        return update(self, *arguments)

    total = len(pd.read_csv("checkpoints/dinov2_tiny/last1/steps.csv"))
    for moment in (4, total - 2):  # noqa: B007  # `stopping` reads it
        last.unlink()
        calls.clear()
        monkeypatch.setattr(trainer.Trainer, "_update", stopping)
        with pytest.raises(Stop):
            run(**changes)
        assert last.exists()
        calls.clear()
        monkeypatch.setattr(trainer.Trainer, "_update", counting)
        assert _outputs(run(**changes)) == whole
        assert 0 < len(calls) < total


def _finetune(folder: str) -> None:
    os.chdir(folder)
    trainer.SAVE_EVERY = 0  # after every step
    cli.run_stage(cli.parser().parse_args(["finetune", "dinov2_tiny", "last1"]))


def test_training_survives_being_killed(run):
    """SIGKILL at three random moments of one run; it ends with the bytes of an uninterrupted one."""
    job = run(epochs=6)
    whole = _outputs(job)
    folder, last = Path.cwd(), Path("checkpoints/dinov2_tiny/last1/last.pt")
    last.unlink()
    for path in job.outputs.values():
        path.unlink()
    rng = np.random.default_rng(0)
    for _ in range(3):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = FORKS.Process(target=_finetune, args=[str(folder)])
        process.start()
        while process.is_alive() and (last.stat().st_mtime_ns if last.exists() else 0) == before:
            process.join(0.002)
        process.join(rng.uniform(0, 0.05))
        process.kill()
        process.join()
    _finetune(str(folder))
    assert _outputs(job) == whole


ENDED = {
    "all epochs": {"epochs": 3, "ema": 0.9},
    "patience": {"epochs": 9, "learning_rate": 1.0e-12, "patience": 2},
}


@pytest.mark.parametrize("name", ENDED)
def test_a_run_that_was_stopped_at_its_end_is_not_trained_again(run, monkeypatch, name):
    """The last save was made, and then the disk was full, or the process was killed: the next run just writes."""
    job = run(**ENDED[name])
    whole = _outputs(job)
    for path in job.outputs.values():
        path.unlink()

    def training(*_):
        raise AssertionError("it trains again")

    monkeypatch.setattr(trainer.Trainer, "_update", training)
    monkeypatch.setattr(trainer.Trainer, "_score", training)
    assert _outputs(run(**ENDED[name])) == whole


def test_the_last_checkpoint_of_another_run_is_not_used(run, caplog):
    caplog.set_level(logging.INFO)
    whole = _outputs(run(epochs=1))
    assert "epoch 1 of 1: loss " in caplog.text  # the scores of a run are told while it runs
    for changes, message in (
        ({"epochs": 1, "learning_rate": 0.5}, "not resumed, since it belongs to a different run (tunings.last1)"),
        ({"epochs": 1}, "not resumed, since it belongs to a different run (tunings.last1)"),
    ):
        job = run(**changes)
        assert message in caplog.text
        caplog.clear()
    assert _outputs(job) == whole
    last = job.outputs["tensors"].with_name("last.pt")
    last.write_bytes(last.read_bytes()[:1000])
    assert _outputs(run(epochs=1)) == whole
    assert "last.pt: not resumed, since it cannot be read" in caplog.text


def test_continuing_from_another_tunings_tensors(run):
    first = run(epochs=2)
    start = first.outputs["tensors"].rename("start.safetensors")
    source = {"path": str(start), "sha256": sha256(start)}
    second = run(epochs=1, start=source, learning_rate=1.0e-9)
    one, other = read_checkpoint(start), read_checkpoint(second.outputs["tensors"])
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)
    curves = [pd.read_csv(job.outputs["curve"]) for job in (first, second)]
    assert second.settings["tunings.last1"]["start"] == source
    low_rank = {"rank": 1, "alpha": 1.0, "targets": ["qkv"]}
    third = read_checkpoint(run(epochs=1, start=source, learning_rate=1.0e-9, lora=low_rank).outputs["tensors"])
    assert third.keys() == one.keys()  # what it did not tune itself, it passes on
    for name, tensor in one.items():
        torch.testing.assert_close(third[name], tensor, rtol=0, atol=1e-6)
    deep = {"blocks.0.norm1.weight": read_checkpoint(first.inputs["tensors"])["blocks.0.norm1.weight"]}
    save(Path("deep.safetensors"), deep, read(first.outputs["tensors"]))
    with pytest.raises(UserError, match=r"blocks\.0\.norm1\.weight lies below the cached trunk\. Raise trunk\.blocks"):
        run(epochs=1, start={"path": "deep.safetensors", "sha256": sha256(Path("deep.safetensors"))})
    assert len(curves[1]) == 2
    with pytest.raises(UserError, match=r"start\.safetensors: its sha256 is .* tunings\.last1\.start expects 000"):
        run(epochs=1, start=source | {"sha256": "0" * 64})
    with pytest.raises(UserError, match=r"nowhere: no such checkpoint"):
        run(epochs=1, start=source | {"path": "nowhere"})
    save(
        Path("foreign.safetensors"),
        one,
        {"fingerprint": "", "inputs": {"tensors": {"sha256": "x", "origin": "elsewhere"}}},
    )
    with pytest.raises(UserError, match=r"foreign\.safetensors: was tuned from other tensors \(elsewhere\)"):
        run(epochs=1, start={"path": "foreign.safetensors", "sha256": sha256(Path("foreign.safetensors"))})


def test_start_is_found_from_an_experiment_in_a_temporary_folder(run, monkeypatch):
    """`dvc exp` runs queued experiments below .dvc/tmp/exps, where nothing is that git does not hold."""
    first = run(epochs=1)
    start = first.outputs["tensors"].rename("start.safetensors")
    source = {"path": start.name, "sha256": sha256(start)}
    expected = _outputs(run(epochs=1, start=source))
    project = Path.cwd()
    queued = project / ".dvc/tmp/exps/standalone/tmp123"
    queued.mkdir(parents=True)
    for name in ("data", "features", "params.yaml"):
        (shutil.copytree if (project / name).is_dir() else shutil.copy)(project / name, queued / name)
    monkeypatch.chdir(queued)
    cli.run_stage(cli.parser().parse_args(["finetune", "dinov2_tiny", "last1"]))
    assert _outputs(graph.Graph(params.load()).job("finetune", "dinov2_tiny", "last1")) == expected


def test_the_average_of_trained_and_frozen_weights(run):
    """A fifth of the way from the frozen tensors to those that the same run reaches; the head is as trained."""
    common = {"epochs": 2, "validation": {"every": 2, "pairs": None}, "head": {"upsample": 2, "channels": 8}}
    whole = read_checkpoint(run(**common).outputs["tensors"])
    job = run(**common, keep={"anchor": None, "average": 0.2, "distil": None})
    part, frozen = read_checkpoint(job.outputs["tensors"]), read_checkpoint(job.inputs["tensors"])
    assert part.keys() == whole.keys()
    for name, tensor in whole.items():
        expected = tensor if name.startswith("upsampler.") else frozen[name] + 0.2 * (tensor - frozen[name])
        torch.testing.assert_close(part[name], expected, rtol=1e-5, atol=1e-7)
        assert name.startswith("upsampler.") or not torch.allclose(tensor, frozen[name], rtol=1e-4, atol=1e-6)


def test_a_pull_towards_the_frozen_features(run, smoke):
    """The stronger it is, the less the features turn; one of next to nothing changes nothing to speak of."""
    spec = params.validate(smoke, "smoke").backbones["dinov2_tiny"]
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    turned, losses = [], []
    for weight in (None, 1e-6, 30.0):
        keep = {"anchor": weight, "average": None, "distil": None}
        job = run(epochs=3, learning_rate=0.01, keep=keep)
        frozen, tuned = job.inputs["tensors"], job.outputs["tensors"]
        with torch.inference_mode():
            before, after = (load(build(spec), *paths).features(images, spec) for paths in ([frozen], [frozen, tuned]))
        turned.append(1 - torch.cosine_similarity(before, after, dim=1).mean().item())
        losses.append(pd.read_csv(job.outputs["steps"])["loss"].to_numpy())
    assert turned[1] == pytest.approx(turned[0], rel=5e-2)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    assert losses[2][0] == pytest.approx(losses[0][0], rel=1e-5)  # nothing has turned yet
    assert turned[2] < 0.7 * turned[0]


def test_distillation_begins_when_it_should(run):
    """With no match sure enough, or before its time, the losses are those without it."""
    losses = {}
    for name, changes in {
        "without": None,
        "late": {"after": 0.99},
        "sure of none": {"after": 0, "confidence": 1},
        "halfway": {"after": 0.5, "confidence": -1},
    }.items():
        distil = changes and {"weight": 1.0, "after": 0.5, "pairs": 4, "points": 64, "confidence": -1} | changes
        keep = {"anchor": None, "average": None, "distil": distil}
        losses[name] = pd.read_csv(run(epochs=3, ema=0.5, keep=keep).outputs["steps"])["loss"].to_numpy()
    count = len(losses["without"])
    assert losses["sure of none"].tolist() == losses["without"].tolist()
    assert losses["late"][: count - 1].tolist() == losses["without"][: count - 1].tolist()
    same = losses["halfway"] == losses["without"]
    assert same[: count // 2].all()
    assert not same[count // 2 + 1 :].any()


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_the_loss_is_computed_in_float32(run, monkeypatch, smoke, compute):
    """Whatever the network computes in: the loss of its maps is that of float32, which inside autocast it is not."""
    seen = []

    def watched(*arguments):
        value = training.loss(*arguments)
        seen.append((arguments, value.item()))
        return value

    monkeypatch.setattr(trainer, "loss", watched)
    values = _values(smoke)
    values["backbones"]["dinov2_tiny"]["compute"] = compute
    write_json(Path("params.yaml"), values)
    for dataset in ("toy_spair_trn", "toy_spair_val"):
        cli.run_stage(cli.parser().parse_args(["trunk", "dinov2_tiny", dataset]))
    cli.run_stage(cli.parser().parse_args(["finetune", "dinov2_tiny", "last1"]))
    arguments, value = seen[0]
    maps = {image_id: (features.detach(), grid) for image_id, (features, grid) in arguments[0].items()}
    exact = training.loss({key: (one.double(), grid) for key, (one, grid) in maps.items()}, *arguments[1:]).item()
    with torch.autocast("cpu", dtype=getattr(torch, compute)):
        inside = training.loss(maps, *arguments[1:]).item()
    assert value == pytest.approx(exact, rel=1e-5)
    assert inside != pytest.approx(exact, rel=1e-5)


def test_a_gradient_that_is_no_number_stops_the_run(run, monkeypatch):
    """Finite losses, and a gradient that is not: clipped by its norm it would make every tensor NaN."""
    real, calls = trainer.loss, []

    def steep(*arguments):
        value = real(*arguments)
        calls.append(1)
        return value + (value * 0).sqrt() if len(calls) == 5 else value  # finite, its slope is not

    monkeypatch.setattr(trainer, "loss", steep)
    with pytest.raises(UserError, match=r"the gradient's norm is nan at step 5"):
        run(epochs=3)


def test_a_loss_that_is_no_number_stops_the_run(run, monkeypatch):
    """It says the step, and last.pt keeps what was reached before."""
    real, calls = trainer.loss, []

    def failing(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 12 else 1.0)

    monkeypatch.setattr(trainer, "loss", failing)
    with pytest.raises(UserError, match=r"the loss is nan at step 12 \(epoch 2\).*last\.pt keeps what was reached"):
        run(epochs=3)
    kept = torch.load("checkpoints/dinov2_tiny/last1/last.pt", weights_only=True)
    assert kept["state"]["step"] < 12
    assert all(torch.isfinite(tensor).all() for tensor in kept["state"]["best"].values())
    assert not Path("checkpoints/dinov2_tiny/last1/best.safetensors").exists()


def test_a_full_disk_leaves_the_checkpoint_before(run, monkeypatch):
    job = run(epochs=1)
    last = job.outputs["tensors"].with_name("last.pt")
    before = last.read_bytes()
    whole = _outputs(job)

    def full(_, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last\.pt: cannot be written: the disk is full"):
        run(epochs=2)
    assert last.read_bytes() == before
    assert _outputs(job) == whole
    assert not list(last.parent.glob(".*partial"))


def test_nothing_to_train_on(run, smoke):
    from semcorr.artifacts.provenance import read
    from semcorr.datasets.base import PAIR_SCHEMA, read_pairs, write_index

    job = run(epochs=1)
    path = job.inputs["train_pairs"]
    record, pairs = read(path), read_pairs(path)
    write_index(path, [], PAIR_SCHEMA, record)
    with pytest.raises(UserError, match="the training set has no pair with a keypoint"):
        run(epochs=2)
    write_index(path, pairs, PAIR_SCHEMA, record)
    path = job.inputs["validate_pairs"]
    write_index(path, [], PAIR_SCHEMA, read(path))
    with pytest.raises(UserError, match="the validation set has no pair with a keypoint"):
        run(epochs=2)
    values = _values(smoke)
    values["tunings"]["last1"]["blocks"] = 9
    with pytest.raises(UserError, match=r"tunings\.last1\.blocks: 9 is more than trunk\.blocks"):
        params.validate(values, "x")
    values["trunk"]["blocks"] = 9
    with pytest.raises(
        UserError, match=r"trunk\.blocks: 9 is more than the 3 blocks up to backbones\.dinov2_tiny\.layer"
    ):
        params.validate(values, "x")


def test_patience_and_a_part_of_the_validation_set(run):
    job = run(epochs=9, learning_rate=1.0e-12, patience=2, validation={"every": 1, "pairs": 3})
    curve = pd.read_csv(job.outputs["curve"])
    assert curve["epoch"].tolist() == [0, 1, 2, 3]  # the first is the best, two are no better
    assert curve["pck"].nunique() == 1
    sparse = pd.read_csv(run(epochs=5, validation={"every": 2, "pairs": None}).outputs["curve"])
    assert sparse["epoch"].tolist() == [0, 2, 4, 5]


def test_two_processes_train_what_one_does(run):
    """Two batches a step, both in one process or one in each (gloo): the same up to rounding."""
    alone = run(epochs=2, accumulate=2)
    one, curve = read_checkpoint(alone.outputs["tensors"]), pd.read_csv(alone.outputs["steps"])
    for path in (*alone.outputs.values(), alone.outputs["tensors"].with_name("last.pt")):
        path.unlink()
    together = run(epochs=2, accumulate=2, runtime={"processes": 2})
    other = read_checkpoint(together.outputs["tensors"])
    assert together.fingerprint == alone.fingerprint
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(pd.read_csv(together.outputs["steps"])["loss"], curve["loss"], rtol=1e-4)
    with pytest.raises(UserError, match=r"2 processes cannot share tunings\.last1\.accumulate \(1\) evenly"):
        run(epochs=2, runtime={"processes": 2})


def test_the_checkpoint_holds_what_was_tuned_and_no_more(run):
    job = run(epochs=1)
    names = read_checkpoint(job.outputs["tensors"]).keys()
    assert all(name.startswith(("blocks.2.", "norm.")) for name in names)
    frozen = read_checkpoint(job.inputs["tensors"])
    assert names < frozen.keys()
    assert digest({name: frozen[name] for name in names}) != digest(read_checkpoint(job.outputs["tensors"]))


def test_one_keypoint_at_the_edge_trains(smoke):
    """A map of one row, a keypoint outside the outermost centres: finite losses and gradients."""
    grid = Grid(image_size=(10, 100), resized_size=(10, 100), stride=14)
    pair = a_pair([[0.0, 0.0]], [[99.0, 9.0]])
    for name, values in LOSSES.items():
        maps = {id_: (torch.randn(*grid.shape, 5, requires_grad=True), grid) for id_ in "ab"}
        batch = training.Batch(ids=["a", "b"], pairs=[pair], seed=0)
        end_point = {"weight": 1.0, "temperature": 0.05}
        value = training.loss(maps, batch, _tuning(smoke, loss=values, end_point=end_point))
        value.backward()
        assert torch.isfinite(value), name
        assert all(torch.isfinite(tensor.grad).all() for tensor, _ in maps.values()), name
