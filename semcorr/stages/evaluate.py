"""evaluate: PCK and further measures of one cell from its matches, as one JSON file and a table of its pairs."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from semcorr import measures, pck
from semcorr.artifacts.provenance import expect, provenance, read_table, write_result, write_table
from semcorr.datasets import hold_outs, masks
from semcorr.datasets.base import Image, read_images
from semcorr.datasets.sides import groups
from semcorr.engine.graph import Job
from semcorr.errors import UserError
from semcorr.params import Params

DIFFICULTIES = ("viewpoint_variation", "scale_variation", "truncation", "occlusion", "mirror")


def evaluate(job: Job, params: Params) -> str:
    """Write PCK for each reference, per category, subset, difficulty and keypoint, the error distribution, and more.

    More: PCK of keypoints that only geometry tells apart, PCK-dagger, what errors hit, and similarity as a confidence.

    The table has one row per pair: its keypoints, and how many are correct at each threshold.
    """
    path = job.inputs["matches"]
    inputs = {role: expect(file, job.expects[role]) for role, file in job.inputs.items()}
    matches = read_table(path).to_pandas()
    if matches.empty:
        raise UserError(f"{path}: no pair of this dataset has a keypoint, so there is nothing to score")
    settings = params.evaluate
    names = settings.references[params.datasets[job.cell["dataset"]].format]
    record = provenance(job, inputs)
    pair, pairs = _pairs(matches)
    errors = {name: pck.errors(matches, name, path) for name in names}
    correct = {name: pck.is_correct(*error, settings.thresholds) for name, error in errors.items()}
    scores = {name: _overall(hits, pair, pairs, params) for name, hits in correct.items()}
    error, headline = errors[names[0]], correct[names[0]]
    cell = {
        "name": "/".join(job.cell.values()),
        "dataset": job.cell["dataset"],
        "num_pairs": len(pairs),
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
        "per_category_image": _per_group_image(headline, pair, pairs, settings.thresholds),
        "per_difficulty": {
            name: _per_group(headline, matches[name], settings.thresholds)
            for name in DIFFICULTIES
            if matches[name].notna().any()
        },
        "per_subset": _per_group(headline, matches["subset"], settings.thresholds),
        **_further(job, params, matches, pair, error, headline),
        "error_distribution": _distribution(*error),
        "references": scores,
        "provenance": record,
    }
    table = _pair_table(headline, pair, pairs, settings.thresholds)
    if params.hold_outs is not None:
        group = hold_outs.groups(matches["category"].tolist(), matches["keypoint"].tolist(), params.hold_outs)
        cell |= {"hold_outs": _held_out(headline, pair, group, params)}
        table = _with_groups(table, headline[:, settings.thresholds.index(settings.headline)], pair, group)
    write_table(job.outputs["pairs"], table, record)
    write_result(job.outputs["cell"], cell)
    key = pck.threshold_key(settings.headline)
    mean = 100 * cell["overall_keypoint"][key]["mean"]
    return f"{' '.join(job.cell.values())}: {key} {mean:.1f} per keypoint ({names[0]}), {cell['num_pairs']:,} pairs"


def _further(
    job: Job,
    params: Params,
    matches: pd.DataFrame,
    pair: np.ndarray,
    error: tuple[np.ndarray, np.ndarray],
    correct: np.ndarray,
) -> dict[str, Any]:
    """The measures beside PCK, of the first reference.

    Args:
        job: names the inputs.
        params: of the job.
        matches: a row per keypoint.
        pair: (N,) int, the pair of each.
        error: distance and reference length (N,), from `pck.errors`.
        correct: (N, T) bool, at each threshold.
    """
    settings, format_ = params.evaluate, params.datasets[job.cell["dataset"]].format
    bootstrap = {"samples": settings.bootstrap, "seed": settings.seed}
    keys = list(map(pck.threshold_key, settings.thresholds))
    lead = settings.thresholds.index(settings.headline)
    distance, lengths = error
    images = read_images(job.inputs["images"])
    around = _surroundings(images, matches, settings.sides.get(format_))
    geometric = around.twins >= 2
    undisputed = distance <= around.other
    kind = measures.kinds_of_error(distance, settings.headline * lengths, around)
    wrong = kind >= 0
    number, known = pd.MultiIndex.from_frame(matches[["category", "keypoint"]]).factorize(sort=True)
    each = number[:, None] == np.arange(len(known))
    columns = [
        (correct & geometric[:, None], np.broadcast_to(geometric[:, None], correct.shape)),
        (correct & undisputed[:, None], np.ones_like(correct)),
        (kind[:, None] == np.arange(len(measures.KINDS)), np.repeat(wrong[:, None], len(measures.KINDS), axis=1)),
        (each & correct[:, lead, None], each),
    ]
    hits, counted = (np.concatenate(parts, axis=1) for parts in zip(*columns, strict=True))
    found = iter(measures.rates(hits, counted, pair, **bootstrap))
    geometry_aware, dagger, errors = ({name: next(found) for name in part} for part in (keys, keys, measures.KINDS))
    if format_ not in settings.sides:  # which parts are mirrored is not known
        errors[measures.KINDS[0]] = {"num_keypoints": int(wrong.sum()), "mean": None, "ci95": None}
    per_keypoint: dict[str, dict[str, Any]] = {}
    for (category, name), row in zip(known, found, strict=True):
        per_keypoint.setdefault(category, {})[name] = row
    absent = read_table(job.inputs["absent"]).to_pandas()
    every = pd.concat([matches[["pair", "similarity"]], absent[["pair", "similarity"]]])
    there = np.arange(len(every)) < len(matches)
    right = np.concatenate([correct[:, lead], np.zeros(len(absent), bool)])
    return {
        "off_object": _off_object(images, matches, pair, **bootstrap),
        "geometry_aware": geometry_aware if geometric.any() else None,
        "dagger": dagger,
        "errors": errors,
        "per_keypoint": per_keypoint,
        "confidence": measures.confidence(
            every["similarity"].to_numpy(), right, there, pd.factorize(every["pair"])[0], **bootstrap
        ),
    }


def _off_object(
    images: list[Image], matches: pd.DataFrame, pair: np.ndarray, **bootstrap: int
) -> dict[str, Any] | None:
    """The fraction of all answers that do not lie on the object; None where the dataset has no masks."""
    known = {image.id: image for image in images}
    missed, places = np.zeros(len(matches), bool), matches[["predicted_x", "predicted_y"]].to_numpy()
    for image_id, rows in matches.groupby("target_image").indices.items():
        if known[image_id].mask is None:
            return None
        missed[rows] = ~masks.contains(masks.of(known[image_id]), places[rows])
    return measures.rates(missed[:, None], np.ones((len(missed), 1), bool), pair, **bootstrap)[0]


def _surroundings(images: list[Image], matches: pd.DataFrame, table: str | None) -> measures.Surroundings:
    """The other keypoints around each prediction: all that the target's annotation has, or else the pair's own."""
    shown = {image.id: (image.keypoint_ids, np.array(image.keypoints)) for image in images}
    target = matches["target_image"].to_numpy(object)
    unknown = np.array([not shown[id_][0] for id_ in target], bool)
    if unknown.any():
        target = np.where(unknown, "pair " + matches["pair"].to_numpy(object), target)
        for name, rows in matches[unknown].groupby("pair"):
            shown[f"pair {name}"] = (rows["keypoint"].tolist(), rows[["true_x", "true_y"]].to_numpy())
    number, known = pd.factorize(target)
    names: dict[str, set[str]] = {}
    for category, id_ in set(zip(matches["category"], target, strict=True)):
        names.setdefault(category, set()).update(shown[id_][0])
    in_group = {
        (category, name): group
        for category in names
        for group in (groups(table, category, names[category]) if table else [])
        for name in group
    }
    keypoint = matches["keypoint"].tolist()
    empty: frozenset[str] = frozenset()
    return measures.surroundings(
        matches[["predicted_x", "predicted_y"]].to_numpy(),
        keypoint,
        number,
        [shown[id_] for id_ in known],
        [in_group.get(row, empty) for row in zip(matches["category"], keypoint, strict=True)],
    )


def _pairs(matches: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Each keypoint's pair number (N,), and the pairs' ids and categories."""
    pairs = matches.drop_duplicates("pair")[["pair", "category"]].reset_index(drop=True)
    return pd.factorize(matches["pair"])[0], pairs


def _left_out(matches: dict[str, Any]) -> dict[str, int]:
    """What the benchmark lists but the results do not include -> how many."""
    counts = dict(matches["inputs"]["pairs"].get("left_out", {}))
    empty = matches.get("pairs_without_keypoints", 0)
    return counts | ({"pairs without keypoints": empty} if empty else {})


def _overall(correct: np.ndarray, pair: np.ndarray, pairs: pd.DataFrame, params: Params) -> dict[str, Any]:
    """The overall averages for one reference, as stored."""
    settings = params.evaluate
    category = pd.factorize(pairs["category"])[0]
    scores = pck.scores(correct, pair, category, samples=settings.bootstrap, seed=settings.seed)
    return {f"overall_{average}": score.to_dict(settings.thresholds) for average, score in scores.items()}


def _row(correct: np.ndarray, thresholds: list[float]) -> dict[str, Any]:
    means = zip(map(pck.threshold_key, thresholds), correct.mean(0).tolist(), strict=True)
    return {"num_keypoints": len(correct), **dict(means)}


def _per_group(correct: np.ndarray, group: pd.Series, thresholds: list[float]) -> dict[str, Any]:
    """PCK per keypoint for each value of a column; missing values have no group."""
    values = sorted(group.dropna().unique())
    names = [value if isinstance(value, str) else str(int(value)) for value in values]
    rows = [_row(correct[(group == value).to_numpy()], thresholds) for value in values]
    return dict(zip(names, rows, strict=True))


def _per_group_image(
    correct: np.ndarray, pair: np.ndarray, pairs: pd.DataFrame, thresholds: list[float]
) -> dict[str, Any]:
    """Mean over pairs of the pair's PCK, for each category."""
    hits, counts = pck.by_pair(correct, pair)
    fractions, result = hits / counts[:, None], {}
    for name in sorted(pairs["category"].unique()):
        part = fractions[(pairs["category"] == name).to_numpy()]
        means = zip(map(pck.threshold_key, thresholds), part.mean(axis=0).tolist(), strict=True)
        result[name] = {"num_pairs": len(part), **dict(means)}
    return result


def _distribution(distance: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """The median error, as a fraction of the reference, and PCK per keypoint over thresholds."""
    return {
        "median": float(np.median(distance / reference)),
        "threshold": pck.CURVE,
        "pck": pck.is_correct(distance, reference, pck.CURVE).mean(axis=0).tolist(),
    }


def _pair_table(correct: np.ndarray, pair: np.ndarray, pairs: pd.DataFrame, thresholds: list[float]) -> pa.Table:
    """One row per pair: id, category, keypoints, and correct keypoints at each threshold."""
    hits, counts = pck.by_pair(correct, pair)
    columns = {
        "pair": pa.array(pairs["pair"], pa.string()),
        "category": pa.array(pairs["category"], pa.string()),
        "num_keypoints": pa.array(counts.astype(np.int32)),
    }
    for threshold, column in zip(thresholds, hits.T, strict=True):
        columns[pck.threshold_key(threshold)] = pa.array(column.astype(np.int32))
    return pa.table(columns)


def _held_out(correct: np.ndarray, pair: np.ndarray, group: np.ndarray, params: Params) -> dict[str, Any]:
    """PCK of what tunings are trained on and of what is held out from them, at each threshold."""
    settings = params.evaluate
    keys = list(map(pck.threshold_key, settings.thresholds))
    each = np.repeat(group[:, None] == np.arange(len(hold_outs.GROUPS)), len(keys), axis=1)
    hits = each & np.tile(correct, len(hold_outs.GROUPS))
    rows = iter(measures.rates(hits, each, pair, samples=settings.bootstrap, seed=settings.seed))
    return {name: {key: next(rows) for key in keys} for name in hold_outs.GROUPS}


def _with_groups(table: pa.Table, correct: np.ndarray, pair: np.ndarray, group: np.ndarray) -> pa.Table:
    """The table of pairs with each group's keypoints, and how many are correct at the headline threshold."""
    for number, name in enumerate(hold_outs.GROUPS):
        for column, weights in ((name, group == number), (f"{name} correct", (group == number) & correct)):
            counts = np.bincount(pair, weights=weights, minlength=len(table)).astype(np.int32)
            table = table.append_column(column, pa.array(counts))
    return table
