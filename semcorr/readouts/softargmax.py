"""The expected cell in a window around the most similar one."""

import torch
from torch import Tensor

from semcorr.readouts.argmax import argmax


def softargmax(maps: Tensor, window: int, temperature: float) -> Tensor:
    """The expected cell under softmax(similarity / temperature) in a window around each heatmap's argmax.

    Args:
        maps: similarity (N, h, w).
        window: odd side length in cells; cells outside it or the map have weight zero.
        temperature: divides the similarity; towards 0 this becomes argmax.

    Returns:
        (N, 2) x y in cells.

    >>> softargmax(torch.tensor([[[0.0, 1.0, 0.0]]]), window=3, temperature=0.04)
    tensor([[1., 0.]])
    """
    height, width = maps.shape[1:]
    peak = argmax(maps).long()
    reach = torch.arange(window, device=maps.device) - window // 2
    x, y = peak[:, :1] + reach, peak[:, 1:] + reach  # (N, window)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    index = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    values = maps.flatten(1).gather(1, index.flatten(1)).unflatten(1, index.shape[1:])
    logits = (values / temperature).masked_fill(~inside, -torch.inf)
    weights = logits.flatten(1).softmax(dim=1).unflatten(1, index.shape[1:])
    return torch.stack([(weights.sum(1) * x).sum(1), (weights.sum(2) * y).sum(1)], dim=1)
