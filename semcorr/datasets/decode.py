"""The one image decoder, of datasets, the Python API, galleries, and users' own images.

The result is 8-bit RGB, whatever the file holds. Benchmarks annotate pixels as they are stored, so their images are
read with `upright=False`; users' own photographs are rotated according to their EXIF orientation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PillowImage

from semcorr.errors import UserError, reason

AnyImage = str | Path | BinaryIO | PillowImage.Image
AGAIN = "Get the dataset again"
_ORIENTATION = 0x0112  # of EXIF
_TURNS = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}


def decode(source: AnyImage, *, upright: bool, name: str | Path | None = None, remedy: str = "") -> PillowImage.Image:
    """Decode an image of any common format and mode to 8-bit RGB; transparency becomes white.

    Args:
        source: a path, an open file, or a Pillow image.
        upright: apply the EXIF orientation; else keep the pixels as they are stored.
        name: for error messages; None takes the path.
        remedy: what error messages tell the user to do.

    Raises:
        UserError: there is no such file, or it is not a readable image.
    """

    def read(image: PillowImage.Image) -> PillowImage.Image:
        image.load()
        turn = _TURNS.get(orientation(image)) if upright else None
        return _rgb(image if turn is None else image.transpose(turn))

    return _opened(source, read, name, remedy)


def image_size(path: Path) -> tuple[int, int]:
    """Size (height, width) of an image file as it is stored, from its header.

    Raises:
        UserError: the file is missing or not an image.
    """
    return _opened(path, lambda image: (image.height, image.width), None, AGAIN)


def decode_labels(source: AnyImage, *, upright: bool = False, remedy: str = AGAIN) -> PillowImage.Image:
    """Decode an image of labels, such as a mask, in its own mode.

    Args:
        source: a path, an open file, or a Pillow image.
        upright: apply the EXIF orientation; else keep the pixels as they are stored.
        remedy: what error messages tell the user to do.

    Raises:
        UserError: the file is missing or not an image.
    """

    def read(image: PillowImage.Image) -> PillowImage.Image:
        image.load()
        turn = _TURNS.get(orientation(image)) if upright else None
        return image if turn is None else image.transpose(turn)

    return _opened(source, read, None, remedy)


def orientation(image: PillowImage.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (as stored) if there is none or it is unreadable."""
    try:
        tag = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block raises many kinds; the pixels are still usable
        return 1
    return tag if tag in _TURNS else 1


def stored_orientation(path: Path) -> int:
    """EXIF orientation of an image file.

    Raises:
        UserError: the file is missing or not an image.
    """
    return _opened(path, orientation, None, AGAIN)


def other_size(annotation: Path, image: Path, annotated: tuple[int, int], size: tuple[int, int]) -> UserError:
    """The error for an annotation with a (height, width) other than the image file's."""
    (rows, columns), (height, width) = annotated, size
    text = f"{annotation}: says that {image.name} has {columns} x {rows} pixels, but it has {width} x {height}. "
    turned = stored_orientation(image)
    if turned != 1 and annotated == size[::-1]:
        text += (
            f"Its EXIF orientation is {turned}: the annotation is for the image as viewers rotate it, but pixels count "
            "as they are stored. Rotate the pixels themselves and remove the tag, or get the dataset again"
        )
    else:
        text += AGAIN
    return UserError(text)


def _opened(source: AnyImage, read: Callable[[PillowImage.Image], Any], name: str | Path | None, remedy: str) -> Any:
    """Apply `read` to an image; errors name it."""
    if name is None:
        name = source if isinstance(source, str | Path) else "the image"
    then = f". {remedy}" if remedy else ""
    try:
        if isinstance(source, PillowImage.Image):
            return read(source)
        with PillowImage.open(source) as image:
            return read(image)
    except FileNotFoundError:
        raise UserError(f"{name}: {'the image is missing' if remedy else 'no such file'}{then}") from None
    except PillowImage.DecompressionBombError:
        limit = 2 * (PillowImage.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{name}: has over {limit / 1e6:,.0f} million pixels. Shrink it first") from None
    except MemoryError:
        raise
    except Exception as error:  # each of Pillow's formats has its own errors for damaged files
        text = reason(error).partition(" <_io")[0]  # without a memory address
        raise UserError(f"{name}: not a readable image ({text}){then}") from None


def _rgb(image: PillowImage.Image) -> PillowImage.Image:
    """Convert an image of any mode to RGB."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16-bit values at 255
        values = np.asarray(image, np.float64)
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(f"its values are {values.min()} to {values.max()}, not those of an image")
        shown = np.round(np.minimum(values * (255 / _white(values, image)), 255)).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            shown[values == clear] = 255
        return PillowImage.fromarray(shown).convert("RGB")
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = PillowImage.alpha_composite(PillowImage.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _white(values: np.ndarray, image: PillowImage.Image) -> float:
    """The value of white in an image of more than 8 bits or of floats."""
    largest = float(values.max())
    if image.mode.startswith("I;") or (image.mode == "I" and image.format == "PPM"):
        return max(largest, 65535.0)
    if image.mode == "F" and largest <= 2 and np.quantile(values, 0.99) <= 1:
        return 1.0  # 0 to 1, with a few values slightly above from resampling
    return next((top for top in (255.0, 65535.0) if largest <= top), largest)
