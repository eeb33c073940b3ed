"""`semcorr run`: bring the experiment up to date through an engine, and show how far it is."""

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from semcorr.artifacts.files import remove
from semcorr.engine.at_work import others
from semcorr.engine.dvc_sync import repository
from semcorr.errors import UserError
from semcorr.params import Params

if TYPE_CHECKING:
    from semcorr.engine.plan import Step

COMMANDS = {
    "dvc": [sys.executable, "-m", "dvc", "repro"],
    "snakemake": [sys.executable, "-m", "snakemake", "--cores", "all"],
}
RWLOCK, SNAKEMAKE_LOCKS = Path(".dvc/tmp/rwlock"), Path(".snakemake/locks")
STARTED = re.compile(r"(Running stage|Stage) '(.+)'(:| is cached - skipping run)")
# What DVC says for those who call it themselves.
DVC_NOISE = re.compile(
    r"> python -m semcorr .*|Updating lock file .*|Stage '.*' didn't change.*|To track the changes with git.*|"
    r"\s*git add .*|To enable auto staging.*|\s*dvc config core.autostage.*|Use `dvc push`.*|params.yaml is valid|\s*"
)
SNAKEMAKE_RULE = re.compile(r"(?:local)?rule (\w+):")
SNAKEMAKE_ERROR = re.compile(r"Error in rule|.*(Error|Exception)( in |:)|semcorr: ")


def repair() -> list[str]:
    """Remove the locks that killed engines left behind, provided that no engine is at work here.

    Returns:
        What was removed.
    """
    locks = [*SNAKEMAKE_LOCKS.glob("*")] if SNAKEMAKE_LOCKS.is_dir() else []
    if RWLOCK.is_file() and not RWLOCK.stat().st_size:
        locks.append(RWLOCK)
    if not locks or others() or _engines():
        return []
    with repository() as repo, repo.lock if repo is not None else contextlib.nullcontext():  # or DVC begins meanwhile
        for lock in locks:
            remove(lock)
    return [str(lock) for lock in locks if not lock.exists()]


def _engines() -> list[str]:
    """Commands of the engines that run in this folder."""
    import psutil

    here, commands = str(Path.cwd()), []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            named = [word for word in command[:4] if Path(word).name in ("dvc", "snakemake")]
            if named and "daemon" not in command and process.cwd() == here:  # DVC's daemons look for updates
                commands.append(" ".join(command))
        except psutil.Error:  # it has ended, or belongs to somebody else
            continue
    return commands


def planned(params: Params, engine: str) -> tuple[list["Step"], float]:
    """What an engine would run, and the floating-point operations per second of this machine."""
    from semcorr.engine.plan import speed_here, steps  # torch, which a run that has nothing to do does not need

    return steps(params, restores=engine == "dvc"), speed_here(params)[0]


class Progress:
    """Numbers the jobs of a run as they start, and estimates the time that is left.

    Args:
        steps: the jobs that would run.
        speed: floating-point operations per second.
        show: prints a line.
    """

    def __init__(self, steps: list["Step"], speed: float, show: Callable[[str], None]):
        costs = {step.job.name: step.cost for step in steps if step.cost}
        self._seconds = {name: cost.seconds + cost.flops / speed for name, cost in costs.items()}
        self.disk = sum(cost.disk for cost in costs.values())
        self._titles = {step.job.name: step.job.title for step in steps}
        self._names = {title: name for name, title in self._titles.items()}
        self._started: list[str] = []
        self._start, self._show = time.monotonic(), show

    def __str__(self) -> str:
        time_, disk = tqdm.format_interval(sum(self._seconds.values())), tqdm.format_sizeof(self.disk)
        unknown = " and what depends on data not fetched yet" if len(self._seconds) < len(self._titles) else ""
        return f"{len(self._titles)} jobs, about {time_}{unknown}, {disk}B"

    def begin_titled(self, title: str) -> None:
        """The same of a job by its title."""
        if title in self._names:
            self.begin(self._names[title])

    def begin(self, name: str, restored: bool = False) -> None:
        """A job starts, or was restored; one that was not planned is left out."""
        if name not in self._titles or name in self._started:
            return
        estimates = [self._seconds.get(done, 0.0) for done in self._started]
        left = sum(self._seconds.values()) - sum(estimates)
        elapsed = time.monotonic() - self._start
        if sum(estimates) > 10:  # by then the run itself tells how fast the machine is
            left *= elapsed / sum(estimates)
        self._started.append(name)
        how = "restored from the cache" if restored else f"{tqdm.format_interval(left)} left"
        self._show(f"[{len(self._started)}/{len(self._titles)}] {self._titles[name]} ({how})")


def run(engine: str, progress: Progress, show: Callable[[str], None], more: Mapping[str, str]) -> None:
    """Run an engine to its end, with more in its environment.

    Raises:
        UserError: it failed.
        KeyboardInterrupt: it was stopped; it has ended by then.
    """
    # Jobs call `python`: this one, also where its environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment, dvc = os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", **more}, engine == "dvc"
    # What jobs say beside goes to the terminal: bars under DVC, results under Snakemake, whose jobs have log files.
    streams: dict[str, Any] = {"stdout": subprocess.PIPE if dvc else None, "stderr": None if dvc else subprocess.PIPE}
    process: Any = subprocess.Popen(COMMANDS[engine], env=environment, text=True, **streams)
    try:
        lines = iter((process.stdout if dvc else process.stderr).readline, "")
        (_follow_dvc if dvc else _follow_snakemake)(lines, progress, show)
    finally:
        code = process.wait()
    if code:
        raise UserError(f"{engine} stopped with an error, see above. Fix it and continue with: {again(engine)}")


def again(engine: str) -> str:
    """The command that continues a run."""
    return "semcorr run" if engine == "dvc" else f"semcorr run --engine {engine}"


def require_project(engine: str) -> None:
    """Check that the current folder is a project in which an engine can run.

    Raises:
        UserError: it is not; nothing has been written.
    """
    if not all(Path(name).exists() for name in ("dvc.yaml", "Snakefile")):
        raise UserError("no project here, with dvc.yaml and Snakefile. Make one: semcorr init FOLDER")
    if importlib.util.find_spec(engine) is None:
        raise UserError(f"{engine} is not installed. Install both engines: pip install 'semcorr[workflow]'")
    inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], capture_output=True, check=False)
    if engine == "dvc" and inside.returncode:
        raise UserError("this folder is in no git repository, which DVC needs. Make one: git init")


def _follow_dvc(lines: Iterator[str], progress: Progress, show: Callable[[str], None]) -> None:
    for line in map(str.rstrip, lines):
        if match := STARTED.match(line):
            progress.begin(match[2], restored=match[1] == "Stage")
        elif not DVC_NOISE.fullmatch(line):
            show(f"    {line}")


def _follow_snakemake(lines: Iterator[str], progress: Progress, show: Callable[[str], None]) -> None:
    """Snakemake names a rule, then its wildcards if it has any, then its resources."""
    rule, failed = "", False
    wildcards: list[str] = []
    for line in map(str.rstrip, lines):
        failed = failed or bool(SNAKEMAKE_ERROR.match(line))
        match = SNAKEMAKE_RULE.fullmatch(line)
        if rule and (match or not line or line.startswith("[") or line.strip().startswith("resources:")):
            progress.begin_titled(" ".join([rule, *wildcards]))
            rule = ""
        if match:
            rule, wildcards = match[1], []
        elif line.strip().startswith("wildcards: "):
            wildcards = [pair.partition("=")[2] for pair in line.partition(": ")[2].split(", ")]
        if failed or line.startswith("stale: "):
            show(f"    {line}")
