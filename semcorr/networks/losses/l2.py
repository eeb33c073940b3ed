"""Squared distance at the true position."""

from torch import Tensor

from semcorr.tensors import sample


def l2(*, descriptors: Tensor, target: Tensor, cells: Tensor, **_: object) -> Tensor:
    """Squared Euclidean distance of the source descriptors and the target at the true positions, (N,)."""
    return (descriptors - sample(target, cells, "bilinear")).square().sum(dim=1)
