"""Data and weights.

INPUTS
    params.yaml
OUTPUTS
    data/params.checked
    data/{dataset}/{images.parquet, pairs.parquet, images}
    data/weights/{backbone}/{weights}.safetensors
"""


rule validate:
    """Check params.yaml; Snakemake itself does so before any rule, this keeps DVC's graph and ours the same."""
    input:
        params="params.yaml",
        code=code("validate"),
    output:
        checked="data/params.checked",
    log:
        "logs/validate.log",
    shell:
        "python -m semcorr validate 2> {log:q}"


rule fetch:
    """A dataset's images, and its indexes of images and pairs."""
    input:
        checked=ancient("data/params.checked"),
        code=code("fetch"),
    output:
        images="data/{dataset}/images.parquet",
        pairs="data/{dataset}/pairs.parquet",
        folder=directory("data/{dataset}/images"),
    params:
        settings=settings("fetch"),
    log:
        "logs/fetch/{dataset}.log",
    shell:
        "python -m semcorr fetch {wildcards.dataset} 2> {log:q}"


rule weights:
    """A backbone's tensors."""
    input:
        checked=ancient("data/params.checked"),
        code=code("weights"),
    output:
        tensors="data/weights/{backbone}/{weights}.safetensors",
    params:
        settings=settings("weights"),
    log:
        "logs/weights/{backbone}/{weights}.log",
    shell:
        "python -m semcorr weights {wildcards.backbone} {wildcards.weights} 2> {log:q}"
