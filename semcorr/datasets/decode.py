"""Image files as pixels: the one decoder of datasets, of the Python API, of pictures, and of people's own images.

Pixels are upright 8-bit RGB in the end, whatever a file holds. A benchmark annotates the pixels as they are stored, so
its images are read with `upright=False`; a photograph of one's own is turned as its EXIF data say.
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
    """An image of any common format and mode as 8-bit RGB; transparency becomes white.

    Args:
        source: a path, an open file, or a Pillow image.
        upright: turn it as its EXIF data say; else the pixels are laid out as they are stored.
        name: what errors call it; None takes the path.
        remedy: what errors say to do.

    Raises:
        UserError: there is no such file, or it is no image that can be read.
    """

    def read(image: PillowImage.Image) -> PillowImage.Image:
        image.load()
        turn = _TURNS.get(orientation(image)) if upright else None
        return _rgb(image if turn is None else image.transpose(turn))

    return _opened(source, read, name, remedy)


def image_size(path: Path) -> tuple[int, int]:
    """Size (height, width) of an image file as it is stored, from its header.

    Raises:
        UserError: the file is missing or no image.
    """
    return _opened(path, lambda image: (image.height, image.width), None, AGAIN)


def decode_labels(path: Path) -> PillowImage.Image:
    """A picture whose values are labels, such as a mask, as it is stored.

    Raises:
        UserError: the file is missing or no image.
    """

    def read(image: PillowImage.Image) -> PillowImage.Image:
        image.load()
        return image

    return _opened(path, read, None, AGAIN)


def orientation(image: PillowImage.Image) -> int:
    """EXIF orientation, 1 to 8; 1, as stored, where there is none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a damaged EXIF block makes of itself; the pixels are there all the same
        return 1
    return found if found in _TURNS else 1


def stored_orientation(path: Path) -> int:
    """EXIF orientation of an image file.

    Raises:
        UserError: the file is missing or no image.
    """
    return _opened(path, orientation, None, AGAIN)


def other_size(annotation: Path, image: Path, said: tuple[int, int], size: tuple[int, int]) -> UserError:
    """The error of an annotation that gives an image another (height, width) than its file has."""
    text = f"{annotation}: says that {image.name} has {said[1]} x {said[0]} pixels, but it has {size[1]} x {size[0]}. "
    turned = stored_orientation(image)
    if turned != 1 and said == size[::-1]:
        text += (
            f"Its EXIF orientation is {turned}: the annotation is about the image as viewers turn it, but pixels count "
            "as they are stored. Turn the pixels themselves and remove the tag, or get the dataset again"
        )
    else:
        text += AGAIN
    return UserError(text)


def _opened(source: AnyImage, read: Callable[[PillowImage.Image], Any], name: str | Path | None, remedy: str) -> Any:
    """What `read` makes of an image; errors name it."""
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
        limit = 2 * PillowImage.MAX_IMAGE_PIXELS
        raise UserError(f"{name}: has over {limit / 1e6:,.0f} million pixels. Shrink it first") from None
    except MemoryError:
        raise
    except Exception as error:  # each of Pillow's formats has its own errors for damaged files
        said = reason(error).partition(" <_io")[0]  # not where in memory it was
        raise UserError(f"{name}: not a readable image ({said}){then}") from None


def _rgb(image: PillowImage.Image) -> PillowImage.Image:
    """The colours that a picture of any mode stands for."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits at 255
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
    """The value that stands for white in a picture of more than 8 bits, or of floats."""
    largest = float(values.max())
    if image.mode.startswith("I;") or (image.mode == "I" and image.format == "PPM"):
        return max(largest, 65535.0)
    if image.mode == "F" and largest <= 2 and np.quantile(values, 0.99) <= 1:
        return 1.0  # 0 to 1, a few values a little beyond, as resampling makes them
    return next((top for top in (255.0, 65535.0) if largest <= top), largest)
