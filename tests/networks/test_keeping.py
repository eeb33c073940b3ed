"""What a network is sure of, and how far features have moved: on maps whose answers are known by construction."""

import numpy as np
import pytest
import torch
from conftest import a_pair

from semcorr import params
from semcorr.datasets.base import Pair
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.networks.keeping import anchor, confident
from semcorr.tensors import normalise

NONE = {"anchor": None, "average": None, "distil": None}
LORA = {"rank": 2, "alpha": 4.0, "targets": ["qkv"]}
SETTINGS = {"weight": 1.0, "after": 0.0, "pairs": 9, "points": 10_000, "confidence": 0.5}


def _pair(**boxes) -> Pair:
    return a_pair([[1.0, 1.0]], [[1.0, 1.0]], **boxes)


def _shifted(upsample: int, by: tuple[int, int]) -> dict[str, tuple[torch.Tensor, Grid]]:
    """Two maps of different cells each; b shows what a shows, some cells further right and down."""
    generator = torch.Generator().manual_seed(0)
    grid = Grid(image_size=(140, 168), resized_size=(140, 168), stride=14, upsample=upsample)
    source = normalise(torch.randn(*grid.shape, 64, generator=generator))
    return {"a": (source, grid), "b": (torch.roll(source, (by[1], by[0]), dims=(0, 1)), grid)}


@pytest.mark.parametrize("upsample", [1, 2])
def test_sure_matches_lie_where_the_map_was_shifted_to(upsample):
    maps = _shifted(upsample, (3, 2))
    grid = maps["a"][1]
    box = [20.0, 15.0, 110.0, 90.0]
    [found] = confident(maps, [_pair(source_bbox=box, target_bbox=[0.0, 0.0, 167.0, 139.0])], _settings(), 0)
    source, target = (np.array(points) for points in (found.source_keypoints, found.target_keypoints))
    np.testing.assert_allclose(target - source, np.tile([3, 2], (len(source), 1)) * grid.pitch, atol=1e-6)
    height, width = grid.shape
    centres = [grid.cells_to_pixels(np.array([[x, y]], float))[0] for y in range(height) for x in range(width)]
    inside = [point for point in centres if 20 <= point[0] <= 110 and 15 <= point[1] <= 90]
    assert sorted(map(tuple, source.round(6))) == sorted(map(tuple, np.array(inside).round(6)))
    assert len(found.keypoint_ids) == len(source)


def _settings(**changes) -> params.Distil:
    return params.Distil.model_validate(SETTINGS | changes)


def test_what_is_not_sure_is_left_out():
    maps = _shifted(1, (3, 2))
    [some] = confident(maps, [_pair(target_bbox=[60.0, 0.0, 90.0, 139.0])], _settings(), 0)
    assert all(60 <= x <= 90 for x, _ in some.target_keypoints)
    # Similar to half: what is kept leads back.
    half, grid = maps["b"][0].clone(), maps["b"][1]
    half[:, 6:] = half[0, 0]  # all the same, so that at most one cell of a leads there and back
    [less] = confident({"a": maps["a"], "b": (half, grid)}, [_pair()], _settings(), 0)
    columns = grid.pixels_to_cells(np.array(less.target_keypoints))[:, 0]
    assert (columns.round() >= 6).sum() == 0
    noise = normalise(torch.randn(*grid.shape, 64, generator=torch.Generator().manual_seed(9)))
    assert confident({"a": maps["a"], "b": (noise, grid)}, [_pair()], _settings(confidence=0.9), 0) == []
    assert confident(maps, [_pair(source_bbox=[1.0, 1.0, 2.0, 2.0])], _settings(), 0) == []  # no cell's centre


def test_draws_depend_on_the_seed_alone():
    maps, pairs = _shifted(2, (1, 1)), [_pair() for _ in range(5)]
    few = _settings(pairs=2, points=12)
    one, again, other = (confident(maps, pairs, few, seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert [len(pair.keypoint_ids) for pair in one] == [12, 12]


def test_the_pull_is_one_minus_the_cosine_over_all_cells():
    generator = torch.Generator().manual_seed(0)
    now = {"a": torch.randn(3, 4, 5, generator=generator), "b": torch.randn(2, 2, 5, generator=generator)}
    before = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in now.items()}
    values = []
    for name, tensor in now.items():
        for one, two in zip(tensor.reshape(-1, 5).numpy(), before[name].reshape(-1, 5).numpy(), strict=True):
            values.append(1 - one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert anchor(now, before).item() == pytest.approx(np.mean(values), rel=1e-5)
    assert anchor(now, {name: 3 * tensor for name, tensor in now.items()}).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": {"anchor": None, "average": None, "distil": SETTINGS}}, r"keep\.distil: .* but ema is null"),
        ({"keep": {"anchor": 0, "average": None, "distil": None}}, r"keep\.anchor"),
        ({"keep": {"anchor": None, "average": 1, "distil": None}}, r"keep\.average"),
        ({"keep": {"anchor": None, "average": None}}, r"keep\.distil: missing"),
        ({"keep": {"anchor": None, "average": None, "distil": SETTINGS | {"after": 1}}, "ema": 0.9}, r"distil\.after"),
        (
            {"keep": {"anchor": None, "average": None, "distil": SETTINGS | {"points": 0}}, "ema": 0.9},
            r"distil\.points",
        ),
        (
            {
                "keep": {"anchor": None, "average": 0.5, "distil": None},
                "lora": {"rank": 2, "alpha": 4.0, "targets": ["qkv"]},
            },
            r"keep\.average: low-rank additions are averaged by a smaller lora\.alpha",
        ),
    ],
)
def test_bad_values_are_refused_at_validation(smoke, changes, message):
    values = {**smoke, "tunings": {**smoke["tunings"], "last1": smoke["tunings"]["last1"] | changes}}
    with pytest.raises(UserError, match=message):
        params.validate(values, "x")
