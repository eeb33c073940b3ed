"""How Snakemake is told what is stale: a file per job, newer than the job's outputs if it must run."""

import contextlib
import os
import time
from pathlib import Path

from semcorr.artifacts.files import write_text
from semcorr.engine.graph import Graph
from semcorr.engine.memory import FOLDER

LONG_AGO = (1.0, 1.0)  # epoch seconds, earlier than any output


def marker(stage: str, *cell: str) -> Path:
    """The file that tells Snakemake whether a job is stale: an input, newer than the outputs if so."""
    return FOLDER / "markers" / stage / ("-".join(cell) or "all")


def mark(graph: Graph, stale: dict[str, str]) -> None:
    """Set the times of all markers: new if the job is stale, old if not.

    Only a marker's time is set, never an output's, which DVC's cache may share. Outputs get back the write permission
    that DVC removes, since Snakemake refuses to replace read-only files. Nothing here writes to a file in place.
    """
    for job in graph.jobs():
        path = marker(job.stage, *job.cell.values())
        outputs = [output for output in job.outputs.values() if output.exists()]
        if job.name in stale or not path.exists():  # new bytes: Snakemake compares checksums too
            write_text(path, f"{stale.get(job.name)}\n{time.time_ns()}\n")
        newest = max([output.stat().st_mtime + 1 for output in outputs] + [time.time()])  # a clock may have been ahead
        os.utime(path, (newest, newest) if job.name in stale else LONG_AGO)
        for output in outputs:
            if not os.access(output, os.W_OK):
                with contextlib.suppress(OSError):  # not our file: Snakemake reports it
                    output.chmod(output.stat().st_mode | 0o200)


def age(graph: Graph) -> None:
    """Make all markers old once the run is planned, since Snakemake compares them with new outputs again.

    Outputs dated in the future get the current time, since Snakemake refuses outputs older than their inputs.
    """
    for job in graph.jobs():
        os.utime(marker(job.stage, *job.cell.values()), LONG_AGO)
        for output in job.outputs.values():
            if output.exists() and output.stat().st_mtime > time.time():
                with contextlib.suppress(OSError):
                    os.utime(output)
