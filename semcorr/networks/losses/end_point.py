"""The soft-argmax's distance from the truth, which can be added to any other loss."""

import torch
from torch import Tensor

from semcorr.networks.losses import axes


def end_point(*, maps: Tensor, cells: Tensor, temperature: float, **_: object) -> Tensor:
    """Distance from the soft-argmax over the whole map to the true position, divided by the map's longer side, (N,)."""
    x, y = axes(maps)
    weights = (maps / temperature).flatten(1).softmax(dim=1).unflatten(1, maps.shape[1:])
    expected = torch.stack([(weights.sum(1) * x).sum(1), (weights.sum(2) * y).sum(1)], dim=1)
    # The constant keeps the gradient of the root finite at zero distance.
    return ((expected - cells).square().sum(dim=1) + 1e-12).sqrt() / max(maps.shape[1:])
