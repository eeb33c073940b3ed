"""Outputs made under other parameters than params.yaml has now.

DVC finds them by content. Snakemake compares times and its own records, and trusts a file that DVC made or checked
out; so the Snakefile removes what is stale before Snakemake looks.
"""

import logging

from semcorr.errors import UserError
from semcorr.files import remove
from semcorr.graph import Graph, Job
from semcorr.provenance import expect

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


def remove_stale(graph: Graph, *, dry_run: bool) -> list[Job]:
    """Remove all outputs of stale jobs; a dry run only says so. Returns those jobs."""
    stale = [job for job in graph.jobs() if is_stale(job)]
    for job in stale:
        for path in job.outputs.values():
            if not dry_run:
                remove(path)
    if stale:
        verb = "would be removed and made again" if dry_run else "removed"
        names = "\n".join(f"  {next(iter(job.outputs.values()))}" for job in stale)
        logger.warning(f"Outputs made under other parameters, {verb}:\n{names}")
    return stale
