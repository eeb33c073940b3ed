"""evaluate: PCK of one cell, from its matches alone, as one JSON file and a table of its pairs."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from semcorr import pck
from semcorr.artifacts.provenance import expect, provenance, read_table, write_result, write_table
from semcorr.engine.graph import Job
from semcorr.errors import UserError
from semcorr.params import Params

DIFFICULTIES = ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror")


def evaluate(job: Job, params: Params) -> str:
    """Write the averages of PCK for each reference, per category, sub-set and difficulty, and the error distribution.

    The table beside them has one row per pair: its keypoints, and how many are correct at each threshold.
    """
    path = job.inputs["matches"]
    inputs = {"matches": expect(path, job.expects["matches"])}
    matches = read_table(path).to_pandas()
    if matches.empty:
        raise UserError(f"{path}: no pair of this dataset has a keypoint, so there is nothing to score")
    settings = params.evaluate
    names = settings.references[params.datasets[job.cell["dataset"]].format]
    record = provenance(job, inputs)
    pair, first = _pairs(matches)
    scores, correct = {}, {}
    for name in names:
        correct[name] = pck.is_correct(*pck.errors(matches, name, path), settings.thresholds)
        scores[name] = _overall(correct[name], pair, first, params)
    headline = correct[names[0]]
    cell = {
        "name": "/".join(job.cell.values()),
        "dataset": job.cell["dataset"],
        "num_pairs": len(first),
        "num_keypoints": len(matches),
        "left_out": _left_out(inputs["matches"]),
        "protocol": {
            "coordinates": "(x, y) in original pixels; aspect ratio kept, padded cells never predicted",
            "reference": names[0],
            "thresholds": settings.thresholds,
            "correct": "distance <= threshold * reference",
            "std": "over keypoints, pairs, categories",
            "ci95": f"bootstrap over pairs, {settings.bootstrap} samples, seed {settings.seed}",
        },
        **scores[names[0]],
        "per_category_keypoint": _per_group(headline, matches["category"], settings.thresholds),
        "per_category_image": _per_group_image(headline, pair, first, settings.thresholds),
        "per_difficulty": {
            name: _per_group(headline, matches[name], settings.thresholds)
            for name in DIFFICULTIES
            if matches[name].notna().any()
        },
        "per_subset": _per_group(headline, matches["subset"], settings.thresholds),
        "error_distribution": _distribution(*pck.errors(matches, names[0], path)),
        "references": scores,
        "provenance": record,
    }
    write_table(job.outputs["pairs"], _pair_table(headline, pair, first, settings.thresholds), record)
    write_result(job.outputs["cell"], cell)
    key = pck.headline_key(settings.thresholds)
    mean = 100 * cell["overall_keypoint"][key]["mean"]
    return f"{' '.join(job.cell.values())}: {key} {mean:.1f} per keypoint ({names[0]}), {cell['num_pairs']:,} pairs"


def _pairs(matches: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """The number of the pair that each keypoint belongs to (N,), and the pairs: their id and category."""
    pair, _ = pd.factorize(matches["pair"])
    first = matches.drop_duplicates("pair")[["pair", "category"]].reset_index(drop=True)
    return pair, first


def _left_out(matches: dict[str, Any]) -> dict[str, int]:
    """What the benchmark lists and the numbers do not hold, by what it is."""
    counts = dict(matches["inputs"]["pairs"].get("left_out", {}))
    empty = matches.get("pairs_without_keypoints", 0)
    return counts | ({"pairs without keypoints": empty} if empty else {})


def _overall(correct: np.ndarray, pair: np.ndarray, first: pd.DataFrame, params: Params) -> dict[str, Any]:
    """The overall averages under one reference, as they are stored."""
    settings = params.evaluate
    category = pd.factorize(first["category"])[0]
    scores = pck.scores(correct, pair, category, samples=settings.bootstrap, seed=settings.seed)
    return {f"overall_{average}": score.to_dict(settings.thresholds) for average, score in scores.items()}


def _row(correct: np.ndarray, thresholds: list[float]) -> dict[str, Any]:
    means = {
        pck.threshold_key(threshold): float(mean) for threshold, mean in zip(thresholds, correct.mean(0), strict=True)
    }
    return {"num_keypoints": len(correct), **means}


def _per_group(correct: np.ndarray, group: pd.Series, thresholds: list[float]) -> dict[str, Any]:
    """PCK per keypoint of each value of a column; rows without one are in none."""
    known = sorted(group.dropna().unique())
    names = {value: str(int(value)) if not isinstance(value, str) else value for value in known}
    return {names[value]: _row(correct[(group == value).to_numpy()], thresholds) for value in known}


def _per_group_image(
    correct: np.ndarray, pair: np.ndarray, first: pd.DataFrame, thresholds: list[float]
) -> dict[str, Any]:
    """Mean over pairs of the pair's PCK, for each category."""
    hits, counts = pck.by_pair(correct, pair)
    fractions = hits / counts[:, None]
    keys = list(map(pck.threshold_key, thresholds))
    result = {}
    for name in sorted(first["category"].unique()):
        some = fractions[(first["category"] == name).to_numpy()]
        result[name] = {"num_pairs": len(some), **dict(zip(keys, some.mean(axis=0).tolist(), strict=True))}
    return result


def _distribution(distance: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """How errors, as fractions of the reference, are spread: their median, and PCK per keypoint over thresholds."""
    return {
        "median": float(np.median(distance / reference)),
        "threshold": pck.CURVE,
        "pck": pck.is_correct(distance, reference, pck.CURVE).mean(axis=0).tolist(),
    }


def _pair_table(correct: np.ndarray, pair: np.ndarray, first: pd.DataFrame, thresholds: list[float]) -> pa.Table:
    """One row per pair: id, category, keypoints, and those correct at each threshold."""
    hits, counts = pck.by_pair(correct, pair)
    columns = {
        "pair": pa.array(first["pair"], pa.string()),
        "category": pa.array(first["category"], pa.string()),
        "num_keypoints": pa.array(counts.astype(np.int32)),
    }
    for threshold, column in zip(thresholds, hits.T, strict=True):
        columns[pck.threshold_key(threshold)] = pa.array(column.astype(np.int32))
    return pa.table(columns)
