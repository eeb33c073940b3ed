"""validate: params.yaml is right, before anything runs.

The command line has validated params.yaml already, as it does for every stage. This stage exists so that DVC, which
looks only at the keys that a stage names, notices a key that no stage knows; and it asks whether the networks are such
as params.yaml says.
"""

from semcorr import architectures
from semcorr.files import write_text
from semcorr.graph import Job
from semcorr.params import Params


def validate(job: Job, params: Params) -> str:
    """Hold params.yaml against its networks, and write a constant, so that nothing re-runs when it stays right."""
    architectures.check(params)
    write_text(job.outputs["checked"], "params.yaml follows workflow/schemas/params.schema.json\n")
    return "params.yaml is valid"
