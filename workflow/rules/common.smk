"""Shared by all rules: params.yaml is validated once, Snakemake is told what is stale, GPUs are counted.

INPUTS
    params.yaml
OUTPUTS
    none
"""

import logging
import sys

from snakemake.exceptions import WorkflowError

from semcorr import architectures, basis, engines
from semcorr import graph as stage_graph
from semcorr import params as experiment
from semcorr.current import Current
from semcorr.errors import UserError
from semcorr.keeper import Keeper
from semcorr.memory import Memory


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


EXPERIMENT = stage_graph.Graph(load_experiment())
GRID = config["grid"]
PRESET = config["preset"]
NAMES = r"[a-z0-9_]+"
KEEPER = Keeper(" ".join(["snakemake", *sys.argv[1:]]))

# One job at a time on the GPU unless told otherwise: --resources gpu=4.
workflow.global_resources.setdefault("gpu", config["runtime"]["processes"])

STALE = {}
if workflow.is_main_process:  # and not in the jobs of a cluster, which read this file too
    STALE = Current(EXPERIMENT).stale
    engines.mark(EXPERIMENT, STALE)
    engines.make_writable(EXPERIMENT.jobs())
    for line in engines.reasons(STALE):
        logging.getLogger("snakemake.logging").info(line)


onstart:
    try:
        KEEPER.start()
        if Current(EXPERIMENT).stale != STALE:
            raise UserError("something has changed while Snakemake planned; run it again")
        architectures.check(EXPERIMENT.params)
        basis.write(basis.texts(EXPERIMENT, Memory()))
        engines.begin(EXPERIMENT)
    except UserError as error:
        raise WorkflowError(f"semcorr: {error}") from None


onsuccess:
    KEEPER.end()


onerror:
    KEEPER.end()


def marker(stage):
    """A function of wildcards: the file that tells Snakemake whether a stage's job is stale."""

    def of(wildcards):
        axes = stage_graph.STAGES[stage].axes
        return engines.marker(EXPERIMENT.job(stage, *(wildcards[axis] for axis in axes)))

    return of


REMADE = {path.as_posix() for job in EXPERIMENT.jobs() if job.name in STALE for path in job.outputs.values()}


def known(paths):
    """A function of wildcards: inputs that are made by others. Their times count for nothing; markers alone do.

    Of what is made anew, they do count: else Snakemake, which does not look at the marker of what follows from a job
    that runs, would leave that out.
    """

    def of(wildcards):
        filled = expand(paths, **wildcards) if isinstance(paths, str) else paths
        return [path if path in REMADE else ancient(path) for path in filled]

    return of


def made_by(*stages):
    """All outputs of some stages."""
    return [str(path) for job in EXPERIMENT.jobs() if job.stage in stages for path in job.outputs.values()]


wildcard_constraints:
    backbone=NAMES,
    weights=NAMES,
    tuning="|".join(config["tunings"]) or "none",
    dataset=NAMES,
    rule=NAMES,
