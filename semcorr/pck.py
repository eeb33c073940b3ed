"""PCK, the percentage of correct keypoints: three averages and their bootstrap. numpy only.

A prediction is correct at threshold T when its distance to the truth is at most T times a reference length, both in
pixels of the original target image. All fractions are in [0, 1]; papers multiply by 100. Averages:

    keypoint   all keypoints pooled
    image      mean over pairs of the pair's own fraction
    category   mean over categories of the category's pooled fraction
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from semcorr.errors import UserError

AVERAGES = ("keypoint", "image", "category")
CURVE = (np.arange(61) / 200).tolist()  # thresholds 0 to 0.3 of the error distribution


def threshold_key(threshold: float) -> str:
    """The name of a threshold in every result.

    >>> threshold_key(0.1)
    'PCK@0.10'
    """
    return f"PCK@{threshold:.2f}" if round(threshold, 2) == threshold else f"PCK@{threshold}"


def distances(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Euclidean distance (N,) between points (N, 2).

    Raises:
        ValueError: their shapes differ.
    """
    if np.shape(predicted) != np.shape(true):
        raise ValueError(
            f"predicted points are {np.shape(predicted)}, true ones {np.shape(true)}, expected both (N, 2)"
        )
    return np.hypot(*(np.asarray(predicted, float) - np.asarray(true, float)).T)


def errors(matches: Any, reference: str, where: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each keypoint's distance to the truth and its reference length, both (N,), in pixels.

    Args:
        matches: a data frame of matches, as written by the stage match.
        reference: "bbox", "bbox_kp" or "image".
        where: the table's name in errors.

    Raises:
        UserError: a point is not finite, or a pair's reference is unknown or zero; the message names the pair.
    """
    distance = distances(matches[["predicted_x", "predicted_y"]], matches[["true_x", "true_y"]])
    lengths = matches[reference].to_numpy(float)
    wrong = {
        "a predicted or true keypoint is not finite. Run the stage match again": ~np.isfinite(distance),
        f"reference {reference!r} is not known for it; see evaluate.references": ~np.isfinite(lengths),
        f"reference {reference!r} is zero: all its target keypoints coincide, or its box is empty. Remove the "
        "pair from the dataset, or choose another of evaluate.references": lengths <= 0,
    }
    for problem, rows in wrong.items():
        if rows.any():
            raise UserError(f"{where}: pair {matches['pair'].iloc[int(rows.argmax())]}: {problem}")
    return distance, lengths


def is_correct(distance: np.ndarray, reference: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """Which of N keypoints are correct at each of T thresholds; a distance equal to the limit counts.

    >>> is_correct(np.array([10.0, 10.1]), np.array([100.0, 100.0]), [0.1])
    array([[ True],
           [False]])
    """
    return np.asarray(distance)[:, None] <= np.asarray(reference)[:, None] * np.asarray(thresholds)


def references(true: np.ndarray, *, bbox: list[float] | None, image_size: tuple[int, int]) -> dict[str, float | None]:
    """The reference lengths of one target image, in pixels.

    Args:
        true: its annotated keypoints (N, 2), without padding values.
        bbox: its object box (x0, y0, x1, y1), if the benchmark has one.
        image_size: (height, width).

    Returns:
        "bbox": longer side of the box, or None; "bbox_kp": larger extent of the keypoints; "image": longer side.
    """
    return {
        "bbox": None if bbox is None else float(max(bbox[2] - bbox[0], bbox[3] - bbox[1])),
        "bbox_kp": float(np.ptp(np.asarray(true, float), axis=0).max()),
        "image": float(max(image_size)),
    }


def by_pair(correct: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correct keypoints (P, T) and all keypoints (P,) of each pair, both float.

    Args:
        correct: (N, T) bool, keypoints by thresholds.
        pair: (N,) int, the pair of each keypoint, 0 to P - 1, each at least once.
    """
    counts = np.bincount(pair).astype(float)
    hits = np.zeros((len(counts), correct.shape[1]))
    np.add.at(hits, pair, correct)
    return hits, counts


@dataclass(frozen=True, kw_only=True)
class Score:
    """One average at each of T thresholds.

    Attributes:
        mean: (T,).
        std: (T,), over the keypoints, pairs or categories that are averaged.
        low, high: (T,), 95 % interval of the mean, from a bootstrap over pairs.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def to_dict(self, thresholds: list[float]) -> dict[str, dict[str, Any]]:
        """The average as stored in results: "PCK@0.10" -> mean, std, ci95."""
        return {
            threshold_key(threshold): {
                "mean": float(self.mean[index]),
                "std": float(self.std[index]),
                "ci95": [float(self.low[index]), float(self.high[index])],
            }
            for index, threshold in enumerate(thresholds)
        }


def scores(correct: np.ndarray, pair: np.ndarray, category: np.ndarray, *, samples: int, seed: int) -> dict[str, Score]:
    """The three averages of PCK, with intervals.

    Args:
        correct: (N, T) bool, keypoints by thresholds; N is at least one.
        pair: (N,) int, the pair of each keypoint, 0 to P - 1.
        category: (P,) int, the category of each pair.
        samples: of the bootstrap.
        seed: of the bootstrap.
    """
    hits, counts = by_pair(correct, pair)
    onehot = (category[:, None] == np.unique(category)).astype(float)  # (P, K)
    drawn = resamples(len(category), samples, seed)
    values = {
        "keypoint": correct.astype(float),
        "image": hits / counts[:, None],
        "category": (onehot.T @ hits) / (onehot.T @ counts)[:, None],
    }
    sampled = {
        "keypoint": (drawn @ hits) / (drawn @ counts)[:, None],
        "image": drawn @ values["image"] / len(category),
        "category": _category_means(drawn, hits, counts, onehot),
    }
    result = {}
    for average in AVERAGES:
        low, high = np.percentile(sampled[average], (2.5, 97.5), axis=0)
        mean, std = values[average].mean(axis=0), values[average].std(axis=0)
        result[average] = Score(mean=mean, std=std, low=low, high=high)
    return result


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between two sets of predictions on the same pairs, at each of T thresholds.

    Attributes:
        mean: (T,), the second's average minus the first's.
        low, high: (T,), its 95 % interval, from a bootstrap over pairs that draws the same pairs for both.
        p: (T,), two-sided: twice the fraction of samples on the other side of zero, at least 1 / samples.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def compare(first: np.ndarray, second: np.ndarray, counts: np.ndarray, *, samples: int, seed: int) -> Difference:
    """The difference of two PCKs per keypoint, by a paired bootstrap.

    Args:
        first: (P, T), correct keypoints of each pair at each threshold, as counted by `by_pair`.
        second: the same for the other predictions.
        counts: (P,), all keypoints of each pair.
        samples: of the bootstrap.
        seed: of the bootstrap.
    """
    gained = second - first
    drawn = resamples(len(counts), samples, seed)
    sampled = (drawn @ gained) / (drawn @ counts)[:, None]
    low, high = np.percentile(sampled, (2.5, 97.5), axis=0)
    p = np.clip(2 * np.minimum((sampled <= 0).mean(axis=0), (sampled >= 0).mean(axis=0)), 1 / samples, 1.0)
    return Difference(mean=gained.sum(axis=0) / counts.sum(), low=low, high=high, p=p)


@lru_cache(maxsize=1)
def resamples(pairs: int, samples: int, seed: int) -> np.ndarray:
    """How often each pair is drawn in each sample (samples, pairs); not to be written to."""
    drawn = np.random.default_rng(seed).multinomial(pairs, np.full(pairs, 1 / pairs), size=samples).astype(float)
    drawn.flags.writeable = False
    return drawn


def _category_means(drawn: np.ndarray, hits: np.ndarray, counts: np.ndarray, onehot: np.ndarray) -> np.ndarray:
    """Each sample's mean over categories (samples, T), without categories that were not drawn."""
    total, present = np.zeros((len(drawn), hits.shape[1])), np.zeros(len(drawn))
    for member in onehot.T:
        keypoints = drawn @ (counts * member)
        has_any = keypoints > 0
        total[has_any] += (drawn[has_any] @ (hits * member[:, None])) / keypoints[has_any, None]
        present += has_any
    return total / present[:, None]
