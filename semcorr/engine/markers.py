"""How Snakemake is told what is stale: a file per job, newer than the job's outputs where it must run."""

import contextlib
import os
import time
from pathlib import Path

from semcorr.artifacts.files import write_text
from semcorr.engine.graph import Graph
from semcorr.engine.memory import FOLDER

LONG_AGO = (1.0, 1.0)  # seconds of the clock: earlier than any output


def marker(stage: str, *cell: str) -> Path:
    """The file through which Snakemake is told whether a job is stale: an input that is newer than its outputs then."""
    return FOLDER / "markers" / stage / ("-".join(cell) or "all")


def mark(graph: Graph, stale: dict[str, str]) -> None:
    """Set the markers of all jobs: new where a job is stale, old where not.

    A marker's time alone is set, never an output's: DVC's cache may be the same file. Outputs get write permission,
    which DVC takes from them: Snakemake refuses to make such a file anew. Nothing here writes into a file in place.
    """
    for job in graph.jobs():
        path = marker(job.stage, *job.cell.values())
        made = [output for output in job.outputs.values() if output.exists()]
        if job.name in stale or not path.exists():  # other bytes each time: what Snakemake has seen is never newer
            write_text(path, f"{stale.get(job.name)}\n{time.time_ns()}\n")
        newest = max([output.stat().st_mtime + 1 for output in made] + [time.time()])  # some are of a clock ahead
        os.utime(path, (newest, newest) if job.name in stale else LONG_AGO)
        for output in made:
            if not os.access(output, os.W_OK):
                with contextlib.suppress(OSError):  # not ours: Snakemake says so
                    output.chmod(output.stat().st_mode | 0o200)


def age(graph: Graph) -> None:
    """Make all markers old, once it is planned what runs: Snakemake compares them with what was made, again.

    And what was made under a clock that is ahead is of now: Snakemake refuses what is older than its inputs.
    """
    for job in graph.jobs():
        os.utime(marker(job.stage, *job.cell.values()), LONG_AGO)
        for output in job.outputs.values():
            if output.exists() and output.stat().st_mtime > time.time():
                with contextlib.suppress(OSError):
                    os.utime(output)
