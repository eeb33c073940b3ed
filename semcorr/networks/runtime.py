"""Devices, threads, GPU leases, mixed precision, and groups of training processes."""

import contextlib
import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, Timeout

from semcorr.artifacts.files import locked, take_lock
from semcorr.errors import UserError
from semcorr.params import Runtime

logger = logging.getLogger(__name__)

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")  # all set by torch's launcher

_leases: list[BaseFileLock] = []  # held until the process exits


def device(options: Runtime, threads: int) -> torch.device:
    """Set up torch for a stage, which has the process to itself, and return the device to compute on.

    Training on a CPU depends on the number of threads, and the engines set OMP_NUM_THREADS differently, so it is set
    here. Of several visible GPUs, one is reserved for this process.

    Raises:
        UserError: runtime.device is cuda and there is none.
    """
    torch.set_num_threads(threads)
    chosen = pick(options.device)
    if chosen.type == "cuda":
        count = _count()
        if launched() or count > 1:
            number = int(os.environ["LOCAL_RANK"]) % count if launched() else lease(range(count))
            chosen = torch.device("cuda", number)
            torch.cuda.set_device(chosen)
        # CPU algorithms are deterministic anyway, and this call costs 2.6 s of imports.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        # float32 is float32: convolutions would use TF32, whose products have 10 bits, unless told not to.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if options.device == "auto":
        logger.info("computing on %s (runtime.device: auto), %d threads", chosen, threads)
    return chosen


def facts(where: torch.device) -> dict[str, Any]:
    """What a result may depend on besides its inputs, for its provenance."""
    if where.type != "cuda":
        return {"device": where.type}
    return {
        "device": f"{where.type}, {torch.cuda.get_device_name(where)}",
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


def pick(wanted: str) -> torch.device:
    """The device for a value of runtime.device; of several GPUs, the current one. Changes nothing.

    Raises:
        UserError: it is cuda and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("params.yaml: runtime.device: cuda, but torch sees no GPU; allowed here: cpu, auto")
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")


def lease(ids: Iterable[int], folder: Path | None = None, poll: float = 1.0) -> int:
    """Reserve a GPU among this user's processes until this one exits, waiting until one is free.

    A process that already holds one of them gets it again.

    Args:
        ids: of the GPUs, as numbered in this process.
        folder: for one lock file per GPU; None is a folder in the machine's temporary one.
        poll: seconds between attempts.
    """
    return leases(ids, 1, folder, poll)[0]


def leases(ids: Iterable[int], count: int, folder: Path | None = None, poll: float = 1.0) -> list[int]:
    """Reserve several GPUs like `lease`, all at once; while too few are free, none is held."""
    folder = folder or Path(tempfile.gettempdir()) / f"semcorr-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    files = {number: folder / f"{_gpu(number)}.lock" for number in ids}
    locks = {lock.lock_file.removesuffix(".soft") for lock in _leases if lock.is_locked}
    held = [number for number, file in files.items() if str(file) in locks]
    if len(held) >= count:
        return held[:count]
    waiting = False
    while True:
        taken: dict[int, BaseFileLock] = {}
        with locked(folder / "choosing.lock"):  # otherwise two processes that need two GPUs each could block each other
            for number, file in files.items():
                if len(taken) < count:
                    with contextlib.suppress(Timeout):
                        taken[number] = take_lock(file, timeout=0)
            if len(taken) == count:
                _leases.extend(taken.values())
                return list(taken)
            for lock in taken.values():
                lock.release()
        if not waiting:
            logger.info("all %d GPUs are in use, waiting", len(files))
        waiting = True
        time.sleep(poll)


def _visible() -> list[str] | None:
    """The GPUs assigned to this process by a scheduler, by CUDA's names; None without an assignment."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if names is None else names.split(",")


def _count() -> int:
    """How many GPUs this process may use."""
    count, names = torch.cuda.device_count(), _visible()
    return count if names is None else min(count, len(names))


def _gpu(number: int) -> str:
    """A GPU's name, which is the same in all processes, however each numbers its GPUs."""
    try:
        return str(torch.cuda.get_device_properties(number).uuid)
    except (RuntimeError, AssertionError, AttributeError):
        names = _visible()
        return str(number) if names is None or number >= len(names) else names[number]


def visible(options: Runtime, count: int) -> dict[str, str]:
    """Environment variables that assign GPUs to `count` new processes; none if a scheduler assigned exactly as many."""
    if pick(options.device).type == "cpu":
        return {}
    available, names = _count(), _visible()
    if available < count:
        raise UserError(f"params.yaml: runtime.processes: {count} processes, {available} GPUs")
    if names is not None and available == count:
        return {}
    chosen = leases(range(available), count)
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(number) if names is None else names[number] for number in chosen)}


def autocast(where: torch.device, compute: str) -> contextlib.AbstractContextManager:
    """Mixed precision on any device, if a backbone's `compute` asks for it."""
    if compute == "float32":
        return contextlib.nullcontext()
    if (where.type, compute) == ("cpu", "float16"):
        _say_slow()
    return torch.autocast(where.type, dtype=getattr(torch, compute))


@functools.cache
def _say_slow() -> None:
    """Warn once per process."""
    logger.warning("compute: float16 is slow on a CPU; bfloat16 and float32 are faster there")


def compiled(function: Callable, options: Runtime) -> Callable:
    """`function`, compiled by torch for varying shapes if runtime.compile is set."""
    return torch.compile(function, dynamic=True) if options.compile else function


class Group:
    """The processes that train one network together, possibly only one."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def sum(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Sum each tensor over the processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
        return tensors

    def sum_gradients(self, tensors: list[torch.Tensor]) -> None:
        """Sum the gradients of tensors over the processes; a missing gradient counts as zero."""
        if self.size == 1:
            return
        for tensor in tensors:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message, not dozens
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            gradient.copy_(part.view_as(gradient))


def launched() -> bool:
    """Whether torch's launcher started this process in a group; schedulers set some of these variables too."""
    return all(name in os.environ for name in LAUNCHED)


def group(where: torch.device) -> Group:
    """The group of this process."""
    if not launched():
        return Group(0, 1)
    torch.distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    return Group(torch.distributed.get_rank(), torch.distributed.get_world_size())
