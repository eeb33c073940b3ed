"""Masks of objects, where a benchmark has them: as an index keeps them, and as cells of a feature map."""

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image as PillowImage

from semcorr.datasets.base import Image
from semcorr.errors import UserError
from semcorr.geometry import Grid
from semcorr.params import Rule

VOID = 255  # in masks of classes (PASCAL VOC), pixels at borders that belong to nothing


def shown(labels: PillowImage.Image) -> np.ndarray:
    """Whether each pixel (H, W) of a benchmark's mask shows the object: all that is not 0, nor void in a palette's."""
    if labels.mode in ("LA", "PA", "RGBA"):  # opacity says nothing of classes
        labels = labels.convert({"LA": "L", "PA": "P", "RGBA": "RGB"}[labels.mode])
    values = np.asarray(labels)
    if values.ndim == 3:
        return np.any(values, axis=2)
    return np.asarray((values != 0) & ((values != VOID) | (labels.mode != "P")))


def drawn(image: PillowImage.Image) -> np.ndarray:
    """Whether each pixel (H, W) of a mask that someone drew shows the object.

    Of an image with transparent pixels, all others; else all that are not black, whatever the mode.
    """
    if image.mode.startswith(("I", "F")):
        return np.asarray(image) != 0
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if not alpha.all():
            return np.asarray(alpha > 0)
    return np.any(np.asarray(image.convert("RGB")), axis=2)


def packed(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as the bytes of a PNG with one bit per pixel."""
    file = io.BytesIO()
    PillowImage.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def of(image: Image) -> np.ndarray:
    """The mask (H, W) bool of an image of an index.

    Raises:
        UserError: the dataset has none.
    """
    if image.mask is None:
        raise UserError(
            f"{image.id}: has no mask, so a rule cannot search its object alone. Set `search: image`, or add masks"
        )
    with PillowImage.open(io.BytesIO(image.mask)) as file:
        return np.asarray(file, bool)


def contains(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether points (N, 2), x y in pixels, lie on the object (H, W); those outside the image count as at its edge."""
    height, width = mask.shape
    x, y = np.floor(np.clip(points, 0, (width - 1, height - 1)) + 0.5).astype(int).T
    return mask[y, x]


def searched(rule: Rule, images: Mapping[str, Image]) -> Callable[[str, Grid], np.ndarray] | None:
    """The cells of a target that a rule may answer, by image id and grid; None if it may answer all.

    Args:
        rule: says whether the object alone is searched.
        images: of the dataset.
    """
    if rule.search == "image":
        return None
    return lambda image_id, grid: cells(of(images[image_id]), grid)


def cells(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """The cells (h, w) bool that show any part of an object (H, W), or whose centre lies on it."""
    height, width = grid.shape
    every = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    searched = contains(mask, grid.cells_to_pixels(every.astype(float))).reshape(height, width)
    rows, columns = np.nonzero(mask)
    x, y = np.floor(grid.pixels_to_cells(np.stack([columns, rows], axis=1).astype(float)) + 0.5).astype(int).T
    searched[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] = True
    return searched
