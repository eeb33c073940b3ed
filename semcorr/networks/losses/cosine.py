"""Unlikeness at the true position."""

import torch
from torch import Tensor

from semcorr.matching import sample
from semcorr.params import Cosine


def loss(
    maps: Tensor,
    descriptors: Tensor,
    target: Tensor,
    cells: Tensor,
    setting: Cosine,
    generator: torch.Generator,
) -> Tensor:
    """See `semcorr.networks.losses`."""
    return cosine(descriptors, target, cells)


def cosine(descriptors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """One minus the cosine of source descriptors (N, C) and the target map (h, w, C) at the true positions, (N,)."""
    return 1 - (descriptors * sample(target, cells, "bilinear")).sum(dim=1)
