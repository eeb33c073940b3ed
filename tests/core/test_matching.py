"""Readouts and matching: maps and images whose answer is known by construction."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semcorr.geometry import Grid
from semcorr.matching import match_pairs
from semcorr.networks.losses.gaussian_ce import gaussian_ce
from semcorr.params import SoftArgmax
from semcorr.readouts import readout
from semcorr.readouts.argmax import argmax
from semcorr.readouts.kernel_softargmax import kernel_softargmax
from semcorr.readouts.softargmax import softargmax
from semcorr.tensors import normalise, sample


def test_argmax_takes_the_first_of_equals():
    maps = torch.zeros(1, 3, 4)
    maps[0, 1, 3] = maps[0, 2, 0] = 1.0
    assert argmax(maps).tolist() == [[3.0, 1.0]]


@given(st.integers(0, 4), st.integers(0, 6), st.sampled_from([1, 3, 5, 11]))
def test_softargmax_of_a_delta_is_that_cell(row, column, window):
    maps = torch.zeros(1, 5, 7)
    maps[0, row, column] = 1.0
    found = softargmax(maps, window, temperature=0.01)
    torch.testing.assert_close(found, torch.tensor([[float(column), float(row)]]))


@given(st.integers(0, 2**31 - 1), st.sampled_from([3, 5, 15]))
def test_softargmax_against_a_loop(seed, window):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 9, 2)
    values = rng.uniform(-1, 1, (height, width))
    peak = np.unravel_index(values.argmax(), values.shape)
    total = x = y = 0.0
    for i in range(height):
        for j in range(width):
            if abs(i - peak[0]) <= window // 2 and abs(j - peak[1]) <= window // 2:
                weight = np.exp(values[i, j] / 0.05)
                total, x, y = total + weight, x + weight * j, y + weight * i
    found = softargmax(torch.from_numpy(values)[None], window, temperature=0.05)
    np.testing.assert_allclose(found[0].numpy(), [x / total, y / total], atol=1e-9)


@given(st.integers(0, 2**31 - 1), st.sampled_from([0.5, 2.0, 50.0]))
def test_kernel_softargmax_against_a_loop(seed, sigma):
    """The softmax of the whole map, times a Gaussian at its peak, as it is written down."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 9, 2)
    values = rng.uniform(-1, 1, (height, width))
    peak = np.unravel_index(values.argmax(), values.shape)
    softmax = np.exp(values / 0.05) / np.exp(values / 0.05).sum()
    total = x = y = 0.0
    for i in range(height):
        for j in range(width):
            weight = softmax[i, j] * np.exp(-((i - peak[0]) ** 2 + (j - peak[1]) ** 2) / (2 * sigma**2))
            total, x, y = total + weight, x + weight * j, y + weight * i
    found = kernel_softargmax(torch.from_numpy(values)[None], sigma, temperature=0.05)
    np.testing.assert_allclose(found[0].numpy(), [x / total, y / total], atol=1e-9)


def test_kernel_softargmax_between_its_limits():
    """A narrow kernel, or a low temperature: argmax. A wide kernel: the soft-argmax of a window as wide as the map."""
    maps = torch.rand(20, 9, 11, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(kernel_softargmax(maps, 0.01, temperature=0.1), argmax(maps), atol=1e-6, rtol=0)
    torch.testing.assert_close(kernel_softargmax(maps, 3.0, temperature=1e-6), argmax(maps), atol=1e-3, rtol=0)
    everywhere = softargmax(maps, 23, temperature=0.1)
    torch.testing.assert_close(kernel_softargmax(maps, 1e6, temperature=0.1), everywhere, atol=1e-6, rtol=0)


def test_kernel_softargmax_of_any_similarity_is_finite():
    """Far from the peak both factors are zero in float32; their product is not formed."""
    maps = torch.full((1, 60, 60), -1.0)
    maps[0, 59, 0] = 1.0
    found = kernel_softargmax(maps, 1e-3, temperature=1e-6)
    torch.testing.assert_close(found, torch.tensor([[0.0, 59.0]]))


def test_soft_argmax_tends_to_argmax():
    maps = torch.rand(20, 9, 11, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(softargmax(maps, 5, temperature=1e-5), argmax(maps), atol=1e-3, rtol=0)


def test_temperature_divides():
    """At temperature 1, cosines are almost a plain mean of the window: the known bug of this field."""
    maps = torch.tensor([[[0.2, 0.9, 0.8]]])
    sharp, flat = (softargmax(maps, 3, temperature)[0, 0].item() for temperature in (0.02, 1.0))
    weights = np.exp(np.array([0.2, 0.9, 0.8]) / 0.02)
    assert sharp == pytest.approx((weights * [0, 1, 2]).sum() / weights.sum(), abs=1e-5)
    assert flat == pytest.approx(1.1, abs=0.1)


def test_sampling_at_centres_and_between():
    features = normalise(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))  # (1, 2, C)
    found = sample(features, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.0], [-3.0, 5.0]]), "bilinear")
    half = 0.5**0.5
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0, 1.0], [half, half], [1.0, 0.0]]))
    nearest = sample(features, torch.tensor([[0.4, 0.0], [0.6, 0.0]]), "nearest")
    torch.testing.assert_close(nearest, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


@given(st.integers(0, 2**31 - 1), st.sampled_from([8, 14, 16]))
def test_an_image_matches_itself_within_half_a_cell(seed, stride):
    rng = np.random.default_rng(seed)
    grid = Grid(image_size=(150, 210), resized_size=(7 * stride - 3, 10 * stride), stride=stride)
    height, width = grid.shape
    features = torch.eye(height * width).unflatten(0, (height, width))  # every cell its own colour
    keypoints = rng.uniform((0, 0), (209, 140), (5, 2)).tolist()
    [(predicted, _)] = match_pairs([("a", "a", np.array(keypoints))], lambda _: (features, grid), "bilinear", argmax)
    cell = np.array([210 / 10, 150 / (7 * stride - 3) * stride])
    assert (np.abs(predicted - keypoints) <= cell / 2 + 1e-6).all()


@given(st.integers(0, 3), st.integers(0, 3))
def test_a_shifted_target_moves_the_answer(down, right):
    rng = np.random.default_rng(7)
    world = torch.from_numpy(rng.normal(size=(12, 12, 64)))
    grid = Grid(image_size=(112, 112), resized_size=(112, 112), stride=14)
    maps = {"a": world[3:11, 3:11], "b": world[3 - down : 11 - down, 3 - right : 11 - right]}
    keypoints = [[20.5 + 14 * x, 20.5 + 14 * y] for x in range(3) for y in range(3)]
    [(predicted, similarity)] = match_pairs(
        [("a", "b", np.array(keypoints))], lambda name: (maps[name], grid), "bilinear", argmax
    )
    np.testing.assert_allclose(predicted, np.array(keypoints) + [14 * right, 14 * down], atol=1e-6)
    np.testing.assert_allclose(similarity, 1.0, atol=1e-6)


def test_answers_come_back_to_their_pairs():
    """Pairs are regrouped by image inside; each must get what it would get alone."""
    rng = np.random.default_rng(3)
    grid = Grid(image_size=(60, 80), resized_size=(60, 80), stride=10)
    maps = {name: torch.from_numpy(rng.normal(size=(6, 8, 16))) for name in "abcd"}
    pairs = [
        (source, target, rng.uniform((0, 0), (79, 59), (rng.integers(0, 5), 2)))
        for source, target in ["ab", "cb", "ba", "da", "ad", "ab", "cd"]
    ]
    rule = SoftArgmax(readout="softargmax", sampling="bilinear", window=3, temperature=0.1)
    together = match_pairs(pairs, lambda name: (maps[name], grid), rule.sampling, readout(rule))
    for pair, (predicted, similarity) in zip(pairs, together, strict=True):
        [(alone, alone_similarity)] = match_pairs([pair], lambda name: (maps[name], grid), rule.sampling, readout(rule))
        np.testing.assert_allclose(predicted, alone, atol=1e-4)
        np.testing.assert_allclose(similarity, alone_similarity, atol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_gaussian_cross_entropy_against_numpy(seed):
    rng = np.random.default_rng(seed)
    maps, cells = rng.uniform(-1, 1, (3, 5, 4)), rng.uniform(0, 4, (3, 2))
    expected = []
    for heat, (cx, cy) in zip(maps, cells, strict=True):
        y, x = np.mgrid[:5, :4]
        truth = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 1.5**2))
        truth /= truth.sum()
        prediction = np.exp(heat / 0.03)
        prediction /= prediction.sum()
        expected.append(-(truth * np.log(prediction)).sum())
    found = gaussian_ce(maps=torch.from_numpy(maps), cells=torch.from_numpy(cells), temperature=0.03, sigma_cells=1.5)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
