"""Measures beside PCK: what an error hit, parts that only geometry tells apart, and similarity as a confidence.

numpy and scipy only. Fractions are in [0, 1]. Intervals are 95 %, from a bootstrap over pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from semcorr.pck import resamples

KINDS = ("mirrored part", "other part", "background")
STEPS = 1000  # of the ranking, in intervals of confidence measures
PERCENT = np.arange(1, 101)  # of all answers, in the risk-coverage curve


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What each of N predictions has around it on its target, beside its own true keypoint.

    Attributes:
        other: (N,), distance to the nearest other annotated keypoint; infinity if there is none.
        twin: (N,), distance to the nearest keypoint of the same group: the part on another side or corner.
        twins: (N,) int, keypoints of its group that the target shows, itself among them; 0 if it is in no group.
    """

    other: np.ndarray
    twin: np.ndarray
    twins: np.ndarray


def surroundings(
    predicted: np.ndarray,
    keypoint: Sequence[str],
    target: np.ndarray,
    shown: Sequence[tuple[Sequence[str], np.ndarray]],
    group: Sequence[frozenset[str]],
) -> Surroundings:
    """Measure the distance of each prediction to its target's other keypoints.

    Args:
        predicted: (N, 2), x y.
        keypoint: N names of the keypoints that were asked for.
        target: (N,) int, the target of each prediction, an index of `shown`.
        shown: of each target the names and places (K, 2) of all its annotated keypoints.
        group: N sets of names, the group of each keypoint; empty if it is in none.
    """
    count = len(predicted)
    found = {name: np.full(count, np.inf) for name in ("other", "twin")}
    twins, names = np.zeros(count, int), np.asarray(keypoint, object)
    order = np.argsort(target, kind="stable")
    borders = np.flatnonzero(np.diff(target[order])) + 1
    for rows in np.split(order, borders) if count else []:
        ids, places = shown[target[rows[0]]]
        if not len(ids):
            continue
        places = np.asarray(places, float).reshape(-1, 2)
        away = np.hypot(*(predicted[rows, None] - places[None]).transpose(2, 0, 1))
        own = names[rows, None] == np.asarray(ids, object)[None]
        alike = {one: np.array([id_ in one for id_ in ids]) for one in {group[row] for row in rows}}
        twin = np.array([alike[group[row]] for row in rows])
        found["other"][rows] = np.where(own, np.inf, away).min(axis=1)
        found["twin"][rows] = np.where(own | ~twin, np.inf, away).min(axis=1)
        twins[rows] = twin.sum(axis=1)
    return Surroundings(**found, twins=twins)


def kinds_of_error(distance: np.ndarray, limit: np.ndarray, around: Surroundings) -> np.ndarray:
    """What each of N predictions hit: -1 its own keypoint, else an index of KINDS.

    A wrong answer hit the nearest other keypoint within the limit, which is a mirrored part or another one; the
    background, if there is none.

    Args:
        distance: (N,), to the truth.
        limit: (N,), up to which an answer hits a keypoint.
        around: the target's other keypoints.
    """
    kind = np.where(around.twin <= around.other, 0, 1)
    kind = np.where(around.other <= limit, kind, 2)
    return np.where(distance <= limit, -1, kind)


def rates(hits: np.ndarray, counted: np.ndarray, pair: np.ndarray, *, samples: int, seed: int) -> list[dict[str, Any]]:
    """Fractions with intervals: of the rows that count for each of K columns, how many are hits.

    Args:
        hits: (N, K) bool.
        counted: (N, K) bool; a row that is a hit counts.
        pair: (N,) int, 0 to P - 1.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Of each column `num_keypoints`, `mean` and `ci95`; None where nothing counts.
    """
    shape = (int(pair.max()) + 1, hits.shape[1])
    counts = np.stack([np.bincount(pair, weights=column, minlength=shape[0]) for column in counted.T], axis=1)
    right = np.stack([np.bincount(pair, weights=column, minlength=shape[0]) for column in hits.T], axis=1)
    drawn = resamples(shape[0], samples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        sampled = (drawn @ right) / (drawn @ counts)
        means = right.sum(axis=0) / counts.sum(axis=0)
    rows = []
    for mean, number, values in zip(means, counts.sum(axis=0), sampled.T, strict=True):
        span = np.nanpercentile(values, (2.5, 97.5)).tolist() if number else None
        rows.append({"num_keypoints": int(number), "mean": float(mean) if number else None, "ci95": span})
    return rows


def confidence(
    similarity: np.ndarray, right: np.ndarray, there: np.ndarray, pair: np.ndarray, *, samples: int, seed: int
) -> dict[str, Any]:
    """Judge similarity as a confidence over N answers, to keypoints that are there and to those that are not.

    Average precision (KAP): the answers ranked by similarity; the mean, over the keypoints that are there, of the
    precision at the rank of each right answer, 0 for a keypoint without one. Answers of the same similarity share a
    rank. Source: Mariotti et al., Improving Semantic Correspondence with Viewpoint-Guided Spherical Maps, CVPR 2024.
    Risk-coverage: the fraction of wrong answers among the most similar; what is not there is wrong however answered.

    Args:
        similarity: (N,).
        right: (N,) bool; an answer to what is not there is never right.
        there: (N,) bool, whether the target shows the keypoint.
        pair: (N,) int, 0 to P - 1.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `num_there`, `num_absent`, `kap` and `risk` (area under the risk-coverage curve) with `ci95`, the curve
        (`coverage`, `risk_at`), and `min_similarity`: keeping what is at least that similar has the best F1;
        None if no answer is right.
    """
    ranked, step = np.unique(-similarity, return_inverse=True)
    sums = [np.bincount(step, weights=values) for values in (np.ones(len(step)), right, there)]
    kept, found = np.cumsum(sums[0]), np.cumsum(sums[1])
    total = sums[2].sum()
    f1 = 2 * found / (kept + total)
    best = int(f1.argmax())
    coarse = step if step.max() < STEPS else step * STEPS // (int(step.max()) + 1)
    drawn = resamples(int(pair.max()) + 1, samples, seed)
    shape = (int(coarse.max()) + 1, drawn.shape[1])
    tables = [
        scipy.sparse.csr_matrix((values.astype(float), (coarse, pair)), shape=shape) @ drawn.T
        for values in (np.ones(len(step)), right, there)
    ]
    spans = np.percentile(_areas(*tables), (2.5, 97.5), axis=1)
    kap, risk = (float(area[0]) for area in _areas(*(one[:, None] for one in sums)))
    at = np.searchsorted(kept, -(-PERCENT * len(step) // 100))
    return {
        "num_there": int(total),
        "num_absent": int(len(step) - total),
        "kap": {"mean": kap, "ci95": spans[:, 0].tolist()},
        "risk": {"mean": risk, "ci95": spans[:, 1].tolist()},
        "coverage": (kept[at] / kept[-1]).tolist(),
        "risk_at": (1 - found[at] / kept[at]).tolist(),
        "min_similarity": float(-ranked[best]) if found[-1] else None,
    }


def _areas(kept: np.ndarray, right: np.ndarray, there: np.ndarray) -> np.ndarray:
    """KAP and the area under the risk-coverage curve (2, S), from counts (R, S) by rank, of S samples."""
    total = np.maximum(np.cumsum(kept, axis=0), 1e-12)
    precision = np.cumsum(right, axis=0) / total
    kap = (precision * right).sum(axis=0) / np.maximum(there.sum(axis=0), 1e-12)
    risk = ((1 - precision) * kept).sum(axis=0) / total[-1]
    return np.stack([kap, risk])
