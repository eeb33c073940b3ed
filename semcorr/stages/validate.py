"""validate: params.yaml is right, before anything runs.

The command line has validated params.yaml already, as it does for every stage. This stage exists so that DVC, which
looks only at the keys that a stage names, notices a key that no stage knows.
"""

from semcorr.files import write_text
from semcorr.graph import Job
from semcorr.params import Params


def validate(job: Job, params: Params) -> str:
    """Write a constant, so that nothing downstream re-runs when params.yaml stays right."""
    write_text(job.outputs["checked"], "params.yaml follows workflow/schemas/params.schema.json\n")
    return "params.yaml is valid"
