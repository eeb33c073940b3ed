"""Who is at work in a folder, and what Snakemake and DVC are told.

Each process that writes results holds a lock of the system's while it lives, on a file that says what it does: however
it ends, the lock ends with it. DVC keeps order among its own stages, and Snakemake among its own jobs; the two are kept
apart by DVC's own table of who is at work, in which `keeper` enters Snakemake.
"""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from semcorr.errors import UserError
from semcorr.files import has_no_locks, unwritable, write_text
from semcorr.graph import Graph, Job
from semcorr.memory import FOLDER

AT_WORK = FOLDER / "at_work"
MARKERS = FOLDER / "markers"
LONG_AGO = 1.0  # seconds of the clock: earlier than any output

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def at_work(what: str, alone: bool = False) -> Iterator[None]:
    """Let others see what this process does, while the block runs.

    Args:
        what: in the words of a command line; two processes never do the same at once.
        alone: whether nothing else may be at work.

    Raises:
        UserError: something is at work that is in the way.
    """
    mine = AT_WORK / f"{socket.gethostname()}-{os.getpid()}"
    begun = mine.with_suffix(".new")  # gets its name once it is locked, so that nobody takes it for one that was left
    with unwritable(AT_WORK):
        AT_WORK.mkdir(parents=True, exist_ok=True)
        file = begun.open("w")
    with file:
        if not _lock(file.fileno()):
            logger.warning("this file system has no locks: start no second engine here, it would not be noticed")
        file.write(f"{what} (process {os.getpid()})")
        file.flush()
        begun.replace(mine)
        try:
            found = [one for one in others() if alone or one.startswith(f"{what} (")]
            if found:
                raise UserError(
                    f"at work in this folder: {', '.join(found)}. Wait until that has ended, then run again"
                )
            yield
        finally:
            mine.unlink(missing_ok=True)


def others() -> list[str]:
    """What other processes are at work on in this folder; what is left of those that were killed is removed."""
    found = []
    for path in sorted(AT_WORK.glob("*")) if AT_WORK.exists() else ():
        if path.suffix == ".new" or path.name == f"{socket.gethostname()}-{os.getpid()}":
            continue
        with contextlib.suppress(FileNotFoundError), path.open("r+") as file:
            try:
                _lock(file.fileno())
                path.unlink(missing_ok=True)
            except BlockingIOError:
                found.append(file.read())
    return found


def _lock(file: int) -> bool:
    """Lock an open file; False where the file system cannot.

    Raises:
        BlockingIOError: another process has.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if not has_no_locks(error):
            raise
        return False
    return True


def marker(job: Job) -> Path:
    """The file through which Snakemake is told whether a job is stale: an input that is newer than its outputs then."""
    return MARKERS / job.stage / ("-".join(job.cell.values()) or "all")


def mark(graph: Graph, stale: dict[str, str]) -> None:
    """Set the markers of all jobs.

    Only the marker's time is ever set back, not an output's: DVC's cache may be the same file.
    """
    for job in graph.jobs():
        path = marker(job)
        why = stale.get(job.name)
        if why is None:
            _age(path)
            continue
        # Other bytes each time: what equals the input that Snakemake remembers does not count as newer.
        write_text(path, f"{why}\n{time.time_ns()}\n")
        newest = max((output.stat().st_mtime for output in job.outputs.values() if output.exists()), default=0.0)
        if newest > path.stat().st_mtime:  # made under a clock that is ahead
            os.utime(path, (newest + 1, newest + 1))


def reasons(stale: dict[str, str]) -> list[str]:
    """Why jobs are stale, a line for each reason; those that follow from others, or were never made, are left out."""
    found: dict[str, list[str]] = {}
    for name, why in stale.items():
        if not why.startswith("follows from ") and not why.endswith(" is not there"):
            found.setdefault(why, []).append(name)
    more = {why: f" and {len(names) - 1} more" if len(names) > 1 else "" for why, names in found.items()}
    return [f"stale: {names[0]}{more[why]}: {why}" for why, names in found.items()]


def begin(graph: Graph) -> None:
    """Make all markers old, once it is planned what runs: Snakemake compares them with what was made, again."""
    for job in graph.jobs():
        _age(marker(job))


def _age(path: Path) -> None:
    if not path.exists():
        write_text(path, "")
    if path.stat().st_mtime != LONG_AGO:
        os.utime(path, (LONG_AGO, LONG_AGO))


def make_writable(jobs: Iterable[Job]) -> None:
    """Give write permission for outputs that DVC took it from: Snakemake refuses to make such a file anew.

    Nothing here writes into a file in place, so DVC's cache, which may be the same file, stays as it is.
    """
    for job in jobs:
        for path in job.outputs.values():
            if path.exists() and not os.access(path, os.W_OK) and not path.is_symlink():
                with contextlib.suppress(OSError):  # not ours: Snakemake says so
                    path.chmod(path.stat().st_mode | 0o200)
