"""validate: params.yaml is right, and what results rest on beside it is written down, before anything runs.

The command line has validated params.yaml already, as it does for every stage. This stage runs at the start of every
`dvc repro`: it asks whether the networks are such as params.yaml says, and tells DVC of code and files of this machine.
"""

from semcorr.engine import basis
from semcorr.engine.graph import Graph, Job
from semcorr.engine.memory import Memory
from semcorr.networks import architectures
from semcorr.params import Params


def validate(job: Job, params: Params) -> str:
    """Hold params.yaml against its networks, and write the basis; nothing re-runs where it says what it said."""
    architectures.check(params)
    memory = Memory()
    basis.write(basis.texts(Graph(params), memory))
    memory.save()
    return "params.yaml is valid"
