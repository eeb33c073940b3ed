"""A network's two views of an image, as it is and mirrored.

The features of both are joined cell by cell, so that the similarity of a pair is the mean of what the network says of
the pair and of the mirrored pair. A trunk keeps the activations of the mirrored images under names of their own.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from semcorr.geometry import Grid
from semcorr.tensors import normalise, sample

MIRRORED = ".mirrored/"  # before an image's id; `fetch` refuses ids that start with a dot


def mirrored(image_id: str) -> str:
    """The name of a mirrored image's activations in a trunk."""
    return MIRRORED + image_id


def plain(names: Iterable[str]) -> list[str]:
    """Those names in a trunk that are of images as they are."""
    return [name for name in names if not name.startswith(MIRRORED)]


def joined(seen: list[Tensor], grid: Grid) -> Tensor:
    """The features of an image: of its only view as they are, or of both, each of length one.

    Args:
        seen: (h, w, C) of the image and, if there are two views, of the mirrored image; valid cells only. The mirrored
            one is sampled where the image's cells lie in it, which is between its own cells unless the image is a
            whole number of cells wide.
        grid: of each.

    Returns:
        (h, w, C), or (h, w, 2 C) float32.
    """
    if len(seen) == 1:
        return seen[0]
    features, other = seen
    height, width, _ = features.shape
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    there = torch.from_numpy(grid.pixels_to_cells(grid.mirror(grid.cells_to_pixels(cells.astype(float)))))
    flipped = sample(normalise(other.float()), there.to(other.device), "bilinear").reshape(height, width, -1)
    return torch.cat([normalise(features.float()), flipped], dim=-1)
