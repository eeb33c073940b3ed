"""Stages in one process, on the smoke experiment in a folder of its own."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fork, run_forked
from PIL import Image, ImageOps

from semcorr import cli, params
from semcorr.artifacts import store
from semcorr.artifacts.files import write_json
from semcorr.datasets import toy
from semcorr.engine import graph
from semcorr.errors import UserError


@pytest.fixture
def experiment(tmp_path, monkeypatch, smoke):
    """A function that runs one stage under params.yaml, after changes to the smoke preset, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    values = json.loads(json.dumps(smoke))
    values["grid"]["backbones"] = ["dinov2_tiny"]

    def run(stage: str, *cell: str, **changes) -> str:
        write_json(tmp_path / "params.yaml", values | changes)  # JSON is YAML
        return cli.run_stage(cli.parser().parse_args([stage, *cell]))

    return run


def _job(stage: str, *cell: str) -> graph.Job:
    return graph.Graph(params.load()).job(stage, *cell)


def _until_store(experiment, **changes) -> bytes:
    experiment("fetch", "toy_willow", **changes)
    experiment("weights", "dinov2_tiny", "frozen", **changes)
    experiment("extract", "dinov2_tiny", "frozen", "toy_willow", **changes)
    return _job("extract", "dinov2_tiny", "frozen", "toy_willow").outputs["store"].read_bytes()


def test_extract_gives_the_same_bytes_and_does_not_depend_on_batches(experiment, smoke):
    first = _until_store(experiment)
    assert _until_store(experiment) == first
    with_workers = smoke["runtime"] | {"workers": 2}
    assert _until_store(experiment, runtime=with_workers) == first
    job = _job("extract", "dinov2_tiny", "frozen", "toy_willow")
    with store.Store(job.outputs["store"], job.fingerprint) as opened:
        before = {image_id: opened.array(image_id) for image_id in opened.ids()}
    _until_store(experiment, runtime=smoke["runtime"] | {"batch_size": 1})
    with store.Store(job.outputs["store"], job.fingerprint) as opened:
        for image_id, array in before.items():
            # Identical on the processors seen so far; float16 keeps 11 bits, and another batch size may round the last.
            np.testing.assert_allclose(opened.array(image_id), array, rtol=2e-3, atol=2e-3)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_extract_survives_being_killed(experiment, smoke, tmp_path):
    """SIGKILL at ten random moments; what then ends has the bytes of an uninterrupted run."""
    datasets = json.loads(json.dumps(smoke["datasets"]))
    datasets["toy_willow"]["sources"][0]["images"] = {"all": 12}
    changes = {"datasets": datasets, "runtime": smoke["runtime"] | {"batch_size": 1}}
    whole = _until_store(experiment, **changes)
    path = tmp_path / "features/dinov2_tiny/frozen/toy_willow.h5"
    path.unlink()
    words = ("extract", "dinov2_tiny", "frozen", "toy_willow")
    rng, journal, reached = random.Random(0), path.with_name(".toy_willow.h5.done"), set()
    for _ in range(10):
        process = fork(tmp_path, *words)
        before = _length(journal)
        while process.is_alive() and _length(journal) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        if path.exists():  # it was done before the moment came
            assert path.read_bytes() == whole
            path.unlink()
        reached.add(_length(journal))
    assert len(reached) > 3, reached
    run_forked(tmp_path, *words)
    assert path.read_bytes() == whole
    assert [item.name for item in path.parent.iterdir() if not item.name.endswith(".lock")] == [path.name]


def test_what_was_begun_with_other_images_is_begun_anew(experiment, smoke, tmp_path, monkeypatch):
    """Extract stops half-way and an image is edited; then no array of the old ones is in the store."""
    datasets = json.loads(json.dumps(smoke["datasets"]))
    datasets["toy_willow"]["sources"] = [{"kind": "path", "path": "mine"}]
    toy.write_pfwillow(tmp_path / "mine", 1, {"all": 2})
    changes = {"datasets": datasets, "runtime": smoke["runtime"] | {"batch_size": 1}}
    words = ("extract", "dinov2_tiny", "frozen", "toy_willow")
    old = _until_store(experiment, **changes)
    add = store.Writer.add

    def stop(writer, *arguments):
        if len(writer.done) == 3:
            raise InterruptedError
        add(writer, *arguments)

    path = _job(*words).outputs["store"]
    path.unlink()
    monkeypatch.setattr(store.Writer, "add", stop)
    with pytest.raises(InterruptedError):
        experiment(*words, **changes)
    monkeypatch.setattr(store.Writer, "add", add)
    assert list(path.parent.glob(".*.partial"))
    for image in (tmp_path / "mine").rglob("*.png"):
        ImageOps.invert(Image.open(image).convert("RGB")).save(image)
    after_stop = _until_store(experiment, **changes)
    path.unlink()
    assert _until_store(experiment, **changes) == after_stop != old


def test_a_batch_too_large_for_the_gpu_is_halved(experiment, smoke, monkeypatch, caplog):
    """A network that holds one image at most, as a full GPU does, gives the same features."""
    first = _until_store(experiment)
    from semcorr.networks.backbones.plain import PlainTransformer as TimmVit

    features, sizes = TimmVit.features, []

    def full(self, images, spec):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return features(self, images, spec)

    monkeypatch.setattr(TimmVit, "features", full)
    assert _until_store(experiment) == first
    assert set(sizes) == {1}
    assert "the GPU's memory does not hold 2 images at once, continuing with 1" in caplog.text
    monkeypatch.setattr(TimmVit, "features", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(UserError, match="the GPU's memory does not hold one image"):
        _until_store(experiment)


def test_an_error_of_the_writing_thread_ends_the_stage(experiment, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Writer, "add", fail)
    with pytest.raises(UserError, match=r"toy_willow\.h5: cannot be written: the disk is full"):
        _until_store(experiment)


def test_an_image_changed_by_hand_is_refused(experiment):
    experiment("fetch", "toy_willow")
    experiment("weights", "dinov2_tiny", "frozen")
    image = next(_job("fetch", "toy_willow").outputs["folder"].rglob("*.png"))
    image.write_bytes(image.read_bytes() + b" ")
    with pytest.raises(UserError, match="changed since it was fetched"):
        experiment("extract", "dinov2_tiny", "frozen", "toy_willow")
    image.unlink()
    with pytest.raises(UserError, match="the image is missing"):
        experiment("extract", "dinov2_tiny", "frozen", "toy_willow")
    assert not _job("extract", "dinov2_tiny", "frozen", "toy_willow").outputs["store"].exists()


def test_inputs_made_under_other_parameters_are_refused(experiment, smoke):
    _until_store(experiment)
    experiment("match", "dinov2_tiny", "frozen", "toy_willow", "argmax")
    backbones = json.loads(json.dumps(smoke["backbones"]))
    backbones["dinov2_tiny"]["layer"] = 1
    with pytest.raises(UserError, match=r"toy_willow\.h5: made under other parameters than params\.yaml has now"):
        experiment("match", "dinov2_tiny", "frozen", "toy_willow", "argmax", backbones=backbones)


def test_scores_of_a_cell_against_its_matches(experiment):
    _until_store(experiment)
    experiment("match", "dinov2_tiny", "frozen", "toy_willow", "softargmax")
    experiment("evaluate", "dinov2_tiny", "frozen", "toy_willow", "softargmax")
    job = _job("evaluate", "dinov2_tiny", "frozen", "toy_willow", "softargmax")
    rows = pd.read_parquet(job.inputs["matches"])
    cell = json.loads(job.outputs["cell"].read_text())
    assert cell["num_keypoints"] == len(rows) == 80
    assert cell["num_pairs"] == 8
    hits = []
    for row in rows.itertuples():
        mates = rows[rows["pair"] == row.pair]
        length = max(np.ptp(mates["true_x"]), np.ptp(mates["true_y"]))
        hits.append(np.hypot(row.predicted_x - row.true_x, row.predicted_y - row.true_y) <= 0.1 * length)
    assert cell["overall_keypoint"]["PCK@0.10"]["mean"] == pytest.approx(np.mean(hits))
    assert list(cell["references"]) == ["bbox_kp", "image"]
    assert sum(group["num_keypoints"] for group in cell["per_category_keypoint"].values()) == 80
    chain = cell["provenance"]["inputs"]["matches"]["inputs"]["store"]
    assert chain["stage"] == "extract"
    assert chain["inputs"]["tensors"]["origin"] == "random, seed 1"


def test_finetune_learns_and_adapt_is_its_features(experiment, smoke):
    """Many epochs on a few images: the loss falls, and without tuning the tail gives the frozen features."""
    last1 = smoke["tunings"]["last1"] | {"epochs": 12, "learning_rate": 3.0e-3}
    changes = {"tunings": {"last1": last1}}
    for dataset in ("toy_spair_trn", "toy_spair_val", "toy_willow"):
        experiment("fetch", dataset, **changes)
    experiment("weights", "dinov2_tiny", "frozen", **changes)
    for dataset in ("toy_spair_trn", "toy_spair_val", "toy_willow"):
        experiment("trunk", "dinov2_tiny", dataset, **changes)
    experiment("finetune", "dinov2_tiny", "last1", **changes)
    job = _job("finetune", "dinov2_tiny", "last1")
    curve = pd.read_csv(job.outputs["curve"])
    assert curve["epoch"].tolist() == list(range(13))
    steps = pd.read_csv(job.outputs["steps"])
    assert steps["step"].tolist() == list(range(1, curve["step"].iloc[-1] + 1))
    assert steps["loss"].iloc[-8:].mean() < 0.9 * steps["loss"].iloc[:8].mean()
    tensors, once = (job.outputs[role].read_bytes() for role in ("tensors", "curve"))
    experiment("finetune", "dinov2_tiny", "last1", **changes)
    assert (job.outputs["tensors"].read_bytes(), job.outputs["curve"].read_bytes()) == (tensors, once)
    experiment("adapt", "dinov2_tiny", "last1", "toy_willow", **changes)
    experiment("extract", "dinov2_tiny", "frozen", "toy_willow", **changes)
    adapted, extracted = (
        _job("adapt", "dinov2_tiny", "last1", "toy_willow"),
        _job("extract", "dinov2_tiny", "frozen", "toy_willow"),
    )
    with (
        store.Store(adapted.outputs["store"], adapted.fingerprint) as tuned,
        store.Store(extracted.outputs["store"], extracted.fingerprint) as frozen,
    ):
        assert tuned.ids() == frozen.ids()
        for image_id in tuned.ids():
            assert tuned.grid(image_id) == frozen.grid(image_id)
            assert tuned.array(image_id).shape == frozen.array(image_id).shape
            assert not np.allclose(tuned.array(image_id), frozen.array(image_id), atol=1e-2)


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny", "sam_tiny"])
def test_gradients_through_the_cached_trunk(experiment, smoke, name, tmp_path):
    """Training on the store's activations is training on the images: the same gradients, in float32."""
    from semcorr.datasets.base import read_image, read_images
    from semcorr.networks.backbones import build, load
    from semcorr.networks.tail import Tail

    grid = smoke["grid"] | {"backbones": [name]}
    for command in (("fetch", "toy_willow"), ("weights", name, "frozen"), ("trunk", name, "toy_willow")):
        experiment(*command, grid=grid)
    job, values = _job("trunk", name, "toy_willow"), params.load()
    spec = values.backbones[name]
    image = read_images(job.inputs["images"])[0]
    gradients = []
    for cached in (True, False):
        tail = Tail(spec, values.trunk.blocks, torch.device("cpu"), job.inputs["tensors"])
        network = tail.network if cached else load(build(spec), job.inputs["tensors"])
        for module in network.tuned_modules(1, spec):
            module.requires_grad_(True)
        if cached:
            with store.Store(job.outputs["store"], job.fingerprint) as trunk:
                features, feature_grid = tail.forward(trunk, [image.id])[image.id]
        else:
            pixels, feature_grid = network.preprocess(
                read_image(job.inputs["images"].parent / "images", image), spec.image_size
            )
            height, width = feature_grid.shape
            features = network.features(pixels[None], spec)[0].permute(1, 2, 0)[:height, :width]
        weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        (features * weights).sum().backward()
        gradients.append({n: t.grad for n, t in network.net.named_parameters() if t.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_no_source_can_be_had(experiment, smoke):
    datasets = json.loads(json.dumps(smoke["datasets"]))
    datasets["toy_willow"]["sources"] = [{"kind": "path", "path": "nowhere"}, {"kind": "path", "path": "neither"}]
    with pytest.raises(
        UserError, match=r"datasets\.toy_willow\.sources: none is available: path nowhere .* path neither"
    ):
        experiment("fetch", "toy_willow", datasets=datasets)


def test_an_unknown_cell_names_the_known_ones(experiment):
    with pytest.raises(UserError, match=r"match a b c d: no such cell(.|\n)*dinov2_tiny last1 toy_willow softargmax"):
        experiment("match", "a", "b", "c", "d")


def _fails(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    assert raised.value.code == 2
    return capsys.readouterr().err


def test_command_line_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "params.yaml: no such file" in _fails(capsys, "report")
    assert "nope: no such preset; allowed: none; are you in the project?" in _fails(capsys, "preset", "nope")
    assert "invalid choice: 'nope'" in _fails(capsys, "nope")
    assert "the following arguments are required: dataset" in _fails(capsys, "fetch")
    (tmp_path / "bad.yaml").write_text("a: 1")
    assert "bad.yaml: a: unknown key" in _fails(capsys, "preset", "bad.yaml")
    assert not (tmp_path / "params.yaml").exists()


def test_an_average_and_a_reference_have_names_of_their_own(experiment, smoke):
    """The mean over images is `per_image`, the image's side as a reference `reference_image`; neither is `image`."""
    grid = smoke["grid"] | {
        "backbones": ["dinov2_tiny"],
        "tunings": [],
        "weights": ["frozen"],
        "trunks": [],
        "datasets": ["toy_spair_val"],
    }
    evaluate = smoke["evaluate"] | {"references": {"spair": ["bbox", "image"]}}
    changes = {"grid": grid | {"train": None, "validate": None}, "tunings": {}, "evaluate": evaluate}
    experiment("fetch", "toy_spair_val", **changes)
    for job in list(graph.Graph(params.load()).jobs()):
        if job.stage not in ("validate", "fetch"):
            experiment(job.stage, *job.cell.values(), **changes)
    outputs = _job("headline").outputs
    [row, _] = sorted(outputs["headline"].rglob("*.json"))
    values = json.loads(row.read_text())
    cell = json.loads(_job("evaluate", "dinov2_tiny", "frozen", "toy_spair_val", "argmax").outputs["cell"].read_text())
    assert values["pck@0.10"] == cell["overall_keypoint"]["PCK@0.10"]["mean"]
    assert values["pck@0.10_per_image"] == cell["overall_image"]["PCK@0.10"]["mean"]
    by_side = cell["references"]["image"]["overall_keypoint"]["PCK@0.10"]["mean"]
    assert values["pck@0.10_reference_image"] == by_side
    assert len({value for key, value in values.items() if key.startswith("pck@0.10")}) == 3  # so none can be another
    assert "pck@0.10_image" not in values
    table = pd.read_csv(outputs["csv"])
    assert "per_image_PCK@0.10" in table
    assert "image_PCK@0.10" not in table
    assert "| PCK@0.10, reference image |" in _job("report").outputs["markdown"].read_text()
