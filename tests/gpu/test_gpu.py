"""What is promised of a GPU, on a real one: results like the CPU's, resumed and repeated runs, full memory, leases.

    pytest -m gpu

Tolerances are in `TOLERANCES`: sums in another order move float32's last bits, bfloat16 has 8 bits and float16 has 11.
Which cell is the most similar may change where two are alike, so similarities are compared, not places.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import requests
import torch
from conftest import FORKS, run_stages, small
from PIL import Image as PillowImage
from werkzeug.serving import make_server

from semcorr import cli, match_images, params
from semcorr.api.images import Matcher
from semcorr.api.serve import application
from semcorr.artifacts.files import write_json
from semcorr.engine import graph
from semcorr.errors import UserError
from semcorr.networks import encode, runtime, trainer
from semcorr.networks.backbones.weights import read_checkpoint

WITHOUT = "no GPU here; on a machine with one: pytest -m gpu"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=WITHOUT)]

# compute -> how far features may turn (1 - cosine), how far similarities and losses (relative) may move.
TOLERANCES = {"float32": (1e-4, 1e-3, 0.01), "bfloat16": (2e-2, 5e-2, 0.1), "float16": (1e-3, 1e-2, 0.05)}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a stage sets for its whole process does not stay."""
    yield
    _release()
    torch.use_deterministic_algorithms(False)
    torch.cuda.empty_cache()


def _release() -> None:
    """Give GPUs back that a stage keeps until its process ends."""
    for lock in runtime._leases:
        lock.release()
    runtime._leases.clear()


def _values(smoke: dict, device: str = "cuda", compute: str = "float32", **runtime_keys: object) -> dict:
    values = json.loads(json.dumps(smoke))
    small(values)
    values["runtime"] |= {"device": device, **runtime_keys}
    values["backbones"]["dinov2_tiny"]["compute"] = compute
    return values


@pytest.fixture(scope="module")
def on_the_cpu(smoke, tmp_path_factory) -> Path:
    """A folder with the small experiment, made on the CPU in float32."""
    folder = tmp_path_factory.mktemp("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stages(_values(smoke, "cpu"), *graph.STAGES)
    return folder


@pytest.fixture
def trained(smoke, tmp_path, monkeypatch):
    """A function that trains on the GPU, in a folder with all that this reads, and returns the job."""
    monkeypatch.chdir(tmp_path)
    run_stages(_values(smoke), "fetch", "weights", "trunk")

    def train(changes: dict | None = None, device: str = "cuda", **runtime_keys: object) -> graph.Job:
        values = _values(smoke, device, **runtime_keys)
        values["tunings"]["last1"] |= changes or {}
        write_json(Path("params.yaml"), values)
        Path("checkpoints/dinov2_tiny/last1/last.pt").unlink(missing_ok=True)
        _release()
        return _finetune()

    return train


def _finetune() -> graph.Job:
    cli.run_stage(cli.parser().parse_args(["finetune", "dinov2_tiny", "last1"]))
    return graph.Graph(params.load()).job("finetune", "dinov2_tiny", "last1")


def _outputs(job: graph.Job) -> list[bytes]:
    return [path.read_bytes() for path in job.outputs.values()]


def _turned(one: Path, other: Path) -> float:
    """1 minus the lowest cosine between the vectors of two stores."""
    turned = [0.0]

    def compare(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 2:
            a, b = (np.asarray(file[name], float) for file in (item.file, second))
            assert a.shape == b.shape, name
            cosines = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
            turned.append(1 - cosines.min())

    with h5py.File(one) as first, h5py.File(other) as second:
        first.visititems(compare)
    assert len(turned) > 1
    return max(turned)


def _close(job: graph.Job, root: Path, compute: str) -> None:
    """Hold the outputs of a job in this folder against those of the same job in another."""
    turn, similarity, loss = TOLERANCES[compute]
    for role, path in job.outputs.items():
        mine, theirs = path, root / path
        if path.suffix == ".h5":
            # Training multiplies what rounding moved.
            assert _turned(theirs, mine) < (20 * turn if job.stage == "adapt" else turn), path
        elif path.suffix == ".parquet" and job.stage == "match":
            moved = [pd.read_parquet(one)["similarity"].to_numpy() for one in (mine, theirs)]
            tuned = job.cell["weights"] != "frozen"
            np.testing.assert_allclose(*moved, atol=(10 if tuned else 1) * similarity, err_msg=str(path))
        elif role == "steps":
            np.testing.assert_allclose(*(pd.read_csv(one)["loss"] for one in (mine, theirs)), rtol=loss)
        elif role == "curve" and path.suffix == ".json":
            rows = [json.loads(one.read_text())["layers"] for one in (mine, theirs)]
            scores = [[row["overall_keypoint"]["PCK@0.10"]["mean"] for row in some] for some in rows]
            np.testing.assert_allclose(*scores, atol=0.1)


@pytest.mark.parametrize("compute", TOLERANCES)
def test_every_stage_gives_what_it_gives_on_the_cpu(smoke, on_the_cpu, tmp_path, monkeypatch, compute):
    monkeypatch.chdir(tmp_path)
    torch.cuda.reset_peak_memory_stats()
    run = run_stages(_values(smoke, compute=compute), *graph.STAGES)
    assert torch.cuda.max_memory_allocated() > 0
    for job in run.jobs():
        _close(job, on_the_cpu, compute)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_extract_twice_gives_the_same_bytes(smoke, tmp_path, monkeypatch, compute):
    monkeypatch.chdir(tmp_path)
    values, stores = _values(smoke, compute=compute), []
    run_stages(values, "fetch", "weights")
    for _ in range(2):
        run = run_stages(values, "extract")
        [path] = [job.outputs["store"] for job in run.jobs() if job.stage == "extract"]
        stores.append(path.read_bytes())
        path.unlink()
    assert stores[0] == stores[1]


EVERYTHING = {"accumulate": 2, "ema": 0.9}


def test_recomputed_activations_accumulation_and_an_average(trained):
    """As on the CPU; and recomputing activations changes no loss."""
    losses = {}
    for name, options in {
        "here": {"device": "cpu"},
        "there": {},
        "recomputed": {"checkpointing": True},
    }.items():
        losses[name] = pd.read_csv(trained(EVERYTHING, **options).outputs["steps"])["loss"]
    np.testing.assert_allclose(losses["there"], losses["here"], rtol=TOLERANCES["float32"][2])
    np.testing.assert_allclose(losses["recomputed"], losses["there"], rtol=TOLERANCES["float32"][2])


def test_two_processes_train_what_one_does(trained):
    """One GPU each, through NCCL; or a message if there is one GPU."""
    if torch.cuda.device_count() < 2:
        with pytest.raises(UserError, match=r"runtime\.processes: 2 processes, 1 GPUs"):
            trained(EVERYTHING, processes=2)
        pytest.skip("one GPU here, two processes need two")
    alone = pd.read_csv(trained(EVERYTHING).outputs["steps"])["loss"]
    together = pd.read_csv(trained(EVERYTHING, processes=2).outputs["steps"])["loss"]
    np.testing.assert_allclose(together, alone, rtol=TOLERANCES["float32"][2])


def _child(folder: str) -> None:
    os.chdir(folder)
    trainer.SAVE_EVERY = 0  # after every step
    _finetune()


def test_a_killed_run_resumes(trained):
    """Byte by byte what was saved before the kill; after it, up to the order in which CUDA adds gradients."""
    job = trained(EVERYTHING)
    whole, last = pd.read_csv(job.outputs["steps"]), job.outputs["tensors"].with_name("last.pt")
    before = _outputs(job)
    for path in job.outputs.values():
        path.unlink()
    assert _outputs(_finetune()) == before  # it had ended, so it is only written again
    for path in (*job.outputs.values(), last):
        path.unlink()
    process = FORKS.Process(target=_child, args=[str(Path.cwd())])
    process.start()
    while process.is_alive() and not last.exists():
        process.join(0.01)
    process.join(0.05)
    process.kill()
    process.join()
    saved = torch.load(last, map_location="cpu", weights_only=True)["state"]["steps"]
    _finetune()
    resumed = pd.read_csv(job.outputs["steps"], float_precision="round_trip")
    assert resumed[: len(saved)].to_numpy().tolist() == saved
    np.testing.assert_allclose(resumed["loss"], whole["loss"], rtol=TOLERANCES["float32"][2])
    tensors = read_checkpoint(job.outputs["tensors"])
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_what_is_resumed_lies_where_it_lay(trained, monkeypatch):
    """Counts of the optimizer on the CPU, where reading them waits for nobody; all else on the GPU."""
    seen = []
    resume = trainer.Trainer._resume
    monkeypatch.setattr(trainer.Trainer, "_resume", lambda self: (resume(self), seen.append(self)))
    trained(EVERYTHING)
    _finetune()
    resumed = seen[-1]
    assert resumed.state["step"] > 0
    for state in resumed.optimizer.state.values():
        assert {name: value.device.type for name, value in state.items()} == {
            "step": "cpu",
            "exp_avg": "cuda",
            "exp_avg_sq": "cuda",
        }
    assert {tensor.device.type for tensor in resumed.ema.values()} == {"cuda"}


def test_a_batch_that_memory_does_not_hold_is_halved(caplog):
    """One that refuses more than three images, and one that really asks for more memory than there is."""
    pixels, sizes = torch.arange(16.0, device="cuda").view(8, 2), []

    def refusing(part: torch.Tensor) -> torch.Tensor:
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(part))
        return part * 2

    assert torch.equal(encode.halving(refusing, pixels), pixels * 2)
    assert sizes == [2, 2, 2, 2]
    assert "the GPU's memory does not hold 8 images at once, continuing with 4" in caplog.text
    whole = torch.cuda.get_device_properties(pixels.device).total_memory

    def greedy(part: torch.Tensor) -> torch.Tensor:
        room = torch.empty(len(part) * whole // 5, dtype=torch.uint8, device="cuda")  # nothing writes to it
        sizes.append(len(part))
        return part * 2 + room[:1].view(torch.uint8) * 0

    sizes.clear()
    assert torch.equal(encode.halving(greedy, pixels), pixels * 2)
    assert max(sizes) < 5
    assert sum(sizes) == 8
    with pytest.raises(UserError, match="the GPU's memory does not hold one image"):
        encode.halving(lambda part: torch.empty(2 * whole, dtype=torch.uint8, device=part.device), pixels)


HOLD = """
import sys
from pathlib import Path
from semcorr.networks import runtime
print(runtime.lease([0], Path(sys.argv[1]), poll=0.05), flush=True)
sys.stdin.read()
"""


def test_two_processes_take_turns_with_a_gpu(tmp_path):
    """They know it by its own name, however each numbers its GPUs; the second waits until the first has ended."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    number = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    first = subprocess.Popen(command, text=True, **pipes)
    assert first.stdout.readline() == "0\n"
    assert [path.name for path in tmp_path.glob("*.lock") if path.stem != "choosing"] == [f"{runtime._gpu(0)}.lock"]
    assert runtime._gpu(0).count("-") >= 4  # a UUID, and no number
    second = subprocess.Popen(command, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": number}, **pipes)
    said: list[str] = []
    waiting = threading.Thread(target=lambda: said.append(second.stdout.readline()))
    waiting.start()
    waiting.join(3)
    assert said == []
    first.kill()
    waiting.join(60)
    assert said == ["0\n"]
    second.communicate("")
    first.communicate()


@pytest.fixture
def project(smoke, tmp_path, monkeypatch) -> Path:
    """A project with frozen tensors, two pictures of noise, and a GPU."""
    monkeypatch.chdir(tmp_path)
    run_stages(_values(smoke), "weights")
    for seed, name in enumerate(("a.png", "b.png")):
        colours = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
        PillowImage.fromarray(colours).resize((120, 90), PillowImage.Resampling.NEAREST).save(name)
    return tmp_path


POINTS = [[10.0, 10.0], [60.0, 45.0], [110.0, 80.0]]


def test_own_images(project):
    """An image is found in itself, to a cell, and everything that can be asked of two has an answer."""
    matcher = Matcher()
    assert matcher.device.type == "cuda"
    found = match_images("a.png", "a.png", POINTS, matcher=matcher, mutual=True)
    cell = np.array([120, 90]) / np.array(found.source_grid.resized_size[::-1]) * found.source_grid.stride
    assert found.source_features.device.type == "cuda"
    assert len(found.source_points) > 0
    assert (np.abs(found.target_points - found.source_points) <= cell).all()
    assert found.heatmaps().shape == (len(found.source_points), *found.target_grid.shape)
    other = match_images("a.png", "b.png", matcher=matcher, target_mask=np.ones((90, 120), bool))
    assert len(other.source_points) > 0
    assert other.picture().width > other.dense().height > 0


def test_the_page(project):
    """A click on the page is answered from the GPU, as match_images answers it."""
    server = make_server("127.0.0.1", 0, application(Matcher(), {}), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    headers = {"Content-Type": "application/octet-stream"}
    try:
        sent = [
            requests.post(f"{address}images", Path(name).read_bytes(), headers=headers, timeout=60).json()["id"]
            for name in ("a.png", "b.png")
        ]
        asked = {"backbone": "dinov2_tiny", "weights": "frozen", "rule": "argmax"}
        asked |= {"source": sent[0], "target": sent[1], "points": POINTS}
        answered = requests.post(f"{address}match", json=asked, timeout=60).json()["matches"]
        assert requests.post(f"{address}map", json=asked, timeout=60).json()["map"].startswith("data:image")
    finally:
        server.shutdown()
    expected = match_images("a.png", "b.png", POINTS, rule="argmax")
    np.testing.assert_allclose([match["target"] for match in answered], expected.target_points, atol=0.1)
