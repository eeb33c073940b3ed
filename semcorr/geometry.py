"""Pixels of an image and cells of its feature map: the only place that converts between them.

One convention everywhere: coordinates are (x, y), and (0, 0) is the *centre* of the top-left pixel or cell, so a
row of n pixels spans [-0.5, n - 0.5]. Sizes are (height, width). An image is resized by its long side, keeping its
aspect ratio, and padded at the bottom and on the right only.
"""

from dataclasses import dataclass

import numpy as np


def resized_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Size (height, width) of an image whose longer side becomes `long_side`; never less than one pixel.

    >>> resized_size((375, 500), 336)
    (252, 336)
    """
    scale = long_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def rescale(points: np.ndarray, old: float | np.ndarray, new: float | np.ndarray) -> np.ndarray:
    """Move points (..., 2) from a raster of size `old` to one of size `new`, both (width, height) or one number.

    >>> rescale(np.array([[0.0, 0.0]]), 4.0, 2.0)  # the centre of the first of four is left of the first of two
    array([[-0.25, -0.25]])
    """
    return (points + 0.5) * (new / old) - 0.5


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How the feature map of one image lies on its pixels.

    Attributes:
        image_size: original image (height, width) in pixels.
        resized_size: the image as the network saw it, padding left out, (height, width) in pixels.
        stride: network pixels between the centres of neighbouring cells; cell 0 covers pixels 0 to stride - 1.
    """

    image_size: tuple[int, int]
    resized_size: tuple[int, int]
    stride: int

    @property
    def shape(self) -> tuple[int, int]:
        """Valid cells (h, w): those that see any of the image, so that every pixel lies in one."""
        height, width = (-(-side // self.stride) for side in self.resized_size)
        return height, width

    def pixels_to_cells(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), x y, from original pixels to cells."""
        return rescale(rescale(points, *self._widths()), float(self.stride), 1.0)

    def cells_to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), x y, from cells to original pixels; the inverse of `pixels_to_cells`."""
        old, new = self._widths()
        return rescale(rescale(points, 1.0, float(self.stride)), new, old)

    def answers(self, points: np.ndarray) -> np.ndarray:
        """Predicted points (..., 2), x y, from cells to original pixels, none outside the image.

        The last cell of an axis may be centred on padding; a point of the image that it sees is then at most half a
        stride from the image's edge, which is the answer.
        """
        edge = np.array(self.image_size[::-1], float) - 1
        return np.clip(self.cells_to_pixels(points), 0, edge)

    def _widths(self) -> tuple[np.ndarray, np.ndarray]:
        """Original and resized (width, height): each axis has its own scale, since resizing rounds to pixels."""
        return np.array(self.image_size[::-1], float), np.array(self.resized_size[::-1], float)
