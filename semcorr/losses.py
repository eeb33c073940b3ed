"""Fine-tuning objectives: pure tensors."""

import torch
from torch import Tensor


def gaussian_cross_entropy(maps: Tensor, cells: Tensor, temperature: float, sigma: float) -> Tensor:
    """Cross-entropy of each heatmap's softmax to a Gaussian around the true cell, over the whole map.

    Args:
        maps: similarity (N, h, w), valid cells only.
        cells: true positions (N, 2), x y in cells, not rounded.
        temperature: divides the similarity.
        sigma: of the Gaussian, in cells.

    Returns:
        (N,) in nats.
    """
    height, width = maps.shape[1:]
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    y = torch.arange(height, device=maps.device, dtype=maps.dtype)
    squared = (x - cells[:, :1])[:, None, :] ** 2 + (y - cells[:, 1:])[:, :, None] ** 2
    truth = (-squared / (2 * sigma**2)).flatten(1).softmax(dim=1)
    return -(truth * (maps / temperature).flatten(1).log_softmax(dim=1)).sum(dim=1)
