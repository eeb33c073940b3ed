"""validate: check params.yaml against the networks, and record what else results depend on, before anything runs.

The command line has already validated params.yaml itself, as for every stage. This stage runs at the start of every
`dvc repro` and tells DVC about code and files on this machine.
"""

import logging
import os

from semcorr.engine import basis, project
from semcorr.engine.graph import Graph, Job
from semcorr.engine.memory import Memory
from semcorr.errors import UserError
from semcorr.networks import architectures
from semcorr.params import Params, is_import_path

logger = logging.getLogger(__name__)


def validate(job: Job, params: Params) -> str:
    """Check params.yaml against its networks, and write the basis; if that is unchanged, nothing re-runs."""
    if "DVC_STAGE" in os.environ:
        project.require_dvcs_keys(params)
    architectures.check(params)
    for name in [name for name, rule in params.rules.items() if is_import_path(rule.readout)]:
        _require_readout(name, params)
    if another := project.another_version():
        logger.warning(another)
    memory = Memory()
    basis.write(basis.texts(Graph(params), memory))
    memory.save()
    return "params.yaml is valid"


def _require_readout(name: str, params: Params) -> None:
    """Refuse a readout of one's own that does not exist or does not take its numbers."""
    from semcorr.readouts import readout  # which needs torch

    try:
        readout(params.rules[name])
    except UserError as error:
        raise UserError(f"params.yaml: rules.{name}: {error}") from None
