"""validate: check params.yaml against the networks, and record what else results depend on, before anything runs.

The command line has already validated params.yaml itself, as for every stage. This stage runs at the start of every
`dvc repro` and tells DVC about code and files on this machine.
"""

from semcorr.engine import basis
from semcorr.engine.graph import Graph, Job
from semcorr.engine.memory import Memory
from semcorr.networks import architectures
from semcorr.params import Params


def validate(job: Job, params: Params) -> str:
    """Check params.yaml against its networks, and write the basis; if that is unchanged, nothing re-runs."""
    architectures.check(params)
    memory = Memory()
    basis.write(basis.texts(Graph(params), memory))
    memory.save()
    return "params.yaml is valid"
