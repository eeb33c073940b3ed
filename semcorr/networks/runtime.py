"""What the machine gives: the device, the number of threads, and how they are kept from changing results."""

import contextlib
import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from filelock import BaseFileLock, Timeout

from semcorr.artifacts.files import locked, take_lock
from semcorr.errors import UserError
from semcorr.params import Runtime

logger = logging.getLogger(__name__)

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")  # what torch's launcher sets, all of it

_leases: list[BaseFileLock] = []  # held until the process ends


def device(options: Runtime, threads: int) -> torch.device:
    """Set up torch for a stage, whose process is its own, as params.yaml says; the device to compute on.

    The engines hand over different OMP_NUM_THREADS, and training on a CPU depends on it: it is set here. Of several
    GPUs that this process may see it takes one for itself.

    Raises:
        UserError: runtime.device is cuda and there is none.
    """
    torch.set_num_threads(threads)
    chosen = pick(options.device)
    if chosen.type == "cuda":
        count = _count()
        if launched():
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % count)
            torch.cuda.set_device(chosen)
        elif count > 1:
            chosen = torch.device("cuda", lease(range(count)))
            torch.cuda.set_device(chosen)
        # On the CPU algorithms are deterministic anyway, and asking costs 2.6 s of imports.
        torch.use_deterministic_algorithms(True, warn_only=True)
    if options.device == "auto":
        logger.info("computing on %s (runtime.device: auto), %d threads", chosen, threads)
    return chosen


def pick(wanted: str) -> torch.device:
    """The device that runtime.device asks for; of several GPUs the one that is the caller's now. Nothing is changed.

    Raises:
        UserError: it is cuda and there is none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError("params.yaml: runtime.device: cuda, but torch sees no GPU; allowed here: cpu, auto")
    return torch.device("cuda" if wanted != "cpu" and there else "cpu")


def lease(ids: Iterable[int], folder: Path | None = None, poll: float = 1.0) -> int:
    """A GPU that no other process of this user holds, for as long as this process lives; waits until one is free.

    A process that holds one of them already is given that one again.

    Args:
        ids: of the GPUs, as this process counts them.
        folder: holds one lock file a GPU; None takes one in the machine's temporary folder.
        poll: seconds between looks.
    """
    return leases(ids, 1, folder, poll)[0]


def leases(ids: Iterable[int], count: int, folder: Path | None = None, poll: float = 1.0) -> list[int]:
    """Several GPUs at once, as `lease` gives one: all of them or, while fewer are free, none."""
    folder = folder or Path(tempfile.gettempdir()) / f"semcorr-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    files = {number: folder / f"{_gpu(number)}.lock" for number in ids}
    held = {lock.lock_file.removesuffix(".soft") for lock in _leases if lock.is_locked}
    ours = [number for number, file in files.items() if str(file) in held]
    if len(ours) >= count:
        return ours[:count]
    waiting = False
    while True:
        taken: dict[int, BaseFileLock] = {}
        with locked(folder / "choosing.lock"):  # else two that want two each would hold one each for ever
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
    """The GPUs that a scheduler has given this process, by CUDA's names; None where it has said nothing."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if said is None else said.split(",")


def _count() -> int:
    """How many GPUs this process may use."""
    count, given = torch.cuda.device_count(), _visible()
    return count if given is None else min(count, len(given))


def _gpu(number: int) -> str:
    """A name of a GPU that is the same for all processes, however each counts those that it sees."""
    try:
        return str(torch.cuda.get_device_properties(number).uuid)
    except (RuntimeError, AssertionError, AttributeError):
        given = _visible()
        return str(number) if given is None or number >= len(given) else given[number]


def visible(options: Runtime, count: int) -> dict[str, str]:
    """What tells `count` processes to come which GPUs are theirs; nothing where a scheduler gave just so many."""
    if pick(options.device).type == "cpu":
        return {}
    there, given = _count(), _visible()
    if there < count:
        raise UserError(f"params.yaml: runtime.processes: {count} processes, {there} GPUs")
    if given is not None and there == count:
        return {}
    chosen = leases(range(there), count)
    return {"CUDA_VISIBLE_DEVICES": ",".join(str(number) if given is None else given[number] for number in chosen)}


def autocast(where: torch.device, compute: str) -> contextlib.AbstractContextManager:
    """Mixed precision, where a backbone's `compute` asks for it, on every device."""
    if compute == "float32":
        return contextlib.nullcontext()
    if (where.type, compute) == ("cpu", "float16"):
        _say_slow()
    return torch.autocast(where.type, dtype=getattr(torch, compute))


@functools.cache
def _say_slow() -> None:
    """Once a process."""
    logger.warning("compute: float16 is slow on a CPU; bfloat16 and float32 are faster there")


def compiled(function: Callable, options: Runtime) -> Callable:
    """`function`, compiled by torch where runtime.compile says so; shapes vary, so it is told that they do."""
    return torch.compile(function, dynamic=True) if options.compile else function


class Group:
    """The processes that train one network together; one alone is a group too."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates and writes."""
        return self.rank == 0

    def close(self) -> None:
        """Leave the group."""
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
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message instead of dozens
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            gradient.copy_(part.view_as(gradient))


def launched() -> bool:
    """Whether torch's launcher started this process as one of a group; schedulers set some of these names too."""
    return all(name in os.environ for name in LAUNCHED)


def group(where: torch.device) -> Group:
    """The group of this process."""
    if not launched():
        return Group(0, 1)
    torch.distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    return Group(torch.distributed.get_rank(), torch.distributed.get_world_size())
