"""Fine-tuning objectives: pure tensors, one value per keypoint.

Maps are similarity (N, h, w) of N source descriptors with every valid cell of a target; cells are the true positions
(N, 2), x y in cells, not rounded.
"""

import torch
from torch import Tensor

from semcorr.matching import sample


def gaussian_cross_entropy(maps: Tensor, cells: Tensor, temperature: float, sigma: float) -> Tensor:
    """Cross-entropy of each heatmap's softmax to a Gaussian around the true cell, over the whole map.

    Args:
        maps: similarity.
        cells: true positions.
        temperature: divides the similarity.
        sigma: of the Gaussian, in cells.

    Returns:
        (N,) in nats.
    """
    x, y = _axes(maps)
    squared = (x - cells[:, :1])[:, None, :] ** 2 + (y - cells[:, 1:])[:, :, None] ** 2
    truth = (-squared / (2 * sigma**2)).flatten(1).softmax(dim=1)
    return -(truth * (maps / temperature).flatten(1).log_softmax(dim=1)).sum(dim=1)


def cosine(descriptors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """One minus the cosine of source descriptors (N, C) and the target map (h, w, C) at the true positions, (N,)."""
    return 1 - (descriptors * sample(target, cells, "bilinear")).sum(dim=1)


def squared_distance(descriptors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Squared Euclidean distance of source descriptors (N, C) and the target map at the true positions, (N,)."""
    return (descriptors - sample(target, cells, "bilinear")).square().sum(dim=1)


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
    x, y = _axes(maps)
    near = ((x - cells[:, :1]).abs() <= 1)[:, None, :] & ((y - cells[:, 1:]).abs() <= 1)[:, :, None]
    others = maps.masked_fill(near, -torch.inf).flatten(1)
    if negatives is not None:
        index = torch.randint(others.shape[1], (len(others), negatives), generator=generator)
        others = others.gather(1, index.to(others.device))
    return -(torch.cat([positive, others], dim=1) / temperature).log_softmax(dim=1)[:, 0]


def end_point(maps: Tensor, cells: Tensor, temperature: float) -> Tensor:
    """Distance from the soft-argmax over the whole map to the true position, over the map's longer side, (N,)."""
    x, y = _axes(maps)
    weights = (maps / temperature).flatten(1).softmax(dim=1).unflatten(1, maps.shape[1:])
    found = torch.stack([(weights.sum(1) * x).sum(1), (weights.sum(2) * y).sum(1)], dim=1)
    # A root whose slope stays finite where the answer is exact.
    return ((found - cells).square().sum(dim=1) + 1e-12).sqrt() / max(maps.shape[1:])


def _axes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The cells' x (w,) and y (h,)."""
    height, width = maps.shape[1:]
    x = torch.arange(width, device=maps.device, dtype=maps.dtype)
    return x, torch.arange(height, device=maps.device, dtype=maps.dtype)
