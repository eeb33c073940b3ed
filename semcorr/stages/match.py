"""match: the predicted target keypoints of every pair of a dataset, under one rule, from the feature store alone."""

from functools import partial

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from semcorr import pck, runtime
from semcorr.datasets.base import read_pairs, write_table
from semcorr.graph import Job
from semcorr.matching import match_pairs
from semcorr.params import Params
from semcorr.provenance import expect, provenance
from semcorr.store import Store

PAIR_COLUMNS = (
    "category",
    "subset",
    "viewpoint_variation",
    "scale_variation",
    "truncation",
    "occlusion",
    "mirror",
)


def match(job: Job, params: Params) -> str:
    """Write one row per keypoint: pair, points in original pixels, similarity, and the reference lengths of PCK."""
    device = runtime.device(params)
    pairs = read_pairs(job.inputs["pairs"])
    inputs = {"pairs": expect(job.inputs["pairs"], job.expects["pairs"])}
    with Store(job.inputs["store"], job.expects["store"]) as features, torch.inference_mode():
        inputs["store"] = features.provenance
        answers = match_pairs(
            pairs,
            lambda image_id: (torch.from_numpy(features.array(image_id)).to(device), features.grid(image_id)),
            params.rules[job.cell["rule"]],
            partial(tqdm, unit="target", desc=" ".join([job.stage, *job.cell.values()]), disable=None),
        )
        sizes = {pair.target: features.grid(pair.target).image_size for pair in pairs}
    columns: dict[str, list] = {}

    def add(name: str, values: object) -> None:
        columns.setdefault(name, []).append(values)

    for pair, (predicted, similarity) in zip(pairs, answers, strict=True):
        count = len(pair.keypoint_ids)
        add("pair", [pair.id] * count)
        add("keypoint", pair.keypoint_ids)
        source, true = (
            np.array(points, float).reshape(-1, 2) for points in (pair.source_keypoints, pair.target_keypoints)
        )
        for name, points in {"source": source, "predicted": predicted, "true": true}.items():
            add(f"{name}_x", points[:, 0])
            add(f"{name}_y", points[:, 1])
        add("similarity", similarity)
        lengths = pck.references(true, bbox=pair.target_bbox, image_size=sizes[pair.target]) if count else {}
        for name, length in lengths.items():
            add(name, [length] * count)
        for name in ("source", "target", *PAIR_COLUMNS):
            add(f"{name}_image" if name in ("source", "target") else name, [getattr(pair, name)] * count)
    types = {
        "pair": pa.string(),
        "keypoint": pa.string(),
        "source_image": pa.string(),
        "target_image": pa.string(),
    }
    types |= {"category": pa.string(), "subset": pa.string()} | dict.fromkeys(PAIR_COLUMNS[2:], pa.int8())
    table = pa.table(
        {
            name: pa.array([value for part in parts for value in part], types.get(name, pa.float64()))
            for name, parts in columns.items()
        }
    )
    write_table(job.outputs["matches"], table, provenance(job, inputs))
    return f"{' '.join(job.cell.values())}: {len(pairs):,} pairs, {table.num_rows:,} keypoints"
