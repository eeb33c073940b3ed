"""Distance of descriptors at the true position."""

import torch
from torch import Tensor

from semcorr.matching import sample
from semcorr.params import SquaredDistance


def loss(
    maps: Tensor,
    descriptors: Tensor,
    target: Tensor,
    cells: Tensor,
    setting: SquaredDistance,
    generator: torch.Generator,
) -> Tensor:
    """See `semcorr.networks.losses`."""
    return squared_distance(descriptors, target, cells)


def squared_distance(descriptors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Squared Euclidean distance of source descriptors (N, C) and the target map at the true positions, (N,)."""
    return (descriptors - sample(target, cells, "bilinear")).square().sum(dim=1)
