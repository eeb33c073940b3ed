"""Shared by all rules: params.yaml is validated once, outputs made under other parameters are removed, GPUs counted.

INPUTS
    params.yaml
OUTPUTS
    data/params.checked
"""

import logging
import sys
from pathlib import Path

from snakemake.io import _IOFile

from semcorr import graph as stage_graph
from semcorr import params as experiment
from semcorr.engines import claim_for_snakemake
from semcorr.errors import UserError
from semcorr.stages.validate import validate
from semcorr.stale import remove_stale
from semcorr.watched import files, link


def load_experiment():
    """The validated parameters; a mistake, or an override that the stages could not see, ends the run."""
    try:
        values = experiment.load()
        if values.to_dict() != config:
            raise UserError(
                "params.yaml: --config and --configfile are not supported, since the stages and DVC could not see "
                "them, and numbers must be written as 1.0e-4, not 1e-4. Edit params.yaml"
            )
    except UserError as error:
        sys.exit(f"semcorr: {error}")
    return values


def begin():
    """Keep DVC out until this Snakemake ends, and watch data; the run ends where it is at work or data are gone."""
    try:
        claim_for_snakemake()
        link(EXPERIMENT.params)
    except UserError as error:
        sys.exit(f"semcorr: {error}")


EXPERIMENT = stage_graph.Graph(load_experiment())
GRID = config["grid"]
PRESET = config["preset"]
NAMES = r"[a-z0-9_]+"


async def never_protected(self):
    """DVC takes write permission from what it links into its cache; such a file may be removed and made again."""
    return False


# Snakemake refuses to make a write-protected file again, and has no option for it. Nothing here writes in place.
_IOFile.protected = never_protected

# One job at a time on the GPU unless told otherwise: --resources gpu=4.
workflow.global_resources.setdefault("gpu", config["runtime"]["processes"])

# What only looks must not delete; which of these it is, Snakemake says nowhere else when it reads this file.
LOOKS = {"--lint", "--list-rules", "--summary", "--detailed-summary", "--report", "--unlock"}
LOOKS |= {"--dag", "--rulegraph", "--filegraph", "--d3dag", "--list-input-changes", "--list-params-changes"}
if workflow.is_main_process:
    looks_only = workflow.output_settings.dryrun or not LOOKS.isdisjoint(sys.argv)
    if not looks_only:
        begin()
    remove_stale(EXPERIMENT, dry_run=looks_only)
    if not looks_only:
        # DVC's stage `validate`, so that `dvc commit` can adopt what Snakemake makes.
        try:
            validate(EXPERIMENT.job("validate"), EXPERIMENT.params)
        except UserError as error:
            sys.exit(f"semcorr: {error}")


def code(stage):
    """Package files that a stage's result depends on."""
    return stage_graph.code_files(stage)


def everything():
    """All outputs of all stages."""
    return [path for job in EXPERIMENT.jobs() if job.stage != "validate" for path in job.outputs.values()]


def settings(stage):
    """A function of wildcards: the parameters that a stage reads, so that a change re-runs it."""

    def of(wildcards):
        axes = stage_graph.STAGES[stage].axes
        return EXPERIMENT.job(stage, *(wildcards[axis] for axis in axes)).settings

    return of


wildcard_constraints:
    backbone=NAMES,
    weights=NAMES,
    tuning="|".join(config["tunings"]) or "none",
    dataset=NAMES,
    rule=NAMES,
