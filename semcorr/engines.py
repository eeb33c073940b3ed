"""One engine at a time in a folder, since each deletes and rewrites what the other plans with.

A lock of the system's, so that it ends with the process that holds it, however that ends. Snakemake holds it alone from
the moment it plans; stages that DVC runs hold it together, since DVC keeps order among its own.
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from semcorr.errors import UserError
from semcorr.files import has_no_locks, unwritable

LOCK = Path(".semcorr/engine.lock")

logger = logging.getLogger(__name__)

_held: list[IO[str]] = []  # until the process ends


def claim_for_snakemake() -> None:
    """Keep DVC and other Snakemakes out of this folder.

    Raises:
        UserError: one of them is at work.
    """
    _take(fcntl.LOCK_EX, "DVC, or another Snakemake,")


def claim_for_stage() -> None:
    """Keep Snakemake out of this folder, if it is DVC that runs this stage.

    Raises:
        UserError: Snakemake is at work.
    """
    if "DVC_STAGE" in os.environ:
        _take(fcntl.LOCK_SH, "Snakemake")


@contextlib.contextmanager
def nobody_at_work() -> Iterator[None]:
    """Keep both engines out while the block runs.

    Raises:
        UserError: one of them is at work.
    """
    held = _take(fcntl.LOCK_EX, "DVC or Snakemake")
    try:
        yield
    finally:
        if held is not None:
            _held.remove(held)
            held.close()


def _take(kind: int, other: str) -> IO[str] | None:
    with unwritable(LOCK):
        LOCK.parent.mkdir(exist_ok=True)
        file = LOCK.open("a")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{other} is at work in this folder. Wait until it has ended, then run again") from None
    except OSError as error:
        file.close()
        if not has_no_locks(error):
            raise UserError(f"{LOCK}: cannot be locked ({error.strerror})") from None
        logger.warning("this file system has no locks: start no second engine in this folder, it would not be noticed")
        return None
    _held.append(file)
    return file
