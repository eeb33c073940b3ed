"""Who is at work in a folder.

Each process that writes results holds a lock while it lives, on a file whose name says what it does. DVC keeps order
among its own stages, and Snakemake among its own jobs; `keeper` keeps the two apart.
"""

import contextlib
import os
from collections.abc import Iterator

from filelock import Timeout

from semcorr.artifacts.files import take_lock, unwritable
from semcorr.engine.memory import FOLDER
from semcorr.errors import UserError

AT_WORK = FOLDER / "at_work"


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
