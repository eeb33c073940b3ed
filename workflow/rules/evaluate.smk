"""Matches, their scores, and the report.

INPUTS
    features/{backbone}/{weights}/{dataset}.h5
    data/{dataset}/pairs.parquet
OUTPUTS
    matches/{backbone}/{weights}/{dataset}/{rule}.parquet
    metrics/<preset>/cells/{backbone}/{weights}/{dataset}/{rule}.{json, parquet}
    metrics/<preset>/galleries/{backbone}/{weights}/{dataset}.json
    metrics/<preset>/{headline/, report.html, summary.json, summary.csv, summary.md, curves.csv, categories.csv}
"""


rule match:
    """The predicted keypoints of every pair, under one rule."""
    input:
        store="features/{backbone}/{weights}/{dataset}.h5",
        pairs="data/{dataset}/pairs.parquet",
        code=code("match"),
    output:
        matches="matches/{backbone}/{weights}/{dataset}/{rule}.parquet",
    log:
        "logs/match/{backbone}/{weights}/{dataset}/{rule}.log",
    threads: config["threads"]
    resources:
        gpu=1,
    params:
        settings=settings("match"),
    shell:
        "python -m semcorr match {wildcards.backbone} {wildcards.weights} {wildcards.dataset} {wildcards.rule} 2> {log:q}"


rule evaluate:
    """PCK of one cell."""
    input:
        matches="matches/{backbone}/{weights}/{dataset}/{rule}.parquet",
        code=code("evaluate"),
    output:
        cell=f"metrics/{PRESET}/cells/{{backbone}}/{{weights}}/{{dataset}}/{{rule}}.json",
        pairs=f"metrics/{PRESET}/cells/{{backbone}}/{{weights}}/{{dataset}}/{{rule}}.parquet",
    log:
        "logs/evaluate/{backbone}/{weights}/{dataset}/{rule}.log",
    params:
        settings=settings("evaluate"),
    shell:
        "python -m semcorr evaluate {wildcards.backbone} {wildcards.weights} {wildcards.dataset} {wildcards.rule} 2> {log:q}"


rule draw:
    """Pictures of a few pairs, under the first rule."""
    input:
        matches=f"matches/{{backbone}}/{{weights}}/{{dataset}}/{GRID['rules'][0]}.parquet",
        store="features/{backbone}/{weights}/{dataset}.h5",
        images="data/{dataset}/images.parquet",
        code=code("draw"),
    output:
        gallery=f"metrics/{PRESET}/galleries/{{backbone}}/{{weights}}/{{dataset}}.json",
    log:
        "logs/draw/{backbone}/{weights}/{dataset}.log",
    params:
        settings=settings("draw"),
    shell:
        "python -m semcorr draw {wildcards.backbone} {wildcards.weights} {wildcards.dataset} 2> {log:q}"


rule report:
    """The tables and the HTML page of all cells."""
    input:
        cells=expand(
            f"metrics/{PRESET}/cells/{{backbone}}/{{weights}}/{{dataset}}/{{rule}}.{{suffix}}",
            backbone=GRID["backbones"],
            weights=GRID["weights"],
            dataset=GRID["datasets"],
            rule=GRID["rules"],
            suffix=["json", "parquet"],
        ),
        galleries=expand(
            f"metrics/{PRESET}/galleries/{{backbone}}/{{weights}}/{{dataset}}.json",
            backbone=GRID["backbones"],
            weights=GRID["weights"],
            dataset=GRID["datasets"],
        ),
        code=code("report"),
    output:
        html=f"metrics/{PRESET}/report.html",
        headline=directory(f"metrics/{PRESET}/headline"),
        summary=f"metrics/{PRESET}/summary.json",
        csv=f"metrics/{PRESET}/summary.csv",
        markdown=f"metrics/{PRESET}/summary.md",
        curves=f"metrics/{PRESET}/curves.csv",
        categories=f"metrics/{PRESET}/categories.csv",
    log:
        "logs/report.log",
    params:
        settings=settings("report"),
    shell:
        "python -m semcorr report 2> {log:q}"
