"""The true position against other cells of the same map."""

from typing import Literal

import torch
from torch import Tensor

from semcorr.networks.losses import axes
from semcorr.tensors import sample


def contrastive(
    *,
    maps: Tensor,
    descriptors: Tensor,
    target: Tensor,
    cells: Tensor,
    generator: torch.Generator,
    temperature: float,
    negatives: int | Literal["all"],
) -> Tensor:
    """InfoNCE: the target at the true position against other cells of the same map.

    Args:
        maps: similarity.
        descriptors: of the source.
        target: sampled bilinearly at the true position.
        cells: true positions.
        generator: of the random draw.
        temperature: divides the similarity.
        negatives: cells drawn per keypoint, with replacement; those within one cell of the truth do not count.

    Returns:
        (N,) in nats.
    """
    positive = (descriptors * sample(target, cells, "bilinear")).sum(dim=1, keepdim=True)
    x, y = axes(maps)
    near = ((x - cells[:, :1]).abs() <= 1)[:, None, :] & ((y - cells[:, 1:]).abs() <= 1)[:, :, None]
    others = maps.masked_fill(near, -torch.inf).flatten(1)
    if negatives != "all":
        index = torch.randint(others.shape[1], (len(others), negatives), generator=generator)
        others = others.gather(1, index.to(others.device))
    return -(torch.cat([positive, others], dim=1) / temperature).log_softmax(dim=1)[:, 0]
