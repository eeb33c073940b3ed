"""Cosine distance at the true position."""

from torch import Tensor

from semcorr.tensors import sample


def cosine(*, descriptors: Tensor, target: Tensor, cells: Tensor, **_: object) -> Tensor:
    """One minus the cosine of the source descriptors and the target at the true positions, (N,)."""
    return 1 - (descriptors * sample(target, cells, "bilinear")).sum(dim=1)
