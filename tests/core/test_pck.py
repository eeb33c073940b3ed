"""PCK by hand, against loops, and its bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcorr import pck

THRESHOLDS = [0.05, 0.1, 0.2]


def test_on_the_threshold_counts():
    distance = pck.distances(np.array([[3.0, 4.0], [3.0, 4.1]]), np.zeros((2, 2)))
    assert pck.is_correct(distance, np.array([50.0, 50.0]), [0.1]).tolist() == [[True], [False]]


def test_two_of_two_and_none_of_eight():
    correct = np.array([[True]] * 2 + [[False]] * 8)
    found = pck.scores(correct, np.array([0] * 2 + [1] * 8), np.array([0, 0]), samples=100, seed=0)
    assert found["image"].mean.tolist() == [0.5]
    assert found["keypoint"].mean.tolist() == [0.2]
    assert found["category"].mean.tolist() == [0.2]


def test_references():
    true = np.array([[10.0, 10.0], [40.0, 90.0]])
    found = pck.references(true, bbox=[0, 0, 50, 120], image_size=(300, 200))
    assert found == {"bbox": 120.0, "bbox_kp": 80.0, "image": 300.0}
    assert pck.references(true, bbox=None, image_size=(300, 200))["bbox"] is None


@given(st.integers(0, 2**31 - 1))
def test_averages_against_loops(seed):
    rng = np.random.default_rng(seed)
    pairs = int(rng.integers(1, 12))
    category = rng.integers(0, 3, pairs)
    pair = np.repeat(np.arange(pairs), rng.integers(1, 6, pairs))
    distance, reference = rng.uniform(0, 30, len(pair)), rng.uniform(50, 200, len(pair))
    correct = pck.is_correct(distance, reference, THRESHOLDS)
    found = pck.scores(correct, pair, category, samples=100, seed=1)
    for column, threshold in enumerate(THRESHOLDS):
        hits = [d <= threshold * r for d, r in zip(distance, reference, strict=True)]
        by_pair = [[h for h, p in zip(hits, pair, strict=True) if p == index] for index in range(pairs)]
        images = [sum(one) / len(one) for one in by_pair]
        categories = []
        for name in sorted(set(category.tolist())):
            pooled = [h for index, one in enumerate(by_pair) if category[index] == name for h in one]
            categories.append(sum(pooled) / len(pooled))
        assert found["keypoint"].mean[column] == pytest.approx(sum(hits) / len(hits))
        assert found["image"].mean[column] == pytest.approx(np.mean(images))
        assert found["category"].mean[column] == pytest.approx(np.mean(categories))
        assert found["image"].std[column] == pytest.approx(np.std(images))
    for score in found.values():
        assert (score.low <= score.high).all()
        assert (score.low >= 0).all()
        assert (score.high <= 1).all()


def test_interval_covers_the_truth():
    """Of 400 simulated experiments with a known PCK, the 95 % interval holds it in 93 to 97 %."""
    rng = np.random.default_rng(0)
    covered = 0
    for experiment in range(400):
        rate = rng.beta(6, 4, 120)  # each pair has its own difficulty; the mean is 0.6
        correct = (rng.random((120, 8)) < rate[:, None]).reshape(-1, 1)
        score = pck.scores(correct, np.repeat(np.arange(120), 8), np.zeros(120, int), samples=400, seed=experiment)[
            "keypoint"
        ]
        covered += bool(score.low[0] <= 0.6 <= score.high[0])
    assert 0.93 <= covered / 400 <= 0.97


def test_same_seed_same_interval():
    correct = np.random.default_rng(0).random((60, 2)) < 0.5
    pair, category = np.repeat(np.arange(20), 3), np.arange(20) % 4
    first, again, other = (pck.scores(correct, pair, category, samples=200, seed=seed) for seed in (3, 3, 4))
    assert first["image"].low.tolist() == again["image"].low.tolist()
    assert first["category"].high.tolist() == again["category"].high.tolist()
    assert first["image"].low.tolist() != other["image"].low.tolist()


def _correctness(seed: int, pairs: int, keypoints: int, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints of a pair share their luck, as those of a hard image do."""
    rng = np.random.default_rng(seed)
    luck = rng.normal(0, 0.15, (pairs, 1, 1))
    correct = rng.uniform(size=(pairs, keypoints, len(chance))) < chance + luck
    return correct.reshape(-1, len(chance)), np.repeat(np.arange(pairs), keypoints)


def _compare(first: np.ndarray, second: np.ndarray, pair: np.ndarray, **bootstrap: int) -> pck.Difference:
    (one, counts), (other, _) = (pck.by_pair(correct, pair) for correct in (first, second))
    return pck.compare(one, other, counts, **bootstrap)


def test_a_run_does_not_differ_from_itself():
    correct, pair = _correctness(0, 50, 6, np.array([0.3, 0.6]))
    hits, counts = pck.by_pair(correct, pair)
    found = pck.compare(hits, hits, counts, samples=500, seed=0)
    assert found.mean.tolist() == found.low.tolist() == found.high.tolist() == [0, 0]
    assert found.p.tolist() == [1, 1]


def test_a_difference_by_hand():
    """Three pairs of two keypoints: one is won, one is lost, one is as before."""
    first = np.array([[0], [0], [1], [1], [1], [0]], bool)
    second = np.array([[1], [0], [0], [1], [1], [0]], bool)
    found = _compare(first, second, np.array([0, 0, 1, 1, 2, 2]), samples=1000, seed=0)
    assert found.mean[0] == 0
    assert (found.low[0], found.high[0]) == (-0.5, 0.5)  # one sample in 27 draws the same pair three times
    assert found.p[0] > 0.5


def test_the_interval_of_a_difference_covers_it():
    """Over many experiments whose true difference is known; equal runs are called different about one time in 20."""
    covered, called = [], []
    for seed in range(300):
        first, pair = _correctness(2 * seed, 80, 5, np.array([0.5]))
        second, _ = _correctness(2 * seed + 1, 80, 5, np.array([0.58]))
        found = _compare(first, second, pair, samples=300, seed=seed)
        covered.append(found.low[0] <= 0.08 <= found.high[0])
        equal, _ = _correctness(2 * seed + 1, 80, 5, np.array([0.5]))
        called.append(_compare(first, equal, pair, samples=300, seed=seed).p[0] < 0.05)
    assert 0.91 <= np.mean(covered) <= 0.98
    assert np.mean(called) <= 0.09
