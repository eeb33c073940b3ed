"""The whole experiment of params.yaml: `snakemake --cores all`.

INPUTS
    params.yaml
OUTPUTS
    metrics/<preset>/{summary.json, summary.csv, summary.md, report.html}
"""

import sys

from snakemake.utils import min_version

sys.path.insert(0, workflow.basedir)  # prefer a package beside this file, as `python -m semcorr` does

min_version("9.0")


configfile: "params.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"


rule all:
    """All outputs of the experiment, so that a removed one is made again."""
    default_target: True
    input:
        made_by(*(stage for stage in stage_graph.STAGES if stage != "validate")),
