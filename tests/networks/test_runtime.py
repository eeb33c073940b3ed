"""The device: which GPU a process takes, on made-up ids."""

import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semcorr import params
from semcorr.errors import UserError
from semcorr.networks import runtime

# Takes a GPU, says which, and holds it until its stdin is closed.
HOLD = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from pathlib import Path
from semcorr.networks import runtime
print(runtime.lease(range(int(sys.argv[2])), Path(sys.argv[1]), poll=0.05), flush=True)
sys.stdin.read()
"""


def _hold(folder: Path, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_each_process_has_a_gpu_of_its_own(tmp_path):
    """Three processes and two GPUs: two get one each, the third waits for whoever ends, killed or not."""
    processes = [_hold(tmp_path, 2) for _ in range(2)]
    taken = [int(process.stdout.readline()) for process in processes]
    assert sorted(taken) == [0, 1]
    third = _hold(tmp_path, 2)
    assert "all 2 GPUs are in use, waiting" in third.stderr.readline()
    assert select.select([third.stdout], [], [], 0)[0] == []
    processes[1].kill()
    assert int(third.stdout.readline()) == taken[1]
    for process in (processes[0], third):
        process.communicate("")
        assert process.returncode == 0


@pytest.fixture
def gpus(monkeypatch):
    """A machine with four made-up GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("gpus")
def test_the_schedulers_gpu_or_a_free_one(smoke, monkeypatch, tmp_path):
    smoke = {**smoke, "runtime": smoke["runtime"] | {"device": "auto"}}
    values = params.validate(smoke, "smoke")
    leased = []
    monkeypatch.setattr(runtime, "lease", lambda ids: leased.append(list(ids)) or 2)
    assert runtime.device(values.runtime, values.threads) == torch.device("cuda", 2)
    assert leased == [[0, 1, 2, 3]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert runtime.device(values.runtime, values.threads) == torch.device("cuda")
    assert len(leased) == 1


def test_a_gpu_that_is_not_there(smoke, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = params.validate({**smoke, "runtime": smoke["runtime"] | {"device": "cuda"}}, "smoke")
    with pytest.raises(UserError, match="torch sees no GPU; allowed here: cpu, auto"):
        runtime.device(values.runtime, values.threads)


def test_mixed_precision_is_on_every_device(caplog):
    runtime._say_slow.cache_clear()
    for where in ("cpu", "cuda"):
        assert isinstance(runtime.autocast(torch.device(where), "bfloat16"), torch.autocast)
        assert not isinstance(runtime.autocast(torch.device(where), "float32"), torch.autocast)
    assert caplog.text == ""
    for _ in range(3):
        runtime.autocast(torch.device("cpu"), "float16")
    assert caplog.text.count("float16 is slow on a CPU") == 1


@pytest.mark.usefixtures("gpus")
def test_processes_of_one_training_share_the_machines_gpus(smoke, monkeypatch, tmp_path):
    values = params.validate({**smoke, "runtime": smoke["runtime"] | {"device": "auto"}}, "smoke")
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    assert runtime.visible(values.runtime, 3) == {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    with pytest.raises(UserError, match="5 processes, 4 GPUs"):
        runtime.visible(values.runtime, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert runtime.visible(values.runtime, 2) == {}
    for lock in runtime._leases:
        lock.release()
    runtime._leases.clear()


# Takes several GPUs, says which, and holds them until its stdin is closed.
HOLD_SEVERAL = HOLD.replace("runtime.lease(range(int(sys.argv[2])),", "runtime.leases(range(int(sys.argv[2])), 2,")


def test_several_gpus_are_taken_together_or_not_at_all(tmp_path):
    """Three jobs that want two of two GPUs each, at the same time: one after another, none waits for ever."""
    command = [sys.executable, "-c", HOLD_SEVERAL, str(tmp_path), "2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    waiting = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    while waiting:
        ready, _, _ = select.select([process.stdout for process in waiting], [], [], 60)
        assert len(ready) == 1, "none of the jobs was given its GPUs, or two were"
        [done] = [process for process in waiting if process.stdout is ready[0]]
        assert done.stdout.readline() == "[0, 1]\n"
        assert select.select([p.stdout for p in waiting if p is not done], [], [], 0.3)[0] == []
        done.communicate("")
        waiting.remove(done)


@pytest.mark.usefixtures("gpus")
def test_each_job_of_an_allocation_has_a_gpu_of_its_own(smoke, monkeypatch, tmp_path):
    """CUDA_VISIBLE_DEVICES=4,5,6,7: the next free of these, and the same one however often this process asks."""
    values = params.validate({**smoke, "runtime": smoke["runtime"] | {"device": "auto"}}, "smoke")
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    others = _hold_first_of(tmp_path)
    try:
        assert [runtime.device(values.runtime, values.threads) for _ in range(3)] == [torch.device("cuda", 1)] * 3
        assert len(runtime._leases) == 1
    finally:
        others.communicate("")
        for lock in runtime._leases:
            lock.release()
        runtime._leases.clear()


def _hold_first_of(folder: Path) -> subprocess.Popen:
    """Another process, which the scheduler gave one GPU more to see, holds GPU 4."""
    code = HOLD.replace("range(int(sys.argv[2])), Path(sys.argv[1]),", "[1],").replace(
        "import logging",
        f"import os; os.environ['CUDA_VISIBLE_DEVICES'] = '3,4'; os.environ['TMPDIR'] = '{folder}'; import logging",
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)
    assert process.stdout.readline() == "1\n", process.stderr.read()
    return process


@pytest.mark.usefixtures("gpus")
def test_the_library_leases_no_gpu(monkeypatch):
    """Own images and `plan` compute where the caller does, beside whoever is at work there."""
    monkeypatch.setattr(runtime, "leases", lambda *_: pytest.fail("a GPU was leased"))
    assert runtime.pick("auto") == torch.device("cuda")


def test_a_schedulers_rank_alone_is_no_launch(monkeypatch):
    """Some set RANK and WORLD_SIZE for reasons of their own: that is one process, and no KeyError."""
    for name in runtime.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not runtime.launched()
    assert runtime.group(torch.device("cpu")).size == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert runtime.launched()
