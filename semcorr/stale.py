"""Outputs that are not what params.yaml asks for now, or not what the stage wrote.

DVC finds them by content. Snakemake compares times and its own records, and trusts a file that DVC made or checked
out, or that a hand has changed; so the Snakefile removes what is stale before Snakemake looks. For that each stage
leaves a note in `.semcorr/` of the bytes it wrote; what DVC has put in their place is known by dvc.lock.
"""

import hashlib
import json
import logging
from pathlib import Path

from semcorr.errors import UserError
from semcorr.files import canonical_json, checksum, remove, write_json
from semcorr.graph import Graph, Job
from semcorr.provenance import expect

NOTES = Path(".semcorr")

logger = logging.getLogger("snakemake.logging")


def is_stale(job: Job) -> bool:
    """Whether the job's first output is there and carries another fingerprint than the job's, or none."""
    path = next(iter(job.outputs.values()))
    if job.stage == "validate" or not path.exists():
        return False
    try:
        expect(path, job.fingerprint)
    except UserError:
        return True
    return False


def note(job: Job) -> Path:
    """Where a job's note lies."""
    return NOTES / job.stage / f"{'-'.join(job.cell.values()) or 'all'}.json"


def remember(job: Job) -> None:
    """Note the outputs that a job has written: how each looks from outside, and its checksum."""
    there = [path for path in job.outputs.values() if path.exists()]
    write_json(note(job), {path.as_posix(): [_look(path), _checksum(path, "sha256")] for path in there})


def _files(path: Path) -> list[Path]:
    """A file, or all files of a folder in the order of their names."""
    if not path.is_dir():
        return [path]
    found = (file for file in path.rglob("*") if file.is_file() and file.name != ".snakemake_timestamp")
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def _look(path: Path) -> str:
    """Names, sizes and times of an output's files, as one short text."""
    stats = [(file.as_posix(), (found := file.stat()).st_size, found.st_mtime_ns) for file in _files(path)]
    return hashlib.sha256(canonical_json(stats).encode()).hexdigest()[:16]


def _checksum(path: Path, kind: str) -> str:
    """A checksum of an output's bytes; that of a folder as DVC forms it, over its files' names and checksums."""
    if not path.is_dir():
        return checksum(path, kind)
    entries = [{kind: checksum(file, kind), "relpath": file.relative_to(path).as_posix()} for file in _files(path)]
    return hashlib.new(kind, json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def overwritten(job: Job) -> list[Path]:
    """Outputs that hold neither what the job wrote nor what DVC has recorded. A job without a note has none."""
    looks = _noted(job)
    noted = {name: [look, written] for name, look, written in looks}
    found, touched = [], False
    for name, look, written in looks:
        path = Path(name)
        if not path.exists() or _look(path) == look:
            continue
        if _checksum(path, "sha256") == written:
            noted[name], touched = [_look(path), written], True
        elif not _is_dvcs(path):
            found.append(path)
    if touched:  # so that a large store is read once after a touch, and not each time
        write_json(note(job), noted)
    return found


def _noted(job: Job) -> list[tuple[str, str, str]]:
    """What a job noted of each output: its name, how it looked, and its checksum. Nothing where there is no note."""
    try:
        values = dict(json.loads(note(job).read_text(encoding="utf-8")))
        return [(name, look, written) for name, (look, written) in values.items()]
    except (OSError, ValueError, TypeError):
        return []


def _is_dvcs(path: Path) -> bool:
    """Whether an output has the checksum that dvc.lock records for it."""
    import yaml

    try:
        stages = yaml.load(Path("dvc.lock").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["stages"].values()
        outs = [out for stage in stages for out in stage.get("outs", [])]
        recorded = {out.get("md5") for out in outs if out["path"] == path.as_posix()}
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError):  # a killed DVC leaves half of it
        return False
    return _checksum(path, "md5") in recorded


def remove_stale(graph: Graph, *, dry_run: bool) -> list[Job]:
    """Remove all outputs of stale or overwritten jobs; a dry run only says so. Returns those jobs."""
    stale, changed = [], []
    for job in graph.jobs():
        if is_stale(job):
            stale.append((job, [next(iter(job.outputs.values()))]))
        elif paths := overwritten(job):
            changed.append((job, paths))
    for job, _ in (*stale, *changed):
        for path in job.outputs.values():
            if not dry_run:
                remove(path)
    verb = "would be removed and made again" if dry_run else "removed"
    for found, why in ((stale, "made under other parameters"), (changed, "changed since they were made")):
        if found:
            names = "\n".join(f"  {path}" for _, paths in found for path in paths)
            logger.warning(f"Outputs {why}, {verb}:\n{names}")
    return [job for job, _ in (*stale, *changed)]
