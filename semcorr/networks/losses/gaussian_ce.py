"""Cross-entropy to a Gaussian around the truth."""

from torch import Tensor

from semcorr.networks.losses import axes


def gaussian_ce(*, maps: Tensor, cells: Tensor, temperature: float, sigma_cells: float, **_: object) -> Tensor:
    """Cross-entropy of each heatmap's softmax to a Gaussian around the true cell, over the whole map.

    Args:
        maps: similarity.
        cells: true positions.
        temperature: divides the similarity.
        sigma_cells: of the Gaussian, in cells of the maps.

    Returns:
        (N,) in nats.
    """
    x, y = axes(maps)
    squared = (x - cells[:, :1])[:, None, :] ** 2 + (y - cells[:, 1:])[:, :, None] ** 2
    truth = (-squared / (2 * sigma_cells**2)).flatten(1).softmax(dim=1)
    return -(truth * (maps / temperature).flatten(1).log_softmax(dim=1)).sum(dim=1)
