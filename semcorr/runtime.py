"""What the machine gives: the device, the number of threads, and how they are kept from changing results."""

import contextlib
import getpass
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from semcorr.errors import UserError
from semcorr.params import Params

logger = logging.getLogger(__name__)

_leases: list[FileLock] = []  # held until the process ends


def device(params: Params) -> torch.device:
    """Set up torch as params.yaml says and return the device to compute on.

    The engines hand over different OMP_NUM_THREADS, and training on a CPU depends on it: it is set here. Of several
    GPUs a process takes one for itself: the one that a scheduler gave it (CUDA_VISIBLE_DEVICES), else a free one.

    Raises:
        UserError: runtime.device is cuda and there is none.
    """
    torch.set_num_threads(params.threads)
    wanted = params.runtime.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("params.yaml: runtime.device: cuda, but torch sees no GPU; allowed here: cpu, auto")
    chosen = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        if launched():
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % count)
            torch.cuda.set_device(chosen)
        elif count > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
            chosen = torch.device("cuda", lease(range(count)))
            torch.cuda.set_device(chosen)
        # On the CPU algorithms are deterministic anyway, and asking costs 2.6 s of imports.
        torch.use_deterministic_algorithms(True, warn_only=True)
    if wanted == "auto":
        logger.info("computing on %s (runtime.device: auto), %d threads", chosen, params.threads)
    return chosen


def lease(ids: Iterable[int], folder: Path | None = None, poll: float = 1.0) -> int:
    """A GPU that no other process of this user holds, for as long as this process lives; waits until one is free.

    Args:
        ids: of the GPUs.
        folder: holds one lock file a GPU; None takes one in the machine's temporary folder.
        poll: seconds between looks.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"semcorr-gpus-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    locks = {number: FileLock(folder / f"{number}.lock") for number in ids}
    while True:
        for number, lock in locks.items():
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                _leases.append(lock)
                return number
        logger.info("all %d GPUs are in use, waiting", len(locks))
        time.sleep(poll)


def visible(params: Params, count: int) -> dict[str, str]:
    """What tells `count` processes to come which GPUs are theirs: nothing where a scheduler has said so."""
    wanted = params.runtime.device != "cpu" and torch.cuda.is_available()
    if not wanted or "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    if torch.cuda.device_count() < count:
        raise UserError(f"params.yaml: runtime.processes: {count} processes, {torch.cuda.device_count()} GPUs")
    ids = [lease(range(torch.cuda.device_count())) for _ in range(count)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, ids))}


def autocast(where: torch.device, compute: str) -> contextlib.AbstractContextManager:
    """Mixed precision on a GPU, where a backbone's `compute` asks for it; a CPU computes in float32."""
    if where.type != "cuda" or compute == "float32":
        return contextlib.nullcontext()
    return torch.autocast(where.type, dtype=getattr(torch, compute))


def compiled(function: Callable, params: Params) -> Callable:
    """`function`, compiled by torch where runtime.compile says so; shapes vary, so it is told that they do."""
    return torch.compile(function, dynamic=True) if params.runtime.compile else function


class Group:
    """The processes that train one network together; one alone is a group too."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates and writes."""
        return self.rank == 0

    def close(self) -> None:
        """Part from the others."""
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def sum(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors, each summed over the processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)
        return tensors

    def sum_gradients(self, tensors: list[torch.Tensor]) -> None:
        """Sum the gradients of tensors over the processes; what a process has none of counts as zero there."""
        if self.size == 1:
            return
        for tensor in tensors:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        flat = torch.cat([tensor.grad.flatten() for tensor in tensors])  # one message instead of dozens
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.grad.copy_(part.view_as(tensor))


def launched() -> bool:
    """Whether torch's launcher started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def group(where: torch.device) -> Group:
    """The group of this process."""
    if not launched():
        return Group(0, 1)
    torch.distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    return Group(torch.distributed.get_rank(), torch.distributed.get_world_size())
