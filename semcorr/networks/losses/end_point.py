"""The distance of the soft-argmax over the whole map from the truth, added to any other loss."""

import torch
from torch import Tensor

from semcorr.networks.losses import axes


def end_point(*, maps: Tensor, cells: Tensor, temperature: float, **_: object) -> Tensor:
    """Distance from the soft-argmax over the whole map to the true position, over the map's longer side, (N,)."""
    x, y = axes(maps)
    weights = (maps / temperature).flatten(1).softmax(dim=1).unflatten(1, maps.shape[1:])
    expected = torch.stack([(weights.sum(1) * x).sum(1), (weights.sum(2) * y).sum(1)], dim=1)
    # A root whose slope stays finite where the answer is exact.
    return ((expected - cells).square().sum(dim=1) + 1e-12).sqrt() / max(maps.shape[1:])
