"""What jobs ask a cluster for: memory and time by the plan's estimates, and twice as much with each attempt.

Two environment variables of `snakemake --profile profiles/slurm` say what the estimates cannot know:

    SEMCORR_TFLOPS  operations per second that networks reach on the cluster's GPU, in 10^12; 5 if not set
    SEMCORR_MARGIN  what all estimates are multiplied by; 1.5 if not set

This module imports no torch: only asking does, and neither local runs nor the jobs themselves ask.
"""

import logging
import math
import os
from functools import cached_property
from typing import TYPE_CHECKING

from semcorr.engine.graph import Graph, Job
from semcorr.errors import UserError

if TYPE_CHECKING:
    from semcorr.engine.footprint import Footprints

TFLOPS, MARGIN = ("SEMCORR_TFLOPS", 5.0), ("SEMCORR_MARGIN", 1.5)
LEAST = 1.5e9, 8.0  # bytes and minutes, of the smallest job
UNKNOWN = 24e9, 480.0  # the same of a job on a dataset whose size is known only once it is fetched
SNAKEMAKE = 0.4e9  # bytes of the Snakemake processes that run a job on its node
ON_GPU = ("extract", "trunk", "finetune", "adapt", "match", "layers")  # stages whose rules ask for a GPU
CUDA = 3e9  # bytes of CUDA's libraries in a process that computes on a GPU; assumed, not measured
DISK = 50e6  # bytes per second that are written to a file system that all nodes share

logger = logging.getLogger(__name__)


class Needs:
    """The needs of the jobs of one experiment.

    Args:
        graph: of the experiment.

    Raises:
        UserError: an environment variable is not a positive number.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._speed, self._margin = _number(*TFLOPS) * 1e12, _number(*MARGIN)
        self._known: dict[str, tuple[float, float]] = {}

    def megabytes(self, job: Job, attempt: int) -> int:
        """The memory that a job asks for in its first, second, ... attempt."""
        return math.ceil(self._asked(job, attempt)[0] / 1e6)

    def minutes(self, job: Job, attempt: int) -> int:
        """The time that it asks for."""
        return math.ceil(self._asked(job, attempt)[1])

    def _asked(self, job: Job, attempt: int) -> tuple[float, float]:
        """Bytes and minutes."""
        if job.name not in self._known and (found := self._estimate(job)) is not None:
            self._known[job.name] = found
        factor = self._margin * 2 ** (attempt - 1)
        memory, minutes = (max(pair) for pair in zip(self._known.get(job.name, UNKNOWN), LEAST, strict=True))
        return factor * memory, factor * minutes

    def _estimate(self, job: Job) -> tuple[float, float] | None:
        """Bytes and minutes of a job; None while nobody knows how large its dataset is."""
        try:
            costs = self._footprints.costs
            costs.look_again()
            memory, cost = self._footprints.of(job), costs.of(job)
        except Exception as error:  # whatever it is, the job may run all the same
            logger.warning("%s: asks for as much as a job of unknown size (%s)", job.title, error)
            return UNKNOWN
        if memory is None or cost is None:
            return None
        runtime = self._graph.params.runtime
        if job.stage in ON_GPU and runtime.device != "cpu":
            memory += CUDA * (runtime.processes if job.stage == "finetune" else 1)
        seconds = cost.seconds + cost.flops / self._speed + cost.disk / DISK
        return memory + SNAKEMAKE, seconds / 60

    @cached_property
    def _footprints(self) -> "Footprints":
        from semcorr.engine.footprint import Footprints  # torch
        from semcorr.engine.plan import Costs

        return Footprints(Costs(self._graph))


def _number(name: str, usual: float) -> float:
    """A positive number from an environment variable."""
    given = os.environ.get(name, "")
    try:
        number = float(given) if given else usual
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{name}: {given!r}; allowed: a positive number, such as {usual:g}")
    return number
