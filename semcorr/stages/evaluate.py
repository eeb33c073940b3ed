"""evaluate: PCK of one cell, from its matches alone, as one JSON file."""

from typing import Any

import numpy as np
import pandas as pd

from semcorr import pck
from semcorr.errors import UserError
from semcorr.files import write_json
from semcorr.graph import Job
from semcorr.params import Params
from semcorr.provenance import expect, provenance

DIFFICULTIES = ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror")


def evaluate(job: Job, params: Params) -> str:
    """Write the three averages of PCK for each reference, per category, sub-set and difficulty."""
    path = job.inputs["matches"]
    inputs = {"matches": expect(path, job.expects["matches"])}
    matches = pd.read_parquet(path)
    settings = params.evaluate
    names = settings.references[params.datasets[job.cell["dataset"]].format]
    results = {name: _score(matches, name, params, path) for name in names}
    correct, overall = results[names[0]]
    cell = {
        "name": "/".join(job.cell.values()),
        "dataset": job.cell["dataset"],
        "num_pairs": int(matches["pair"].nunique()),
        "num_keypoints": len(matches),
        "protocol": {
            "coordinates": "(x, y) in original pixels; aspect ratio kept, padded cells never predicted",
            "reference": names[0],
            "thresholds": settings.thresholds,
            "correct": "distance <= threshold * reference",
            "std": "over keypoints, pairs, categories",
            "ci95": f"bootstrap over pairs, {settings.bootstrap} samples, seed {settings.seed}",
        },
        **overall,
        "per_category_keypoint": _per_group(correct, matches["category"], settings.thresholds),
        "per_category_image": _per_group_image(correct, matches, settings.thresholds),
        "per_difficulty": {
            name: _per_group(correct, matches[name], settings.thresholds)
            for name in DIFFICULTIES
            if matches[name].notna().any()
        },
        "per_subset": _per_group(correct, matches["subset"], settings.thresholds),
        "references": {name: score for name, (_, score) in results.items()},
        "examples": _examples(matches, correct, settings.thresholds),
        "provenance": provenance(job, inputs),
    }
    write_json(job.outputs["cell"], cell)
    key = pck.threshold_key(settings.thresholds[min(1, len(settings.thresholds) - 1)])
    mean = 100 * cell["overall_keypoint"][key]["mean"]
    return f"{' '.join(job.cell.values())}: {key} {mean:.1f} per keypoint ({names[0]}), {cell['num_pairs']:,} pairs"


def _score(matches: pd.DataFrame, reference: str, params: Params, path: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Correctness (N, T) under one reference, and the overall averages as they are stored."""
    settings = params.evaluate
    lengths = matches[reference].to_numpy(float)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise UserError(f"{path}: reference {reference!r} is not known for every pair; see evaluate.references")
    distance = pck.distances(matches[["predicted_x", "predicted_y"]], matches[["true_x", "true_y"]])
    correct = pck.is_correct(distance, lengths, settings.thresholds)
    pair, pairs = pd.factorize(matches["pair"])
    category = pd.factorize(matches.groupby("pair", sort=False)["category"].first().loc[pairs])[0]
    scores = pck.scores(correct, pair, category, samples=settings.bootstrap, seed=settings.seed)
    overall = {f"overall_{average}": score.to_dict(settings.thresholds) for average, score in scores.items()}
    return correct, overall


def _row(correct: np.ndarray, thresholds: list[float]) -> dict[str, Any]:
    means = {
        pck.threshold_key(threshold): float(correct[:, index].mean()) for index, threshold in enumerate(thresholds)
    }
    return {"num_keypoints": len(correct), **means}


def _per_group(correct: np.ndarray, group: pd.Series, thresholds: list[float]) -> dict[str, Any]:
    """PCK per keypoint of each value of a column; rows without one are in none."""
    known = sorted(group.dropna().unique())
    names = {value: str(int(value)) if not isinstance(value, str) else value for value in known}
    return {names[value]: _row(correct[(group == value).to_numpy()], thresholds) for value in known}


def _per_group_image(correct: np.ndarray, matches: pd.DataFrame, thresholds: list[float]) -> dict[str, Any]:
    """Mean over pairs of the pair's PCK, for each category."""
    frame = pd.DataFrame(correct, columns=[pck.threshold_key(threshold) for threshold in thresholds])
    frame = frame.assign(category=matches["category"], pair=matches["pair"])
    pairs = frame.groupby(["category", "pair"]).mean()
    return {
        category: {"num_pairs": len(part), **{key: float(value) for key, value in part.mean().items()}}
        for category, part in pairs.groupby(level="category")
    }


def _examples(matches: pd.DataFrame, correct: np.ndarray, thresholds: list[float]) -> list[dict[str, Any]]:
    """The middle pair of each category, the same in every cell, with what a picture of it needs."""
    column = min(1, len(thresholds) - 1)
    examples = []
    for category, part in matches.groupby("category"):
        pairs = part["pair"].unique()
        rows = part[part["pair"] == pairs[len(pairs) // 2]]
        examples.append(
            {
                "category": category,
                "pair": rows["pair"].iloc[0],
                "source_image": rows["source_image"].iloc[0],
                "target_image": rows["target_image"].iloc[0],
                "threshold": thresholds[column],
                "source": rows[["source_x", "source_y"]].to_numpy().tolist(),
                "predicted": rows[["predicted_x", "predicted_y"]].to_numpy().tolist(),
                "true": rows[["true_x", "true_y"]].to_numpy().tolist(),
                "correct": correct[rows.index, column].tolist(),
            }
        )
    return examples
