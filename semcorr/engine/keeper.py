"""Snakemake's side of the truth: what it is told at its start, and what DVC is told at its end.

Beside a Snakemake at work runs a process of this module. It keeps DVC out, waits for the end of its standard input,
which ends with Snakemake, however that ends, and for stages that were left at work. Then each job that is current goes
into dvc.lock and DVC's cache, as `dvc commit` would put it there, so that `dvc repro` has nothing to do.

    python -m semcorr.engine.keeper "snakemake --cores all"
"""

import contextlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semcorr import params
from semcorr.artifacts.files import has_locks
from semcorr.engine import basis, markers
from semcorr.engine.at_work import at_work, others
from semcorr.engine.current import Current, remember_recorded
from semcorr.engine.graph import Graph
from semcorr.errors import UserError
from semcorr.networks import architectures

READY = "ready"

logger = logging.getLogger(__name__)


class Keeper:
    """What the Snakefile needs.

    Args:
        graph: of the experiment.
        command: how Snakemake was called.
        plans: whether this process decides what runs.

    Attributes:
        remade: outputs of stale jobs.
    """

    def __init__(self, graph: Graph, command: list[str], plans: bool):
        self._graph, self._command = graph, " ".join(["snakemake", *command])
        self._running: subprocess.Popen | None = None
        found = Current(graph) if plans else None
        self._stale = found.stale if found else {}
        jobs = [job for job in graph.jobs() if job.name in self._stale]
        self.remade = {path.as_posix() for job in jobs for path in job.outputs.values()}
        if plans:
            markers.mark(graph, self._stale)
            self._say_why()
        told = graph.params.runtime.record and Path(".dvc").is_dir()
        self._missed = bool(told and found and found.unrecorded)

    def _say_why(self) -> None:
        """A line for each reason; jobs that only follow from others are left out."""
        reasons: dict[str, list[str]] = {}
        for name, why in self._stale.items():
            if not why.startswith("follows from "):
                reasons.setdefault("not there" if why.endswith(" is not there") else why, []).append(name)
        for why, (name, *rest) in reasons.items():
            more = f" and {len(rest)} more" if rest else ""
            logging.getLogger("snakemake.logging").info(f"stale: {name}{more}: {why}")

    def start(self) -> None:
        """Keep DVC out from here on.

        Raises:
            UserError: DVC is at work, or what is left of a run that was killed, or something has changed meanwhile.
        """
        self._running = subprocess.Popen(
            [sys.executable, "-m", "semcorr.engine.keeper", self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # what stops Snakemake does not stop it
        )
        said = self._running.stdout.readline().strip()
        if said != READY:
            raise UserError(f"{said} {self._running.stdout.read()}".strip())
        now = Current(self._graph)
        if now.stale != self._stale:
            raise UserError("something has changed while Snakemake planned; run it again")
        architectures.check(self._graph.params)
        basis.write(now.basis)
        markers.age(self._graph)

    def catch_up(self) -> None:
        """Let DVC be told what is current and it does not know so: a keeper was killed, or dvc.lock put back.

        Before Snakemake plans: with nothing to do, it calls nothing else.
        """
        if self._missed:
            subprocess.run(
                [sys.executable, "-m", "semcorr.engine.keeper", self._command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=False,
            )

    def end(self) -> None:
        """Let DVC be told what was made."""
        if self._running is not None:
            self._running.stdin.close()
            self._running.wait()


def main() -> None:
    """Keep, wait, record."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with at_work(sys.argv[1], alone=True), known_to_dvc(sys.argv[1]):
            sys.stdout.write(f"{READY}\n")
            sys.stdout.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read it may be gone
            sys.stdin.read()
            while any(one.startswith("python -m semcorr ") for one in others()):
                time.sleep(0.2)
    except UserError as error:
        sys.stdout.write(f"{error}\n")
        raise SystemExit(2) from None
    try:
        with at_work("telling DVC what Snakemake made"):
            record()
    except (UserError, OSError) as error:
        logger.warning("dvc.lock was not brought up to date; the next snakemake --cores does it (%s)", error)


@contextlib.contextmanager
def repository() -> Iterator[Any]:
    """The project as DVC knows it; None where it does not, or is not installed.

    Raises:
        UserError: DVC is at work, or cannot read or write what is its own.
    """
    try:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo import Repo
        from scmrepo.exceptions import SCMError
    except ImportError:  # results can be made without an engine
        yield None
        return
    opened = contextlib.nullcontext()
    # In a folder that git does not know, DVC does nothing at all.
    with contextlib.suppress(DvcException, SCMError):
        found = Repo(".") if Path(".dvc").is_dir() else None
        opened = found if found and found.scm is not None else opened
    try:
        with opened as repo:
            yield repo
    except LockError as error:
        who = ", ".join(dict.fromkeys(re.findall(r"\(PID \d+\): .*", str(error)))) or "between two stages, or looking"
        raise UserError(f"DVC is at work in this folder: {who}. Wait until it has ended, then run again") from None
    except DvcException as error:
        raise UserError(f"DVC: {error}; see docs/troubleshooting.md") from None


@contextlib.contextmanager
def known_to_dvc(command: str) -> Iterator[None]:
    """Enter this process into DVC's table of who is at work, as one that may write to all of the project.

    Raises:
        UserError: DVC is at work.
    """
    with contextlib.ExitStack() as entered:
        with repository() as repo:
            hardlink = repo is not None and repo.config["core"].get("hardlink_lock", False)
            if repo is not None and not hardlink and not has_locks(Path(".dvc")):
                logger.warning(
                    "this file system has no locks: do not start DVC here meanwhile, it would not be noticed"
                )
            elif repo is not None:
                from dvc.rwlock import rwlock

                with repo.lock:  # DVC holds it between two stages; while one runs, the stage stands in the table
                    entered.enter_context(rwlock(repo.tmp_dir, repo.fs, command, [], [repo.root_dir], hardlink))
        yield


def record() -> None:
    """Put every job that is current, and that dvc.lock does not know so, into dvc.lock and DVC's cache."""
    experiment = Graph(params.load())
    found = Current(experiment)
    names = {"validate", *(job.name for job in found.unrecorded)}
    with repository() as repo:
        if repo is None or not found.unrecorded or not experiment.params.runtime.record:
            return
        logger.info("putting %d jobs into dvc.lock and DVC's cache", len(found.unrecorded))
        basis.write(found.basis)
        with repo.lock:
            stages = [stage for stage in repo.index.stages if stage.addressing in names]
            for stage in stages:
                stage.save()
                stage.commit()
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
        remember_recorded(found.unrecorded)
        repo.state.links.clear()


def forget_links() -> None:
    """Let DVC forget which outputs it has linked.

    What another preset's parameters made would be removed by the next checkout that has no target, and `dvc exp run` is
    one: DVC takes for leftovers what params.yaml does not ask for now. Such files stay where they are.
    """
    with contextlib.suppress(UserError), repository() as repo:
        if repo is not None:
            repo.state.links.clear()


if __name__ == "__main__":
    main()
