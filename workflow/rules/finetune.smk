"""Fine-tuning on the cached trunk, and the features of tuned backbones.

INPUTS
    data/weights/{backbone}/frozen.{json, safetensors}
    features/{backbone}/trunk/{dataset}.h5
    data/{dataset}/{images, pairs}.parquet
OUTPUTS
    checkpoints/{backbone}/{tuning}/{best.safetensors, curve.csv, steps.csv}
    features/{backbone}/{tuning}/{dataset}.h5
"""


rule finetune:
    """Fine-tune the last blocks of a backbone."""
    input:
        tensors=known("data/weights/{backbone}/frozen.safetensors"),
        record=known("data/weights/{backbone}/frozen.json"),
        train=known(f"features/{{backbone}}/trunk/{GRID['train']}.h5"),
        train_pairs=known(f"data/{GRID['train']}/pairs.parquet"),
        train_images=known(f"data/{GRID['train']}/images.parquet"),
        validate=known(f"features/{{backbone}}/trunk/{GRID['validate']}.h5"),
        validate_pairs=known(f"data/{GRID['validate']}/pairs.parquet"),
        validate_images=known(f"data/{GRID['validate']}/images.parquet"),
        marker=marker("finetune"),
    output:
        tensors="checkpoints/{backbone}/{tuning}/best.safetensors",
        curve="checkpoints/{backbone}/{tuning}/curve.csv",
        steps="checkpoints/{backbone}/{tuning}/steps.csv",
    log:
        "logs/finetune/{backbone}/{tuning}.log",
    threads: config["threads"] * config["runtime"]["processes"]
    resources:
        gpu=config["runtime"]["processes"],
        mem=memory("finetune"),
        runtime=runtime("finetune"),
    shell:
        "python -m semcorr finetune {wildcards.backbone} {wildcards.tuning} 2> {log:q}"


rule adapt:
    """A tuned backbone's features, from the cached trunk."""
    input:
        frozen=known("data/weights/{backbone}/frozen.safetensors"),
        record=known("data/weights/{backbone}/frozen.json"),
        tuned=known("checkpoints/{backbone}/{tuning}/best.safetensors"),
        trunk=known("features/{backbone}/trunk/{dataset}.h5"),
        marker=marker("adapt"),
    output:
        store="features/{backbone}/{tuning}/{dataset}.h5",
    log:
        "logs/adapt/{backbone}/{tuning}/{dataset}.log",
    wildcard_constraints:
        backbone="|".join(config["backbones"]),
    threads: config["threads"]
    resources:
        gpu=1,
        mem=memory("adapt"),
        runtime=runtime("adapt"),
    shell:
        "python -m semcorr adapt {wildcards.backbone} {wildcards.tuning} {wildcards.dataset} 2> {log:q}"
