"""The expected cell under the softmax of the whole map times a Gaussian around the most similar one."""

import torch
from torch import Tensor

from semcorr.readouts.argmax import argmax


def kernel_softargmax(maps: Tensor, sigma_cells: float, temperature: float) -> Tensor:
    """The expected cell under softmax(similarity / temperature), weighted by a Gaussian around each heatmap's argmax.

    Args:
        maps: similarity (N, h, w).
        sigma_cells: standard deviation of the Gaussian, in cells; towards infinity, the soft-argmax of the whole map.
        temperature: divides the similarity; towards 0 this becomes argmax.

    Returns:
        (N, 2) x y in cells.

    Source: the kernel soft-argmax of SFNet, Lee et al., CVPR 2019, which multiplies the similarity, not its softmax.

    >>> kernel_softargmax(torch.tensor([[[0.0, 1.0, 0.0]]]), sigma_cells=1.0, temperature=0.04)
    tensor([[1., 0.]])
    """
    height, width = maps.shape[1:]
    peak = argmax(maps).to(maps.dtype)
    x, y = (torch.arange(side, device=maps.device, dtype=maps.dtype) for side in (width, height))
    away = ((x - peak[:, :1])[:, None, :] ** 2 + (y - peak[:, 1:])[:, :, None] ** 2) / (2 * sigma_cells**2)
    # The product of two weights is the exponential of a sum, which cannot vanish everywhere.
    weights = (maps / temperature - away).flatten(1).softmax(dim=1).unflatten(1, maps.shape[1:])
    return torch.stack([(weights.sum(1) * x).sum(1), (weights.sum(2) * y).sum(1)], dim=1)
