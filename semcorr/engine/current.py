"""Which jobs are current: those whose parameters, code, inputs and outputs match a record.

A job has up to two records: the note that it wrote itself, and its entry in dvc.lock. Both hold the command, the values
of the parameters that it reads, and checksums of everything that it read and wrote. A job is current if one of them
still matches, by content alone, and all jobs that it depends on are current. `semcorr plan` and the Snakefile use this
module; DVC decides for itself, by the same rule.
"""

import contextlib
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from semcorr.artifacts.files import write_json
from semcorr.engine import basis, code
from semcorr.engine.graph import Graph, Job
from semcorr.engine.memory import FOLDER, Memory
from semcorr.errors import UserError
from semcorr.params import PARAMS_FILE, leaves, load

LOCK = Path("dvc.lock")
UNKNOWN = "no record of how it was made"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The state of a job at the end of its run.

    Attributes:
        command: its command line.
        settings: the values of the parameters that it reads, by key.
        reads, outputs: MD5 by path; a folder's is computed as DVC does.
        recorded: whether it is in dvc.lock and DVC's cache.
    """

    command: str
    settings: dict[str, Any]
    reads: dict[str, str]
    outputs: dict[str, str]
    recorded: bool = True


class Current:
    """Which jobs of an experiment are current, and which are stale.

    Attributes:
        stale: name of a stale job -> why, in order of dependency.
        unrecorded: current jobs that are not current in dvc.lock.
        basis: the current text of each file of the basis.
    """

    def __init__(self, graph: Graph):
        self._memory = Memory()
        self._locked = _locked()
        self.basis = basis.texts(graph, self._memory)
        self.stale: dict[str, str] = {}
        self.unrecorded: list[Job] = []
        self._remade: dict[Path, str] = {}  # outputs of stale jobs and their parent folders -> the job
        for job in graph.jobs():
            if job.stage == "validate":
                continue
            why = self._why(job)
            before = next((self._remade[path] for path in job.reads if path in self._remade), None)
            if why is None and before:
                why = f"follows from {before}"
            if why is not None:
                self.stale[job.name] = why
                for path in job.outputs.values():
                    self._remade |= dict.fromkeys([path, *path.parents], job.title)
        self.unrecorded = [job for job in self.unrecorded if job.name not in self.stale]
        self._memory.save()

    def _why(self, job: Job) -> str | None:
        """Why a job is stale in itself; None if it is not."""
        missing = next((path for path in job.outputs.values() if not path.exists()), None)
        if missing is not None:
            return f"{missing} is missing"
        now = {path.as_posix(): self._md5(path) for path in (*job.reads, *job.outputs.values())}
        locked, noted = self._locked.get(job.name), _noted(job)
        reasons = [self._difference(job, record, now) if record else UNKNOWN for record in (locked, noted)]
        if None not in reasons:
            return next((why for why in reversed(reasons) if why != UNKNOWN), UNKNOWN)
        if reasons[0] is not None or not (noted is None or noted.recorded):
            self.unrecorded.append(job)
        return None

    def _difference(self, job: Job, record: Record, now: dict[str, str | None]) -> str | None:
        """What differs from a record; None if nothing does."""
        if record.command != job.command:
            return "its command has changed"
        if record.settings != job.settings:
            before, after = leaves(record.settings), leaves(job.settings)
            keys = [key for key in {**after, **before} if after.get(key, ...) != before.get(key, ...)]
            lists = dict.fromkeys(re.sub(r"(\.\d+)+$", "", key) for key in keys)  # a list's own key, not its items'
            return f"changed in params.yaml: {', '.join(lists or job.settings)}"
        for paths, noted in ((job.reads, record.reads), (job.outputs.values(), record.outputs)):
            if {path.as_posix() for path in paths} != set(noted):
                return "it reads or writes different files"
            for path in paths:
                if now[path.as_posix()] != noted[path.as_posix()] and path not in self._remade:
                    return self._changed(path, noted[path.as_posix()], made=path in job.outputs.values())
        return None

    def _changed(self, path: Path, noted: str, made: bool) -> str:
        """The reason for a changed file; for a file of the basis, which of its lines, if the old one still exists."""
        if path not in self.basis:
            return f"{path} was changed after it was made" if made else f"{path} has changed"
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if hashlib.md5(before.encode()).hexdigest() != noted:
            return f"code or local files have changed ({path})"
        lines = set(before.splitlines()) ^ set(self.basis[path].splitlines())
        names = sorted({line.partition("  ")[2] for line in lines} - {""})
        return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} changed"

    def _md5(self, path: Path) -> str | None:
        if path in self.basis:
            return hashlib.md5(self.basis[path].encode()).hexdigest()
        return self._memory.md5(path) if path.exists() else None


def _note(job: Job) -> Path:
    return FOLDER / "notes" / job.stage / f"{'-'.join(job.cell.values()) or 'all'}.json"


def _noted(job: Job) -> Record | None:
    """A job's own record."""
    try:
        return Record(**json.loads(_note(job).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _locked() -> dict[str, Record]:
    """The records in dvc.lock, by job; none if it is missing or damaged."""
    from ruamel.yaml import YAML, YAMLError

    try:
        stages = YAML(typ="safe").load(LOCK.read_text(encoding="utf-8"))["stages"]
        return {
            name: Record(
                command=stage["cmd"],
                settings=stage.get("params", {}).get(PARAMS_FILE.as_posix(), {}),
                reads={entry["path"]: entry["md5"] for entry in stage.get("deps", [])},
                outputs={entry["path"]: entry["md5"] for entry in stage.get("outs", [])},
            )
            for name, stage in stages.items()
        }
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError, YAMLError):
        return {}


def remember_recorded(jobs: Iterable[Job]) -> None:
    """Note that DVC has recorded these jobs."""
    for job in jobs:
        record = _noted(job)
        if record is not None:
            write_json(_note(job), asdict(replace(record, recorded=True)))


@contextlib.contextmanager
def noted(job: Job, graph: Graph) -> Iterator[None]:
    """Load a job's code, and record what the job read and wrote when the block that runs it succeeds.

    Raises:
        UserError: its inputs have changed since it began; or, under DVC, its code or data since `validate` ran.
    """
    memory, under_dvc = Memory(), "DVC_STAGE" in os.environ
    texts = {path: basis.text(job, path, graph.params, memory) for path in job.basis}
    loaded = [name for names in job.basis.values() for name in code.modules(memory, *names) if "/" not in name]
    own = {name.partition(".")[0] for name in loaded} - {"semcorr"}
    files = [file for name in loaded if (file := code.file_of(name, own))]
    times = [file.stat().st_mtime_ns for file in files]
    for name in loaded:  # all of it now, so that no later edit affects the job
        if name.partition(".")[0] in own:
            from semcorr import plugins

            plugins.imported(name)
        else:
            importlib.import_module(name)
    same = all(basis.text(job, path, graph.params, memory) == text for path, text in texts.items())
    if not same or times != [file.stat().st_mtime_ns for file in files]:
        raise UserError(f"{job.name}: its code has changed while it was loaded. Run again")
    if under_dvc:
        _require_basis(texts)
    inputs = [path for path in job.reads if path not in texts]
    before = {path.as_posix(): memory.md5(path) for path in inputs if path.exists()}
    yield
    for name, digest in before.items():
        if memory.md5(Path(name)) != digest:
            raise UserError(f"{name}: has changed while {job.name} read it. Run again")
    record = Record(
        command=job.command,
        settings=job.settings,
        reads=before | {path.as_posix(): hashlib.md5(text.encode()).hexdigest() for path, text in texts.items()},
        outputs={path.as_posix(): memory.md5(path) for path in job.outputs.values()},
        recorded=under_dvc,  # DVC records it when the job ends
    )
    write_json(_note(job), asdict(record))
    memory.save()
    if under_dvc:  # DVC records the files as they are now, not as the job read them
        _require_basis(texts)
        now = [current for current in Graph(load()).jobs() if current.name == job.name]
        if not now or now[0].settings != job.settings:
            raise UserError(f"params.yaml has changed while {job.name} ran. Run: dvc repro")


def _require_basis(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path}: code or data have changed since this run began. Run: dvc repro")
