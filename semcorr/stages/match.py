"""match: the predicted target keypoints of all pairs of a dataset, under one rule, from the feature store.

Source keypoints that the target lacks are matched too, into a table of their own: nothing is right there, and a good
similarity is low.
"""

from functools import partial

import numpy as np
import pyarrow as pa
import torch

from semcorr import pck
from semcorr.artifacts.progress import progress
from semcorr.artifacts.provenance import expect, provenance, write_table
from semcorr.artifacts.store import Store
from semcorr.datasets.base import Image, Pair, read_images, read_pairs
from semcorr.datasets.search import searched
from semcorr.engine.graph import Job
from semcorr.matching import match_pairs
from semcorr.networks import runtime
from semcorr.params import Params
from semcorr.readouts import readout

PAIR_COLUMNS = ("category", "subset", "viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror")


def match(job: Job, params: Params) -> str:
    """Write one row per keypoint: pair, points in original pixels, similarity, and the reference lengths of PCK.

    The second table has a row for each source keypoint that the target lacks: pair, point, answer and similarity.
    """
    device = runtime.device(params.runtime, params.threads)
    rule = params.rules[job.cell["rule"]]
    pairs = read_pairs(job.inputs["pairs"])
    images = {image.id: image for image in read_images(job.inputs["images"])}
    lacking = [_lacking(pair, images) for pair in pairs]
    inputs = {role: expect(job.inputs[role], job.expects[role]) for role in ("pairs", "images")}
    with Store(job.inputs["store"], job.expects["store"]) as features, torch.inference_mode():
        inputs["store"] = features.provenance
        answers = match_pairs(
            [
                (pair.source, pair.target, np.concatenate([pair.points("source"), points]))
                for pair, (_, points) in zip(pairs, lacking, strict=True)
            ],
            lambda image_id: (torch.from_numpy(features.array(image_id)).to(device), features.grid(image_id)),
            rule.sampling,
            readout(rule),
            partial(progress, unit="target", desc=job.title),
            searched(rule, images),
        )
        sizes = {pair.target: features.grid(pair.target).image_size for pair in pairs}
    shared = [len(pair.keypoint_ids) for pair in pairs]
    parts = list(zip(answers, shared, strict=True))
    table = _table(pairs, [(points[:count], similar[:count]) for (points, similar), count in parts], sizes)
    empty = sum(not count for count in shared)
    record = provenance(job, inputs, pairs_without_keypoints=empty, **runtime.facts(device))
    absent = _absent_table(pairs, lacking, [(points[count:], similar[count:]) for (points, similar), count in parts])
    write_table(job.outputs["absent"], absent, record)
    write_table(job.outputs["matches"], table, record)
    return f"{' '.join(job.cell.values())}: {len(pairs):,} pairs, {table.num_rows:,} keypoints"


def _lacking(pair: Pair, images: dict[str, Image]) -> tuple[list[str], np.ndarray]:
    """The source's keypoints that the target lacks: N names, and (N, 2) x y; none if the target's are not known."""
    source, target = images[pair.source], images[pair.target]
    there = {*pair.keypoint_ids, *target.keypoint_ids} if target.keypoint_ids else {*source.keypoint_ids}
    rows = [row for row in zip(source.keypoint_ids, source.keypoints, strict=True) if row[0] not in there]
    return [id_ for id_, _ in rows], np.array([point for _, point in rows], float).reshape(-1, 2)


def _absent_table(
    pairs: list[Pair], lacking: list[tuple[list[str], np.ndarray]], answers: list[tuple[np.ndarray, np.ndarray]]
) -> pa.Table:
    """One row per source keypoint that the target lacks."""
    counts = [len(names) for names, _ in lacking]
    rows = pa.array(np.repeat(np.arange(len(pairs)), counts))
    columns = {
        "pair": pa.array([pair.id for pair in pairs], pa.string()).take(rows),
        "category": pa.array([pair.category for pair in pairs], pa.string()).take(rows),
        "keypoint": pa.array([id_ for names, _ in lacking for id_ in names], pa.string()),
    }
    for name, points in {"source": [at for _, at in lacking], "predicted": [at for at, _ in answers]}.items():
        columns[f"{name}_x"], columns[f"{name}_y"] = map(pa.array, np.concatenate([np.empty((0, 2)), *points]).T.copy())
    columns["similarity"] = pa.array(np.concatenate([np.empty(0), *(similarity for _, similarity in answers)]))
    return pa.table(columns)


def _table(
    pairs: list[Pair], answers: list[tuple[np.ndarray, np.ndarray]], sizes: dict[str, tuple[int, int]]
) -> pa.Table:
    """One row per keypoint; values of its pair are repeated."""
    counts = [len(pair.keypoint_ids) for pair in pairs]
    rows = pa.array(np.repeat(np.arange(len(pairs)), counts))

    def repeated(values: list, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(rows)

    columns = {
        "pair": repeated([pair.id for pair in pairs], pa.string()),
        "keypoint": pa.array([id_ for pair in pairs for id_ in pair.keypoint_ids], pa.string()),
    }
    for name, points in {
        "source": [pair.points("source") for pair in pairs],
        "predicted": [predicted for predicted, _ in answers],
        "true": [pair.points("target") for pair in pairs],
    }.items():
        columns[f"{name}_x"], columns[f"{name}_y"] = map(pa.array, np.concatenate([np.empty((0, 2)), *points]).T.copy())
    columns["similarity"] = pa.array(np.concatenate([np.empty(0), *(similarity for _, similarity in answers)]))
    lengths = [
        pck.references(pair.points("target"), bbox=pair.target_bbox, image_size=sizes[pair.target]) if count else {}
        for pair, count in zip(pairs, counts, strict=True)
    ]
    for name in ("bbox", "bbox_kp", "image"):
        columns[name] = repeated([length.get(name) for length in lengths], pa.float64())
    for side in ("source", "target"):
        columns[f"{side}_image"] = repeated([getattr(pair, side) for pair in pairs], pa.string())
    for name in PAIR_COLUMNS:
        kind = pa.string() if name in ("category", "subset") else pa.int8()
        columns[name] = repeated([getattr(pair, name) for pair in pairs], kind)
    return pa.table(columns)
