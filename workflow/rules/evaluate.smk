"""Matches, their scores, and the report.

INPUTS
    features/{backbone}/{weights}/{dataset}.h5
    data/weights/{backbone}/frozen.{json, safetensors}
    data/{dataset}/{pairs, images}.parquet
OUTPUTS
    matches/{backbone}/{weights}/{dataset}/{rule}{, .absent}.parquet
    metrics/<preset>/cells/{backbone}/{weights}/{dataset}/{rule}.{json, parquet}
    metrics/<preset>/cells/{backbone}/layers/{dataset}.json
    metrics/<preset>/galleries/{backbone}/{weights}/{dataset}.json
    metrics/<preset>/{headline/, report.html, summary.json, summary.csv, summary.md, summary.tex, curves.csv, categories.csv}
"""


rule match:
    """Predict the keypoints of every pair under one rule."""
    input:
        store=known("features/{backbone}/{weights}/{dataset}.h5"),
        pairs=known("data/{dataset}/pairs.parquet"),
        images=known("data/{dataset}/images.parquet"),
        marker=marker("match"),
    output:
        matches="matches/{backbone}/{weights}/{dataset}/{rule}.parquet",
        absent="matches/{backbone}/{weights}/{dataset}/{rule}.absent.parquet",
    log:
        "logs/match/{backbone}/{weights}/{dataset}/{rule}.log",
    threads: config["threads"]
    resources:
        gpu=1,
        mem=memory("match"),
        runtime=runtime("match"),
    shell:
        "python -m semcorr match {wildcards.backbone} {wildcards.weights} {wildcards.dataset} {wildcards.rule} 2> {log:q}"


rule evaluate:
    """PCK of one cell."""
    input:
        matches=known("matches/{backbone}/{weights}/{dataset}/{rule}.parquet"),
        absent=known("matches/{backbone}/{weights}/{dataset}/{rule}.absent.parquet"),
        images=known("data/{dataset}/images.parquet"),
        marker=marker("evaluate"),
    output:
        cell=f"metrics/{PRESET}/cells/{{backbone}}/{{weights}}/{{dataset}}/{{rule}}.json",
        pairs=f"metrics/{PRESET}/cells/{{backbone}}/{{weights}}/{{dataset}}/{{rule}}.parquet",
    log:
        "logs/evaluate/{backbone}/{weights}/{dataset}/{rule}.log",
    resources:
        mem=memory("evaluate"),
        runtime=runtime("evaluate"),
    shell:
        "python -m semcorr evaluate {wildcards.backbone} {wildcards.weights} {wildcards.dataset} {wildcards.rule} 2> {log:q}"


rule draw:
    """Pictures of a few pairs of each category, the same for all weights."""
    input:
        matches=known(
            [
                f"matches/{{backbone}}/{{weights}}/{{dataset}}/{rule}{kind}.parquet"
                for rule in GRID["rules"]
                for kind in ("", ".absent")
            ]
        ),
        cells=known(
            [
                f"metrics/{PRESET}/cells/{GRID['backbones'][0]}/{GRID['weights'][0]}/{{dataset}}/{rule}.{kind}"
                for rule in GRID["rules"]
                for kind in ("json", "parquet")
            ]
        ),
        store=known("features/{backbone}/{weights}/{dataset}.h5"),
        images=known("data/{dataset}/images.parquet"),
        marker=marker("draw"),
    output:
        gallery=f"metrics/{PRESET}/galleries/{{backbone}}/{{weights}}/{{dataset}}.json",
    log:
        "logs/draw/{backbone}/{weights}/{dataset}.log",
    resources:
        mem=memory("draw"),
        runtime=runtime("draw"),
    shell:
        "python -m semcorr draw {wildcards.backbone} {wildcards.weights} {wildcards.dataset} 2> {log:q}"


rule layers:
    """PCK of every layer of a backbone, in one pass over the images."""
    input:
        tensors=known("data/weights/{backbone}/frozen.safetensors"),
        record=known("data/weights/{backbone}/frozen.json"),
        images=known("data/{dataset}/images.parquet"),
        pairs=known("data/{dataset}/pairs.parquet"),
        marker=marker("layers"),
    output:
        curve=f"metrics/{PRESET}/cells/{{backbone}}/layers/{{dataset}}.json",
    log:
        "logs/layers/{backbone}/{dataset}.log",
    threads: config["threads"]
    resources:
        gpu=1,
        mem=memory("layers"),
        runtime=runtime("layers"),
    shell:
        "python -m semcorr layers {wildcards.backbone} {wildcards.dataset} 2> {log:q}"


rule report:
    """The tables and the HTML page of all cells."""
    input:
        cells=known(made_by("evaluate", "layers")),
        galleries=known(made_by("draw")),
        marker=marker("report"),
    output:
        html=f"metrics/{PRESET}/report.html",
        summary=f"metrics/{PRESET}/summary.json",
        markdown=f"metrics/{PRESET}/summary.md",
        latex=f"metrics/{PRESET}/summary.tex",
        curves=f"metrics/{PRESET}/curves.csv",
        categories=f"metrics/{PRESET}/categories.csv",
    log:
        "logs/report.log",
    resources:
        mem=memory("report"),
        runtime=runtime("report"),
    shell:
        "python -m semcorr report 2> {log:q}"


rule headline:
    """The numbers kept in git."""
    input:
        cells=known(made_by("evaluate", "layers")),
        page=known(f"metrics/{PRESET}/report.html"),
        marker=marker("headline"),
    output:
        headline=directory(f"metrics/{PRESET}/headline"),
        csv=f"metrics/{PRESET}/summary.csv",
    log:
        "logs/headline.log",
    resources:
        mem=memory("headline"),
        runtime=runtime("headline"),
    shell:
        "python -m semcorr headline 2> {log:q}"
