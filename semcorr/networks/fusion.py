"""The features of two networks, joined so that the similarity of two points is the weighted mean of the networks' own.

Features of length one, times the roots of the weights, side by side: their product is the weighted sum of two cosines.
Zhang et al., A Tale of Two Features (NeurIPS 2023), join DINOv2 with Stable Diffusion in this way.
"""

import math

import torch
from torch import Tensor

from semcorr.geometry import Grid
from semcorr.networks.views import Seen, finest, on_grid


def fused(a: Seen, b: Seen, weight: float) -> tuple[Tensor, Grid]:
    """The joined features of an image, on the finer of the two grids; the others are sampled bilinearly.

    Args:
        a: features of the first network.
        b: of the second, of the same image.
        weight: of the first, between 0 and 1; the second has the rest.

    Returns:
        (h, w, Ca + Cb) float32, and their grid.
    """
    grid = finest([a.grid, b.grid])
    parts = [math.sqrt(share) * on_grid(seen, grid) for share, seen in ((weight, a), (1 - weight, b))]
    return torch.cat(parts, dim=-1), grid
