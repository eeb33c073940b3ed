"""Pictures of matches and of similarity, drawn with Pillow.

Points are (x, y) in pixels of the original images; images are shrunk to fit a square before drawing.
"""

import base64
import colorsys
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from semcorr.geometry import Grid, resize, resize_points

RIGHT, WRONG = (31, 158, 84), (214, 48, 49)
GAP = 6  # pixels between two images


def fit(image: PillowImage.Image, side: int) -> PillowImage.Image:
    """An RGB copy, resized to fit a square of `side` pixels."""
    return resize(image.convert("RGB"), side, PillowImage.Resampling.LANCZOS)


def move(points: np.ndarray, old: PillowImage.Image, new: PillowImage.Image) -> np.ndarray:
    """Map points (N, 2), x y, from an image to its resized copy."""
    return resize_points(np.asarray(points, float).reshape(-1, 2), old.size[::-1], new.size[::-1])


def beside(first: PillowImage.Image, second: PillowImage.Image) -> tuple[PillowImage.Image, int]:
    """Two images side by side, and the x at which the second begins."""
    left = first.width + GAP
    canvas = PillowImage.new("RGB", (left + second.width, max(first.height, second.height)), (128, 128, 128))
    canvas.paste(first, (0, 0))
    canvas.paste(second, (left, 0))
    return canvas, left


def matches(
    source: PillowImage.Image,
    target: PillowImage.Image,
    source_points: np.ndarray,
    predicted: np.ndarray,
    *,
    side: int,
    true: np.ndarray | None = None,
    correct: Sequence[bool] | None = None,
    similarity: np.ndarray | None = None,
    numbers: Sequence[int] | None = None,
) -> PillowImage.Image:
    """Source and target side by side, with a line from each source point to its prediction.

    Args:
        source: of any size.
        target: of any size.
        source_points: (N, 2).
        predicted: (N, 2).
        side: pixels of the square that each image is resized to.
        true: (N, 2), ringed in green where the prediction is wrong.
        correct: N; lines are green if correct, else red. Without it each match has its own colour.
        similarity: N, cosine; colours the lines, with a scale below the picture.
        numbers: N, written at both ends.
    """
    small = fit(source, side), fit(target, side)
    canvas, left = beside(*small)
    draw = ImageDraw.Draw(canvas)
    starts = move(source_points, source, small[0])
    ends = move(predicted, target, small[1]) + (left, 0)
    truths = None if true is None else move(true, target, small[1]) + (left, 0)
    width = max(1, side // 120)
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        right = None if correct is None else correct[index]
        colour = _hue(index, len(starts)) if right is None else RIGHT if right else WRONG
        if similarity is not None:
            colour = _on_scale(similarity[index], similarity)
        draw.line([*start, *end], fill=colour, width=width)
        if truths is not None and not right:
            draw.ellipse(_box(truths[index], 2 * width + 2), outline=RIGHT, width=width)
        for point in (start, end):
            draw.ellipse(_box(point, width + 1.5), fill=colour, outline="white")
    for number, points in zip(numbers or (), zip(starts, ends, strict=True), strict=bool(numbers)):
        for x, y in points:
            _write(draw, (x + width + 3, y - width - 3), str(number), side)
    return canvas if similarity is None or not len(similarity) else _with_scale(canvas, similarity, side)


def _on_scale(value: float, values: np.ndarray) -> tuple[int, int, int]:
    """The colour of a value on a scale from the smallest to the largest of `values`."""
    low, high = float(np.min(values)), float(np.max(values))
    red, green, blue, _ = matplotlib.colormaps["turbo"]((value - low) / (high - low) if high > low else 1.0, bytes=True)
    return int(red), int(green), int(blue)


def _with_scale(canvas: PillowImage.Image, values: np.ndarray, side: int) -> PillowImage.Image:
    """A picture with a labelled colour scale of its values below it."""
    height = max(18, side // 22)
    whole = PillowImage.new("RGB", (canvas.width, canvas.height + height), "white")
    whole.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(whole)
    low, high, top = float(np.min(values)), float(np.max(values)), canvas.height
    words = f"similarity {low:.2f}", f"{high:.2f}"
    font = ImageFont.load_default(size=max(10, height * 0.6))
    left = draw.textlength(words[0], font) + 12
    right = max(left + 1, min(left + side // 2, whole.width - draw.textlength(words[1], font) - 12))
    draw.text((6, top + height / 2), words[0], fill="black", font=font, anchor="lm")
    draw.text((right + 6, top + height / 2), words[1], fill="black", font=font, anchor="lm")
    for x in range(int(left), int(right)):
        value = low + (high - low) * (x - left) / max(1.0, right - left)
        draw.line((x, top + height * 0.25, x, top + height * 0.75), fill=_on_scale(value, values))
    return whole


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, side: int) -> None:
    """Write a short text that is readable on any background."""
    font = ImageFont.load_default(size=max(10, side / 40))
    left, top, right, _ = draw.textbbox(place, text, font=font, anchor="lb", stroke_width=2)
    width, _ = draw.im.size
    place = place[0] - max(0, right - width) + max(0, -left), place[1] + max(0, -top)  # not cut off at the edge
    draw.text(place, text, fill="white", font=font, anchor="lb", stroke_width=2, stroke_fill="black")


def similarity(
    source: PillowImage.Image,
    target: PillowImage.Image,
    point: np.ndarray,
    heatmap: np.ndarray,
    grid: Grid,
    *,
    side: int,
    predicted: np.ndarray,
    true: np.ndarray | None = None,
) -> PillowImage.Image:
    """The source with one point, beside the target under the point's similarity map, from blue (low) to red (high).

    Args:
        source: of any size.
        target: of any size.
        point: (2,) in the source.
        heatmap: (h, w), cosine similarity with the target's cells.
        grid: the target's.
        side: pixels of the square that each image is resized to.
        predicted: (2,) in the target, a white dot.
        true: (2,), a green ring.
    """
    small = fit(source, side), fit(target, side)
    canvas, left = beside(small[0], PillowImage.blend(small[1], overlay(heatmap, grid, small[1].size), 0.6))
    draw = ImageDraw.Draw(canvas)
    radius = max(1, side // 120) + 2
    draw.ellipse(_box(move(point, source, small[0])[0], radius), fill=WRONG, outline="white")
    if true is not None:
        draw.ellipse(_box(move(true, target, small[1])[0] + (left, 0), radius + 3), outline=RIGHT, width=2)
    draw.ellipse(_box(move(predicted, target, small[1])[0] + (left, 0), radius), fill="white", outline="black")
    return canvas


def overlay(heatmap: np.ndarray, grid: Grid, size: tuple[int, int]) -> PillowImage.Image:
    """A heatmap (h, w) in colours, scaled from its minimum to its maximum and laid over its image's (width, height)."""
    low, high = float(heatmap.min()), float(heatmap.max())
    scaled = (heatmap - low) / ((high - low) or 1.0)
    seen = lay(PillowImage.fromarray(scaled.astype(np.float32)), grid, size)
    colours = matplotlib.colormaps["turbo"](np.asarray(seen), bytes=True)
    return PillowImage.fromarray(colours[:, :, :3])


def lay(cells: PillowImage.Image, grid: Grid, size: tuple[int, int]) -> PillowImage.Image:
    """A picture with one pixel per cell, smoothed and laid over its image's (width, height)."""
    whole = (cells.width * grid.stride, cells.height * grid.stride)
    smooth = cells.resize(whole, PillowImage.Resampling.BILINEAR)
    height, width = (side * grid.upsample for side in grid.resized_size)
    return smooth.crop((0, 0, width, height)).resize(size, PillowImage.Resampling.BILINEAR)


def false_colours(*layers: tuple[PillowImage.Image, np.ndarray, np.ndarray, Grid], side: int) -> PillowImage.Image:
    """Images side by side, in grey except for the coloured cells of their objects.

    Args:
        layers: image, its cells' colours (h, w, 3) in [0, 1], which cells are coloured (h, w), and its grid.
        side: pixels of the square that each image is resized to.
    """
    parts = []
    for image, colours, coloured, grid in layers:
        small = fit(image, side)
        cells = lay(PillowImage.fromarray((255 * colours).round().astype(np.uint8)), grid, small.size)
        share = lay(PillowImage.fromarray((255 * coloured).astype(np.uint8)), grid, small.size)
        painted = PillowImage.blend(small, cells, 0.75)
        parts.append(PillowImage.composite(painted, small.convert("L").convert("RGB"), share))
    return beside(*parts)[0]


def encode(image: PillowImage.Image) -> bytes:
    """An image as JPEG, byte-identical each time; of all formats it alone enters a printed PDF as it is."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def data_uri(image: PillowImage.Image) -> str:
    """An image as a data URI for a page."""
    return "data:image/jpeg;base64," + base64.b64encode(encode(image)).decode()


def _hue(index: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(index / max(1, count), 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _box(center: np.ndarray, radius: float) -> tuple[float, float, float, float]:
    return center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius
