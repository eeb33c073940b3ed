"""Which processes are at work in a folder.

Each process that writes results holds a lock on a file whose name says what it does. DVC coordinates its own stages,
Snakemake its own jobs; `dvc_sync` keeps the two apart.
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
    """Announce what this process does while the block runs.

    Args:
        what: a command line; no two processes may run the same one at once.
        alone: whether no other process may be at work.

    Raises:
        UserError: a conflicting process is at work.
    """
    path = AT_WORK / f"{what.replace('/', ' ')[:200]} (process {os.getpid()})"
    with unwritable(AT_WORK):
        AT_WORK.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
    try:
        busy = [name for name in others() if alone or name.startswith(path.name.rpartition("(")[0])]
        if busy:
            raise UserError(f"at work in this folder: {', '.join(busy)}. Wait until that has ended, then run again")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def others() -> list[str]:
    """What other processes do in this folder; files left by killed processes are removed."""
    names = []
    for path in sorted(AT_WORK.glob("*)")):
        if path.name.endswith(f"(process {os.getpid()})"):
            continue
        try:
            lock = take_lock(path, 0)
        except (Timeout, PermissionError):  # another user's lock counts as held
            names.append(path.name)
        else:
            path.unlink(missing_ok=True)
            lock.release()
    return names
