"""The views of an image: as it is or mirrored, at one size or several.

The features of all are joined cell by cell, so that the similarity of a pair is the mean of what the network says of it
in each view. A trunk keeps the activations of further views under names of their own.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from semcorr.geometry import Grid
from semcorr.tensors import normalise, sample

MIRRORED = ".mirrored/"  # before an image's id; `fetch` refuses ids that start with a dot


class Seen(NamedTuple):
    """The features of an image in one view.

    Attributes:
        features: (h, w, C), valid cells only.
        grid: of the image in this view, as if it were not mirrored.
        mirrored: whether it is.
    """

    features: Tensor
    grid: Grid
    mirrored: bool


def named(image_id: str, *, mirrored: bool, size: int | None = None) -> str:
    """The name of an image's activations in a trunk; `size` is given if it is not the backbone's own."""
    own = f"{MIRRORED}{image_id}" if mirrored else image_id
    return own if size is None else f".{size}/{own}"


def plain(names: Iterable[str]) -> list[str]:
    """Those names in a trunk that are of images as they are."""
    return [name for name in names if not name.startswith(".")]


def joined(seen: Sequence[Seen]) -> tuple[Tensor, Grid]:
    """The features of an image: of its only view as they are, or of all, each of length one, on the finest grid.

    The others are sampled where the cells of that grid lie in them, which may be between their own.

    Returns:
        (h, w, C), or (h, w, views * C) float32; and its grid.
    """
    if len(seen) == 1:
        return seen[0].features, seen[0].grid
    grid = finest([one.grid for one in seen])
    return torch.cat([on_grid(one, grid) for one in seen], dim=-1), grid


def finest(grids: Sequence[Grid]) -> Grid:
    """Of several grids of one image, that with the least distance between cells; the first of equal ones."""
    return min(grids, key=lambda grid: grid.pitch / max(grid.resized_size))


def on_grid(seen: Seen, grid: Grid) -> Tensor:
    """Features of length one (h, w, C) float32 at the cells of a grid, sampled where those lie in the features' own."""
    unit = normalise(seen.features.float())
    if seen.grid == grid and not seen.mirrored:
        return unit
    height, width = grid.shape
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    points = grid.cells_to_pixels(cells.astype(float))
    there = seen.grid.pixels_to_cells(seen.grid.mirror(points) if seen.mirrored else points)
    return sample(unit, torch.from_numpy(there).to(unit.device), "bilinear").reshape(height, width, -1)
