"""Masks of objects, where a benchmark has them: as files hold them, and as an index keeps them."""

import io

import numpy as np
from PIL import Image as PillowImage

from semcorr.datasets.base import Image
from semcorr.errors import UserError

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
