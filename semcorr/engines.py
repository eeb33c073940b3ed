"""Who is at work in a folder, and how Snakemake is told what is stale.

Each process that writes results holds a lock while it lives, on a file whose name says what it does. DVC keeps order
among its own stages, and Snakemake among its own jobs; `keeper` keeps the two apart.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from semcorr.errors import UserError
from semcorr.files import take_lock, unwritable, write_text
from semcorr.graph import Graph
from semcorr.memory import FOLDER

AT_WORK = FOLDER / "at_work"
LONG_AGO = (1.0, 1.0)  # seconds of the clock: earlier than any output


@contextlib.contextmanager
def at_work(what: str, alone: bool = False) -> Iterator[None]:
    """Let others see what this process does, while the block runs.

    Args:
        what: in the words of a command line; two processes never do the same at once.
        alone: whether nothing else may be at work.

    Raises:
        UserError: something is at work that is in the way.
    """
    path = AT_WORK / f"{what.replace('/', ' ')[:200]} (process {os.getpid()})"
    with unwritable(AT_WORK):
        AT_WORK.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
    try:
        found = [one for one in others() if alone or one.startswith(path.name.rpartition("(")[0])]
        if found:
            raise UserError(f"at work in this folder: {', '.join(found)}. Wait until that has ended, then run again")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def others() -> list[str]:
    """What other processes are at work on in this folder; what is left of those that were killed is removed."""
    found = []
    for path in sorted(AT_WORK.glob("*)")):
        if path.name.endswith(f"(process {os.getpid()})"):
            continue
        try:
            lock = take_lock(path, 0)
        except (Timeout, PermissionError):  # another user's: who cannot be asked counts as at work
            found.append(path.name)
        else:
            path.unlink(missing_ok=True)
            lock.release()
    return found


def marker(stage: str, *cell: str) -> Path:
    """The file through which Snakemake is told whether a job is stale: an input that is newer than its outputs then."""
    return FOLDER / "markers" / stage / ("-".join(cell) or "all")


def mark(graph: Graph, stale: dict[str, str]) -> None:
    """Set the markers of all jobs: new where a job is stale, old where not.

    A marker's time alone is set, never an output's: DVC's cache may be the same file. Outputs get write permission,
    which DVC takes from them: Snakemake refuses to make such a file anew. Nothing here writes into a file in place.
    """
    for job in graph.jobs():
        path = marker(job.stage, *job.cell.values())
        made = [output for output in job.outputs.values() if output.exists()]
        if job.name in stale or not path.exists():  # other bytes each time: what Snakemake has seen is never newer
            write_text(path, f"{stale.get(job.name)}\n{time.time_ns()}\n")
        newest = max([output.stat().st_mtime + 1 for output in made] + [time.time()])  # some are of a clock ahead
        os.utime(path, (newest, newest) if job.name in stale else LONG_AGO)
        for output in made:
            if not os.access(output, os.W_OK):
                with contextlib.suppress(OSError):  # not ours: Snakemake says so
                    output.chmod(output.stat().st_mode | 0o200)


def age(graph: Graph) -> None:
    """Make all markers old, once it is planned what runs: Snakemake compares them with what was made, again.

    And what was made under a clock that is ahead is of now: Snakemake refuses what is older than its inputs.
    """
    for job in graph.jobs():
        os.utime(marker(job.stage, *job.cell.values()), LONG_AGO)
        for output in job.outputs.values():
            if output.exists() and output.stat().st_mtime > time.time():
                with contextlib.suppress(OSError):
                    os.utime(output)
