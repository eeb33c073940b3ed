"""Data and weights.

INPUTS
    params.yaml
OUTPUTS
    data/{dataset}/{images.parquet, pairs.parquet, images}
    data/weights/{backbone}/{weights}.{json, safetensors}
"""


rule fetch:
    """A dataset's images, and its indexes of images and pairs."""
    input:
        marker=marker("fetch"),
    output:
        images="data/{dataset}/images.parquet",
        pairs="data/{dataset}/pairs.parquet",
        folder=directory("data/{dataset}/images"),
    log:
        "logs/fetch/{dataset}.log",
    resources:
        mem=memory("fetch"),
        runtime=runtime("fetch"),
    shell:
        "python -m semcorr fetch {wildcards.dataset} 2> {log:q}"


rule weights:
    """A backbone's tensors."""
    input:
        marker=marker("weights"),
    output:
        record="data/weights/{backbone}/{weights}.json",
        tensors="data/weights/{backbone}/{weights}.safetensors",
    log:
        "logs/weights/{backbone}/{weights}.log",
    resources:
        mem=memory("weights"),
        runtime=runtime("weights"),
    shell:
        "python -m semcorr weights {wildcards.backbone} {wildcards.weights} 2> {log:q}"
