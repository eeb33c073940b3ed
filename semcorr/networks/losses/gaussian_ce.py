"""Cross-entropy to a Gaussian around the truth."""

import torch
from torch import Tensor

from semcorr.networks.losses import axes
from semcorr.params import GaussianCrossEntropy


def loss(
    maps: Tensor,
    descriptors: Tensor,
    target: Tensor,
    cells: Tensor,
    setting: GaussianCrossEntropy,
    generator: torch.Generator,
) -> Tensor:
    """See `semcorr.networks.losses`."""
    return gaussian_cross_entropy(maps, cells, setting.temperature, setting.sigma_cells)


def gaussian_cross_entropy(maps: Tensor, cells: Tensor, temperature: float, sigma: float) -> Tensor:
    """Cross-entropy of each heatmap's softmax to a Gaussian around the true cell, over the whole map.

    Args:
        maps: similarity.
        cells: true positions.
        temperature: divides the similarity.
        sigma: of the Gaussian, in cells.

    Returns:
        (N,) in nats.
    """
    x, y = axes(maps)
    squared = (x - cells[:, :1])[:, None, :] ** 2 + (y - cells[:, 1:])[:, :, None] ** 2
    truth = (-squared / (2 * sigma**2)).flatten(1).softmax(dim=1)
    return -(truth * (maps / temperature).flatten(1).log_softmax(dim=1)).sum(dim=1)
