"""Measures beside PCK: each by hand, and against a direct computation on random predictions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcorr import measures
from semcorr.datasets import sides
from semcorr.datasets.toy.benchmarks import keypoint_numbers
from semcorr.datasets.toy.objects import CATEGORIES

NONE: frozenset[str] = frozenset()
FEET = frozenset("lr")


def _one(predicted, keypoint="l", shown=None, group=FEET):
    """The surroundings of one prediction; a target with two feet, l at 0,0 and r at 10,0, and a nose n at 0,20."""
    shown = [(["l", "r", "n"], np.array([[0, 0], [10, 0], [0, 20]]))] if shown is None else shown
    return measures.surroundings(np.array([predicted], float), [keypoint], np.array([0]), shown, [group])


def test_what_an_error_hit_by_hand():
    """Asked for the left foot at 0,0 with a limit of 4: five answers."""
    answers = {(1, 0): -1, (9, 0): 0, (0, 19): 1, (5, 0): 2, (40, 40): 2}
    for answer, expected in answers.items():
        distance = np.array([np.hypot(*answer)])
        kind = measures.kinds_of_error(distance, np.array([4.0]), _one(answer))
        assert kind.tolist() == [expected], answer
    between = _one((6, 0))  # right by a limit of 7, but the other foot is nearer
    assert (between.other[0], between.twin[0], between.twins[0]) == (4, 4, 2)


def test_who_counts_for_the_geometry_aware_subset_by_hand():
    """Both feet shown: two. One shown: one, so it does not count. A keypoint in no group: none."""
    alone = [(["l", "n"], np.array([[0, 0], [0, 20]]))]
    assert _one((0, 0)).twins.tolist() == [2]
    assert _one((0, 0), shown=alone).twins.tolist() == [1]
    assert _one((0, 0), keypoint="n", group=NONE).twins.tolist() == [0]
    single = _one((0, 0), shown=[(["l"], np.zeros((1, 2)))])
    assert (single.other[0], single.twin[0]) == (np.inf, np.inf)


POINTS = st.integers(0, 30)
TARGET = st.dictionaries(st.sampled_from("abcdef"), st.tuples(POINTS, POINTS), min_size=1)


@st.composite
def predictions(draw):
    """Targets with some keypoints, and answers to some of these."""
    shown = draw(st.lists(TARGET, min_size=1, max_size=4))
    rows = []
    for number, points in enumerate(shown):
        for name in draw(st.lists(st.sampled_from(sorted(points)), max_size=4)):
            rows.append((number, name, (draw(POINTS), draw(POINTS))))
    return shown, rows


@given(predictions())
def test_surroundings_are_those_of_a_plain_loop(drawn):
    shown, rows = drawn
    groups = {name: frozenset(group) for group in ("ab", "cde") for name in group}
    found = measures.surroundings(
        np.array([answer for *_, answer in rows], float).reshape(-1, 2),
        [name for _, name, _ in rows],
        np.array([number for number, *_ in rows], int),
        [(list(points), np.array(list(points.values()), float)) for points in shown],
        [groups.get(name, NONE) for _, name, _ in rows],
    )
    for at, (number, name, (x, y)) in enumerate(rows):
        away = {one: np.hypot(x - u, y - v) for one, (u, v) in shown[number].items() if one != name}
        group = groups.get(name, NONE)
        assert found.other[at] == pytest.approx(min(away.values(), default=np.inf))
        assert found.twin[at] == pytest.approx(min((d for one, d in away.items() if one in group), default=np.inf))
        assert found.twins[at] == sum(one in group for one in shown[number])


def test_rates_by_hand():
    """Three of four hits, then nothing that counts; the interval holds the mean and is seeded."""
    hits = np.array([[1, 0], [1, 0], [0, 0], [1, 0]], bool)
    counted = np.array([[1, 0]] * 4, bool)
    first = measures.rates(hits, counted, np.array([0, 0, 1, 2]), samples=200, seed=0)
    assert first == measures.rates(hits, counted, np.array([0, 0, 1, 2]), samples=200, seed=0)
    assert (first[0]["num_keypoints"], first[0]["mean"]) == (4, 0.75)
    assert first[0]["ci95"][0] <= 0.75 <= first[0]["ci95"][1]
    assert first[1] == {"num_keypoints": 0, "mean": None, "ci95": None}


def _confidence(similarity, right, there, pair=None):
    right, there = np.array(right, bool), np.array(there, bool)
    pair = np.arange(len(right)) if pair is None else pair
    return measures.confidence(np.array(similarity, float), right, there, pair, samples=100, seed=0)


def test_confidence_by_hand():
    """Ranked: right, wrong, right, absent; of three that are there.

    KAP (1 + 2/3) / 3; risks 0, 1/2, 1/3, 1/2, on average 1/3; F1 is best with the first three: 4 / 6.
    """
    found = _confidence([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], [1, 1, 1, 0])
    assert found["kap"]["mean"] == pytest.approx(5 / 9)
    assert found["risk"]["mean"] == pytest.approx(1 / 3)
    assert (found["num_there"], found["num_absent"], found["min_similarity"]) == (3, 1, 0.7)
    assert found["risk_at"][24] == 0
    assert found["risk_at"][99] == pytest.approx(0.5)
    most = _confidence(np.linspace(1, 0, 100), [1] * 7 + [0] * 93, [1] * 100)
    assert (most["coverage"][6], most["risk_at"][6], most["risk_at"][7]) == (0.07, 0, 1 / 8)
    # What is alike shares a rank: two right of three at once.
    assert _confidence([0.5, 0.5, 0.5], [1, 0, 1], [1, 1, 1])["kap"]["mean"] == pytest.approx(2 / 3 * 2 / 3)


ANSWERS = st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["right", "wrong", "absent"])), min_size=1, max_size=40)


@given(ANSWERS)
def test_confidence_is_that_of_a_plain_loop(rows):
    similarity = [value / 8 for value, _ in rows]
    right, there = [kind == "right" for _, kind in rows], [kind != "absent" for _, kind in rows]
    found = _confidence(similarity, right, there, np.arange(len(rows)) // 2)
    kap = risk = 0.0
    best = -1.0
    for value in sorted(set(similarity)):
        kept = [one for one, other in zip(right, similarity, strict=True) if other >= value]
        here = [one for one, other in zip(right, similarity, strict=True) if other == value]
        kap += sum(kept) / len(kept) * sum(here)
        risk += (1 - sum(kept) / len(kept)) * len(here)
        best = max(best, 2 * sum(kept) / (len(kept) + sum(there)))
    if any(right):
        kept = [one for one, other in zip(right, similarity, strict=True) if other >= found["min_similarity"]]
        assert 2 * sum(kept) / (len(kept) + sum(there)) == pytest.approx(best)
    else:
        assert found["min_similarity"] is None
    assert found["kap"]["mean"] == pytest.approx(kap / max(sum(there), 1e-12))
    assert found["risk"]["mean"] == pytest.approx(risk / len(rows))
    whole = _confidence(similarity, right, there, np.zeros(len(rows), int))  # every resample of one pair is the pair
    for name in ("kap", "risk"):
        assert whole[name]["ci95"] == pytest.approx([found[name]["mean"]] * 2)


def test_groups_of_drawn_objects_follow_from_their_names():
    """What differs in left, right, front, rear or hind alone is one group."""
    for category in CATEGORIES:
        parts: dict[str, set[str]] = {}
        for name, number in keypoint_numbers(category).items():
            words = [word for word in name.split("_") if word not in ("left", "right", "front", "rear", "hind")]
            parts.setdefault("_".join(words), set()).add(number)
        expected = {frozenset(numbers) for numbers in parts.values() if len(numbers) > 1}
        assert set(sides.groups("toy", category)) == expected
    assert sides.groups("toy", "unheard of") == sides.groups("spair71k", "unheard of") == []
    assert frozenset({"9", "10", "11", "12"}) in sides.groups("spair71k", "cat")
    assert sides.groups("ap10k", "zebra") == sides.groups("ap10k", "cat")


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_rates_are_those_of_a_plain_count(rows):
    """Per keypoint, dagger, geometry-aware and errors are such rates; resampling one pair alone gives the same mean."""
    pair = np.unique([number for number, *_ in rows], return_inverse=True)[1]
    counted = np.array([[first, second] for _, first, second, _ in rows])
    hits = counted & np.array([[hit] for *_, hit in rows])
    for column, row in enumerate(measures.rates(hits, counted, pair, samples=100, seed=1)):
        kept = [hit for hit, counts in zip(hits[:, column], counted[:, column], strict=True) if counts]
        assert row["num_keypoints"] == len(kept)
        assert row["mean"] == (pytest.approx(sum(kept) / len(kept)) if kept else None)
        if kept and len(set(pair)) == 1:
            assert row["ci95"] == pytest.approx([row["mean"]] * 2)
