"""Where on a target a rule may answer: on all cells, or on those that show the object."""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from semcorr.datasets import masks
from semcorr.datasets.base import Image
from semcorr.geometry import Grid
from semcorr.params import Rule


def searched(rule: Rule, images: Mapping[str, Image]) -> Callable[[str, Grid], np.ndarray] | None:
    """The cells of a target that a rule may answer, by image id and grid; None if it may answer all.

    Args:
        rule: says whether the object alone is searched.
        images: of the dataset.
    """
    if rule.search == "image":
        return None
    return functools.cache(lambda image_id, grid: cells(masks.of(images[image_id]), grid))


def cells(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """The cells (h, w) bool that show any part of an object (H, W), or whose centre lies on it."""
    height, width = grid.shape
    every = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    found = masks.contains(mask, grid.cells_to_pixels(every.astype(float))).reshape(height, width)
    rows, columns = np.nonzero(mask)
    x, y = np.floor(grid.pixels_to_cells(np.stack([columns, rows], axis=1).astype(float)) + 0.5).astype(int).T
    found[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] = True
    return found
