"""match: the predicted target keypoints of all pairs of a dataset, under one rule, from the feature store."""

from functools import partial

import numpy as np
import pyarrow as pa
import torch

from semcorr import pck
from semcorr.artifacts.progress import progress
from semcorr.artifacts.provenance import expect, provenance, write_table
from semcorr.artifacts.store import Store
from semcorr.datasets.base import Pair, read_pairs
from semcorr.engine.graph import Job
from semcorr.matching import match_pairs
from semcorr.networks import runtime
from semcorr.params import Params
from semcorr.readouts import readout

PAIR_COLUMNS = ("category", "subset", "viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror")


def match(job: Job, params: Params) -> str:
    """Write one row per keypoint: pair, points in original pixels, similarity, and the reference lengths of PCK."""
    device = runtime.device(params.runtime, params.threads)
    rule = params.rules[job.cell["rule"]]
    pairs = read_pairs(job.inputs["pairs"])
    inputs = {"pairs": expect(job.inputs["pairs"], job.expects["pairs"])}
    with Store(job.inputs["store"], job.expects["store"]) as features, torch.inference_mode():
        inputs["store"] = features.provenance
        answers = match_pairs(
            [(pair.source, pair.target, pair.points("source")) for pair in pairs],
            lambda image_id: (torch.from_numpy(features.array(image_id)).to(device), features.grid(image_id)),
            rule.sampling,
            readout(rule),
            partial(progress, unit="target", desc=job.title),
        )
        sizes = {pair.target: features.grid(pair.target).image_size for pair in pairs}
    table = _table(pairs, answers, sizes)
    empty = sum(not pair.keypoint_ids for pair in pairs)
    write_table(job.outputs["matches"], table, provenance(job, inputs, pairs_without_keypoints=empty))
    return f"{' '.join(job.cell.values())}: {len(pairs):,} pairs, {table.num_rows:,} keypoints"


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
