"""What Snakemake is told when it starts, and what DVC is told when Snakemake ends.

A process of this module runs alongside Snakemake. It keeps DVC out, and waits for the end of its standard input, which
comes with Snakemake's own, however that ends, and for any stages left running. It then puts every current job into
dvc.lock and DVC's cache, as `dvc commit` would, so that `dvc repro` has nothing to do.

    python -m semcorr.engine.dvc_sync "snakemake --cores all"
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
from semcorr.engine.project import require_dvcs_keys
from semcorr.errors import UserError
from semcorr.networks import architectures

READY = "ready"

logger = logging.getLogger(__name__)


class DVCSync:
    """The Snakefile's interface.

    Args:
        graph: of the experiment.
        command: Snakemake's arguments.
        plans: whether this process decides what runs.

    Attributes:
        remade: outputs of stale jobs.
    """

    def __init__(self, graph: Graph, command: list[str], plans: bool):
        self._graph, self._command = graph, " ".join(["snakemake", *command])
        self._running: Any = None  # the process beside Snakemake
        current = Current(graph) if plans else None
        self._stale = current.stale if current else {}
        jobs = [job for job in graph.jobs() if job.name in self._stale]
        self.remade = {path.as_posix() for job in jobs for path in job.outputs.values()}
        if plans:
            markers.mark(graph, self._stale)
            self._say_why()
        records = graph.params.runtime.record and Path(".dvc").is_dir()
        self._missed = bool(records and current and current.unrecorded)

    def _say_why(self) -> None:
        """Log one line per reason, without jobs that only follow from others."""
        reasons: dict[str, list[str]] = {}
        for name, why in self._stale.items():
            if not why.startswith("follows from "):
                reasons.setdefault("missing" if why.endswith(" is missing") else why, []).append(name)
        for why, (name, *rest) in reasons.items():
            more = f" and {len(rest)} more" if rest else ""
            logging.getLogger("snakemake.logging").info(f"stale: {name}{more}: {why}")

    def start(self) -> None:
        """Keep DVC out from now on.

        Raises:
            UserError: DVC or part of a killed run is at work, or something has changed meanwhile.
        """
        self._running = subprocess.Popen(
            [sys.executable, "-m", "semcorr.engine.dvc_sync", self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that Ctrl-C stops only Snakemake
        )
        line = self._running.stdout.readline().strip()
        if line != READY:
            raise UserError(f"{line} {self._running.stdout.read()}".strip())
        now = Current(self._graph)
        if now.stale != self._stale:
            raise UserError("something has changed while Snakemake planned; run it again")
        architectures.check(self._graph.params)
        basis.write(now.basis)
        markers.age(self._graph)

    def catch_up(self) -> None:
        """Record current jobs that dvc.lock lacks, after a keeper was killed or dvc.lock was restored.

        This runs before Snakemake plans, since with nothing to do Snakemake calls nothing else.
        """
        if self._missed:
            subprocess.run(
                [sys.executable, "-m", "semcorr.engine.dvc_sync", self._command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=False,
            )

    def end(self) -> None:
        """Record in DVC what was made."""
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
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # its reader may have exited
            sys.stdin.read()
            while any(name.startswith("python -m semcorr ") for name in others()):
                time.sleep(0.2)
    except UserError as error:
        sys.stdout.write(f"{error}\n")
        raise SystemExit(2) from None
    try:
        with at_work("telling DVC what Snakemake made"):
            record()
    except (UserError, OSError) as error:
        logger.warning("dvc.lock was not updated; the next snakemake --cores will do it (%s)", error)


@contextlib.contextmanager
def repository() -> Iterator[Any]:
    """The project's DVC repository; None if there is none, or DVC is not installed.

    Raises:
        UserError: DVC is at work, or cannot read or write its own files.
    """
    try:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError
        from dvc.repo import Repo
        from scmrepo.exceptions import SCMError
    except ImportError:  # DVC is optional
        yield None
        return
    opened = contextlib.nullcontext()
    # Outside a git repository, DVC does nothing.
    with contextlib.suppress(DvcException, SCMError):
        project = Repo(".") if Path(".dvc").is_dir() else None
        opened = project if project and project.scm is not None else opened
    try:
        with opened as repo:
            yield repo
    except LockError as error:
        who = ", ".join(dict.fromkeys(re.findall(r"\(PID \d+\): .*", str(error)))) or "between stages, or in dvc status"
        raise UserError(f"DVC is at work in this folder: {who}. Wait until it has ended, then run again") from None
    except DvcException as error:
        raise UserError(f"DVC: {error}; see docs/troubleshooting.md") from None


@contextlib.contextmanager
def known_to_dvc(command: str) -> Iterator[None]:
    """Register this process in DVC's lock table as a writer of the whole project.

    Raises:
        UserError: DVC is at work.
    """
    with contextlib.ExitStack() as entered:
        with repository() as repo:
            hardlink = repo is not None and repo.config["core"].get("hardlink_lock", False)
            if repo is not None and not hardlink and not has_locks(Path(".dvc")):
                logger.warning("this file system has no locks: do not start DVC meanwhile, it would not be noticed")
            elif repo is not None:
                from dvc.rwlock import rwlock

                with repo.lock:  # DVC holds it between two stages; a running stage is in the table
                    entered.enter_context(rwlock(repo.tmp_dir, repo.fs, command, [], [repo.root_dir], hardlink))
        yield


def record() -> None:
    """Put every current job that dvc.lock lacks into dvc.lock and DVC's cache."""
    experiment = Graph(params.load())
    current = Current(experiment)
    names = {"validate", *(job.name for job in current.unrecorded)}
    with repository() as repo:
        if repo is None or not current.unrecorded or not experiment.params.runtime.record:
            return
        require_dvcs_keys(experiment.params)
        logger.info("putting %d jobs into dvc.lock and DVC's cache", len(current.unrecorded))
        basis.write(current.basis)
        with repo.lock:
            stages = [stage for stage in repo.index.stages if stage.addressing in names]
            for stage in stages:
                stage.save()
                stage.commit()
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
        remember_recorded(current.unrecorded)
        repo.state.links.clear()


def forget_links() -> None:
    """Make DVC forget which outputs it has linked, so that those of other presets stay.

    Otherwise the next checkout without a target, for instance by `dvc exp run`, would remove them as unused.
    """
    with contextlib.suppress(UserError), repository() as repo:
        if repo is not None:
            repo.state.links.clear()


if __name__ == "__main__":
    main()
