"""The device: which GPU a process takes, on made-up ids."""

import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semcorr import params, runtime
from semcorr.errors import UserError

# Takes a GPU, says which, and holds it until its stdin is closed.
HOLD = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from pathlib import Path
from semcorr import runtime
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
    assert runtime.device(values) == torch.device("cuda", 2)
    assert leased == [[0, 1, 2, 3]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert runtime.device(values) == torch.device("cuda")
    assert len(leased) == 1


def test_a_gpu_that_is_not_there(smoke, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    values = params.validate({**smoke, "runtime": smoke["runtime"] | {"device": "cuda"}}, "smoke")
    with pytest.raises(UserError, match="torch sees no GPU; allowed here: cpu, auto"):
        runtime.device(values)


def test_mixed_precision_is_a_gpus():
    assert not isinstance(runtime.autocast(torch.device("cpu"), "bfloat16"), torch.autocast)
    assert isinstance(runtime.autocast(torch.device("cuda"), "bfloat16"), torch.autocast)
    assert not isinstance(runtime.autocast(torch.device("cuda"), "float32"), torch.autocast)


@pytest.mark.usefixtures("gpus")
def test_processes_of_one_training_share_the_machines_gpus(smoke, monkeypatch, tmp_path):
    values = params.validate({**smoke, "runtime": smoke["runtime"] | {"device": "auto"}}, "smoke")
    monkeypatch.setattr(runtime.tempfile, "gettempdir", lambda: str(tmp_path))
    assert runtime.visible(values, 3) == {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    with pytest.raises(UserError, match="5 processes, 4 GPUs"):
        runtime.visible(values, 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert runtime.visible(values, 2) == {}
    for lock in runtime._leases:
        lock.release()
