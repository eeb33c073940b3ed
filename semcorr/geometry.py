"""Image pixels and feature map cells: the only module that converts between them, and that resizes images.

Everywhere, coordinates are (x, y), and (0, 0) is the *centre* of the top-left pixel or cell, so a row of n pixels spans
[-0.5, n - 0.5]. Sizes are (height, width). An image is resized by its long side, keeping its aspect ratio, and padded
at the bottom and right only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage


def resized_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Size (height, width) of an image whose longer side becomes `long_side`; at least one pixel.

    >>> resized_size((375, 500), 336)
    (252, 336)
    """
    scale = long_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(image: PillowImage.Image, long_side: int, resample: PillowImage.Resampling) -> PillowImage.Image:
    """Resize an image to a longer side of `long_side` pixels, keeping its aspect ratio as far as whole pixels allow.

    >>> resize(PillowImage.new("L", (10000, 10)), 200, PillowImage.Resampling.LANCZOS).size
    (200, 1)
    """
    height, width = resized_size((image.height, image.width), long_side)
    return image.resize((width, height), resample)


def rescale(points: np.ndarray, old: float | np.ndarray, new: float | np.ndarray) -> np.ndarray:
    """Convert points (..., 2) from a raster of size `old` to one of size `new`, both (width, height) or one number.

    >>> rescale(np.array([[0.0, 0.0]]), 4.0, 2.0)  # the first of four centres lies left of the first of two
    array([[-0.25, -0.25]])
    """
    return (points + 0.5) * (new / old) - 0.5


def resize_points(points: np.ndarray, old: Sequence[float], new: Sequence[float]) -> np.ndarray:
    """Convert points (..., 2), x y, from an image of size `old` (height, width) to its resized copy of size `new`.

    Each axis has its own scale, since resizing rounds to whole pixels.
    """
    return rescale(points, np.array(old[::-1], float), np.array(new[::-1], float))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the cells of one image's feature map lie on its pixels.

    Attributes:
        image_size: original image (height, width) in pixels.
        resized_size: the image as the network sees it, without padding, (height, width) in pixels.
        stride: network pixels that a cell of the network covers; cell 0 covers pixels 0 to stride - 1.
        upsample: cells of the map in each of these, along each axis.
    """

    image_size: tuple[int, int]
    resized_size: tuple[int, int]
    stride: int
    upsample: int = 1

    @property
    def pitch(self) -> float:
        """Network pixels between the centres of neighbouring cells."""
        return self.stride / self.upsample

    @property
    def shape(self) -> tuple[int, int]:
        """Valid cells (h, w): those that cover any part of the image, so that every pixel lies in one."""
        height, width = (-(-side * self.upsample // self.stride) for side in self.resized_size)
        return height, width

    def pixels_to_cells(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), x y, from original pixels to cells."""
        return rescale(
            resize_points(points, self.image_size, self.resized_size), float(self.stride), float(self.upsample)
        )

    def cells_to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), x y, from cells to original pixels; the inverse of `pixels_to_cells`."""
        return resize_points(
            rescale(points, float(self.upsample), float(self.stride)), self.resized_size, self.image_size
        )

    def mirror(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), x y in original pixels, in the image mirrored left to right; its own inverse."""
        return points * (-1, 1) + (self.image_size[1] - 1, 0)

    def answers(self, points: np.ndarray) -> np.ndarray:
        """Predicted points (..., 2), x y, from cells to original pixels, clipped to the image.

        The last cell of an axis may be centred on padding. The part of the image that it covers then lies within half a
        cell of the image's edge, so the edge is the answer.
        """
        edge = np.array(self.image_size[::-1], float) - 1
        return np.clip(self.cells_to_pixels(points), 0, edge)
