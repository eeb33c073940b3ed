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
from semcorr.files import remove, sha256, write_json
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


def forget(job: Job) -> None:
    """Take a job's note away, before its outputs are written anew."""
    note(job).unlink(missing_ok=True)


def remember(job: Job) -> None:
    """Note the outputs that a job has written: size, time and checksum of each file."""
    files = {path.as_posix(): [*_stat(path), sha256(path)] for path in job.outputs.values() if path.is_file()}
    write_json(note(job), files)


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def overwritten(job: Job) -> list[Path]:
    """Outputs that hold neither what the job wrote nor what DVC has recorded. A job without a note has none."""
    try:
        noted = json.loads(note(job).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found, touched = [], False
    for name, (size, changed, digest) in noted.items():
        path = Path(name)
        if not path.is_file() or _stat(path) == [size, changed]:
            continue
        if sha256(path) == digest:
            noted[name], touched = [*_stat(path), digest], True
        elif not _is_dvcs(path):
            found.append(path)
    if touched:  # so that a large store is read once after a touch, and not each time
        write_json(note(job), noted)
    return found


def _is_dvcs(path: Path) -> bool:
    """Whether a file has the checksum that dvc.lock records for it."""
    import yaml

    try:
        stages = yaml.load(Path("dvc.lock").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["stages"].values()
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return False
    recorded = {out.get("md5") for stage in stages for out in stage.get("outs", []) if out["path"] == path.as_posix()}
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() in recorded


def remove_stale(graph: Graph, *, dry_run: bool) -> list[Job]:
    """Remove all outputs of stale or overwritten jobs; a dry run only says so. Returns those jobs."""
    stale, changed = [], []
    for job in graph.jobs():
        if is_stale(job):
            stale.append(job)
        elif overwritten(job):
            changed.append(job)
    for job in (*stale, *changed):
        for path in job.outputs.values():
            if not dry_run:
                remove(path)
    verb = "would be removed and made again" if dry_run else "removed"
    for jobs, why in ((stale, "made under other parameters"), (changed, "changed since they were made")):
        if jobs:
            names = "\n".join(f"  {next(iter(job.outputs.values()))}" for job in jobs)
            logger.warning(f"Outputs {why}, {verb}:\n{names}")
    return [*stale, *changed]
