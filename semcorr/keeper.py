"""Beside a Snakemake at work: keeps DVC out, and afterwards tells DVC what was made.

A process of its own, since Snakemake may be killed at any moment: it waits for the end of its standard input, which
ends with Snakemake, and for stages that were left at work. Then each job that is current goes into dvc.lock and DVC's
cache, as `dvc commit` would put it there, so that `dvc repro` finds what Snakemake has made.

    python -m semcorr.keeper "snakemake --cores all"
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semcorr import basis, engines, params
from semcorr.current import Current
from semcorr.errors import UserError
from semcorr.graph import Graph

READY = "ready"

logger = logging.getLogger(__name__)


class Keeper:
    """Snakemake's side: starts the process, and waits for it at the end."""

    def __init__(self, command: str):
        self._command = command
        self._running: subprocess.Popen | None = None

    def start(self) -> None:
        """Keep DVC out from here on.

        Raises:
            UserError: DVC, or what is left of a run that was killed, is at work.
        """
        self._running = subprocess.Popen(
            [sys.executable, "-m", "semcorr.keeper", self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what stops Snakemake does not stop it
        )
        said = self._running.stdout.readline().strip()
        if said != READY:
            raise UserError(f"{said}{self._running.stdout.read()}".strip() or "semcorr.keeper ended before it began")

    def end(self) -> None:
        """Let it tell DVC what was made."""
        if self._running is not None:
            self._running.stdin.close()
            self._running.wait()


def main() -> None:
    """Keep, wait, record."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dvc").setLevel(logging.WARNING)
    command = sys.argv[1]
    try:
        with engines.at_work(command, alone=True), _known_to_dvc(command):
            sys.stdout.write(f"{READY}\n")
            sys.stdout.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read it may be gone
            sys.stdin.read()
            while [one for one in engines.others() if one.startswith("python -m semcorr ")]:
                time.sleep(0.2)
    except UserError as error:
        sys.stdout.write(f"{error}\n")
        raise SystemExit(2) from None
    try:
        with engines.at_work("semcorr.keeper: telling DVC what Snakemake made"):
            record()
    except UserError as error:
        logger.warning("dvc.lock was not brought up to date, the next Snakemake run does it: %s", error)


@contextlib.contextmanager
def repository() -> Iterator[Any]:
    """The project as DVC knows it; None where it does not, or is not installed.

    Raises:
        UserError: DVC is at work, or cannot read what it wrote.
    """
    if not Path(".dvc").is_dir():
        yield None
        return
    try:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo import Repo
        from scmrepo.exceptions import SCMError
    except ImportError:  # results can be made without an engine
        yield None
        return
    try:
        with Repo(".") as repo:
            yield repo
    except LockError as error:
        raise UserError(f"DVC is at work in this folder: {error}") from None
    except (DvcException, SCMError) as error:
        raise UserError(f"DVC: {error}; see docs/troubleshooting.md") from None


@contextlib.contextmanager
def _known_to_dvc(command: str) -> Iterator[None]:
    """Enter this process into DVC's table of who is at work, as one that may write to all of the project.

    Raises:
        UserError: DVC is at work.
    """
    with contextlib.ExitStack() as entered:
        with repository() as repo:
            if repo is not None:
                from dvc.rwlock import rwlock

                hardlink = repo.config["core"].get("hardlink_lock", False)
                with repo.lock:  # DVC holds it between two stages; while one runs, the stage stands in the table
                    entered.enter_context(rwlock(repo.tmp_dir, repo.fs, command, [], [repo.root_dir], hardlink))
        yield


def record() -> None:
    """Put every job that is current, and that dvc.lock does not know so, into dvc.lock and DVC's cache."""
    experiment = Graph(params.load())
    found = Current(experiment)
    names = {"validate", *(job.name for job in found.unrecorded)}
    if len(names) == 1 or not experiment.params.runtime.record:
        return
    with repository() as repo:
        if repo is None:
            return
        basis.write(found.basis)
        with repo.lock:
            stages = [stage for stage in repo.index.stages if stage.addressing in names]
            for stage in stages:
                stage.save()
                stage.commit()
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
        repo.state.links.clear()
    logger.info("%d jobs went into dvc.lock and DVC's cache", len(found.unrecorded))


def forget_links() -> None:
    """Let DVC forget which outputs it has linked.

    What another preset's parameters made would be removed by the next checkout that has no target, and `dvc exp run` is
    one: DVC takes for leftovers what params.yaml does not ask for now. Such files stay where they are.
    """
    with repository() as repo:
        if repo is not None:
            repo.state.links.clear()


if __name__ == "__main__":
    main()
