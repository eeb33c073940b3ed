"""Features of images, and inputs of the tuned blocks.

INPUTS
    data/weights/{backbone}/{weights}.{json, safetensors}
    data/{dataset}/images.parquet
OUTPUTS
    features/{backbone}/{weights}/{dataset}.h5
    features/{backbone}/trunk/{dataset}.h5
    features/{fusion}/{weights}/{dataset}.h5
"""


rule extract:
    """The features of every image, each encoded once."""
    input:
        tensors=known("data/weights/{backbone}/{weights}.safetensors"),
        record=known("data/weights/{backbone}/{weights}.json"),
        images=known("data/{dataset}/images.parquet"),
        marker=marker("extract"),
    output:
        store="features/{backbone}/{weights}/{dataset}.h5",
    log:
        "logs/extract/{backbone}/{weights}/{dataset}.log",
    wildcard_constraints:
        backbone="|".join(config["backbones"]),
        weights="|".join(config["baselines"]),
    threads: config["threads"]
    resources:
        gpu=1,
        mem=memory("extract"),
        runtime=runtime("extract"),
    shell:
        "python -m semcorr extract {wildcards.backbone} {wildcards.weights} {wildcards.dataset} 2> {log:q}"


rule trunk:
    """The input of the tuned blocks, so that fine-tuning never runs the blocks below again."""
    input:
        tensors=known("data/weights/{backbone}/frozen.safetensors"),
        record=known("data/weights/{backbone}/frozen.json"),
        images=known("data/{dataset}/images.parquet"),
        marker=marker("trunk"),
    output:
        store="features/{backbone}/trunk/{dataset}.h5",
    log:
        "logs/trunk/{backbone}/{dataset}.log",
    threads: config["threads"]
    resources:
        gpu=1,
        mem=memory("trunk"),
        runtime=runtime("trunk"),
    shell:
        "python -m semcorr trunk {wildcards.backbone} {wildcards.dataset} 2> {log:q}"


rule fuse:
    """The features of two backbones, joined."""
    input:
        a=member("a"),
        b=member("b"),
        marker=marker("fuse"),
    output:
        store="features/{fusion}/{weights}/{dataset}.h5",
    log:
        "logs/fuse/{fusion}/{weights}/{dataset}.log",
    resources:
        mem=memory("fuse"),
        runtime=runtime("fuse"),
    shell:
        "python -m semcorr fuse {wildcards.fusion} {wildcards.weights} {wildcards.dataset} 2> {log:q}"
