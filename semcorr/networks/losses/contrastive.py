"""The truth against other cells of the same map."""

import torch
from torch import Tensor

from semcorr.matching import sample
from semcorr.networks.losses import axes
from semcorr.params import Contrastive


def loss(
    maps: Tensor,
    descriptors: Tensor,
    target: Tensor,
    cells: Tensor,
    setting: Contrastive,
    generator: torch.Generator,
) -> Tensor:
    """See `semcorr.networks.losses`."""
    negatives = None if setting.negatives == "all" else setting.negatives
    return contrastive(maps, descriptors, target, cells, setting.temperature, negatives, generator)


def contrastive(
    maps: Tensor,
    descriptors: Tensor,
    target: Tensor,
    cells: Tensor,
    temperature: float,
    negatives: int | None,
    generator: torch.Generator,
) -> Tensor:
    """InfoNCE: the target at the true position against other cells of the same map.

    Args:
        maps: similarity.
        descriptors: source descriptors (N, C) of unit length.
        target: map (h, w, C) of unit length; it is sampled bilinearly at the true position.
        cells: true positions.
        temperature: divides the similarity.
        negatives: how many cells are drawn for each keypoint, with replacement; None takes all. Cells within one cell
            of the truth are never negatives.
        generator: on the CPU, of the draw.

    Returns:
        (N,) in nats.
    """
    positive = (descriptors * sample(target, cells, "bilinear")).sum(dim=1, keepdim=True)
    x, y = axes(maps)
    near = ((x - cells[:, :1]).abs() <= 1)[:, None, :] & ((y - cells[:, 1:]).abs() <= 1)[:, :, None]
    others = maps.masked_fill(near, -torch.inf).flatten(1)
    if negatives is not None:
        index = torch.randint(others.shape[1], (len(others), negatives), generator=generator)
        others = others.gather(1, index.to(others.device))
    return -(torch.cat([positive, others], dim=1) / temperature).log_softmax(dim=1)[:, 0]
