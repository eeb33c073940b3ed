"""Shared by all rules: validates params.yaml once, tells Snakemake what is stale, and counts GPUs.

INPUTS
    params.yaml
OUTPUTS
    none
"""

import sys

from semcorr.engine import graph as stage_graph
from semcorr import params as experiment
from semcorr.engine.cluster import Needs
from semcorr.engine.markers import marker as marker_of
from semcorr.errors import UserError
from semcorr.engine.dvc_sync import DVCSync
from semcorr.engine.project import another_version


def load_experiment():
    """The jobs of params.yaml, what they ask a cluster for, and the link to DVC.

    Exit on an error, or on an override that stages could not see.
    """
    try:
        values = experiment.load()
        if values.to_dict() != config:
            raise UserError(
                "params.yaml: --config and --configfile are not supported, since the stages and DVC could not see "
                "them, and numbers must be written as 1.0e-4, not 1e-4. Edit params.yaml"
            )
        if workflow.is_main_process and (another := another_version()):
            logger.warning(another)
        graph = stage_graph.Graph(values)
        # Cluster jobs read this file too, but plan nothing.
        plans = workflow.is_main_process
        submits = plans and workflow.resource_settings.nodes is not None
        return graph, Needs(graph) if submits else None, DVCSync(graph, sys.argv[1:], plans)
    except (UserError, OSError) as error:
        sys.exit(f"semcorr: {error}")


EXPERIMENT, NEEDS, SYNC = load_experiment()
GRID, PRESET = config["grid"], config["preset"]
NAMES = r"[a-z0-9_]+"

# Only when jobs will run, not for a dry run or a listing.
RUNS = workflow.resource_settings.cores or workflow.resource_settings.nodes
if RUNS and not workflow.output_settings.dryrun:
    SYNC.catch_up()

# One job at a time on the GPU unless told otherwise: --resources gpu=4.
workflow.global_resources.setdefault("gpu", config["runtime"]["processes"])


onstart:
    try:
        SYNC.start()
    except UserError as error:
        sys.exit(f"semcorr: {error}")


onsuccess:
    SYNC.end()


onerror:
    SYNC.end()


def known(paths):
    """An input function for files of other jobs: the times of those not remade in this run are ignored."""

    def of(wildcards):
        filled = expand(paths, **wildcards)
        return [path if path in SYNC.remade else ancient(path) for path in filled]

    return of


def member(role):
    """An input function for the store of one of the two backbones that a fusion joins."""

    def of(wildcards):
        backbone = getattr(EXPERIMENT.params.joined[wildcards.fusion], role)
        return known("features/{backbone}/{weights}/{dataset}.h5")(dict(wildcards) | {"backbone": backbone})

    return of


def needed(what, stage):
    """A resource function: what a job asks a cluster for; nothing on this machine, where no job is limited."""

    def of(wildcards, attempt):
        if NEEDS is None:
            return None
        cell = [wildcards[axis] for axis in stage_graph.STAGES[stage].axes]
        return getattr(NEEDS, what)(EXPERIMENT.job(stage, *cell), attempt)

    return of


def memory(stage):
    """Megabytes; see `needed`."""
    return needed("megabytes", stage)


def runtime(stage):
    """Minutes; see `needed`."""
    return needed("minutes", stage)


def marker(stage):
    """The file that tells Snakemake whether a stage's job is stale."""
    return str(marker_of(stage, *(f"{{{axis}}}" for axis in stage_graph.STAGES[stage].axes)))


def made_by(*stages):
    """All outputs of some stages."""
    return [str(path) for job in EXPERIMENT.jobs() if job.stage in stages for path in job.outputs.values()]


wildcard_constraints:
    backbone=NAMES,
    fusion="|".join(EXPERIMENT.params.joined) or "none",
    weights=NAMES,
    tuning="|".join(config["tunings"]) or "none",
    dataset=NAMES,
    rule=NAMES,
