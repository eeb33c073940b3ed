"""The most similar cell."""

import torch
from torch import Tensor

from semcorr.tensors import require_shape


def argmax(maps: Tensor) -> Tensor:
    """The most similar cell of each heatmap; the first in reading order if several are equal.

    >>> argmax(torch.tensor([[[0.0, 1.0, 1.0]]]))
    tensor([[1., 0.]])
    """
    require_shape("heatmaps", maps, "N", "h", "w")
    index = maps.flatten(1).argmax(dim=1)
    width = maps.shape[2]
    return torch.stack([index % width, index // width], dim=1).to(maps.dtype)
