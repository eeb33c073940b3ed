"""One drawn image: an object in a random view, with its exact keypoints, mask and box.

The view scales, turns, foreshortens and mirrors the object. A keypoint is visible where its own part is the topmost
one, so legs behind legs and occluders hide what they should. In the mirror, left and right change their names, as they
do on a real animal.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFilter

from semcorr.datasets.toy.objects import CATEGORIES, Object, rotation

SUPERSAMPLE = 3
OCCLUDER = 255
SIZES = ((168, 224), (224, 224), (224, 168), (180, 240), (210, 240))  # height, width


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One drawn image and its exact annotation.

    Attributes:
        keypoints: visible ones, name -> (x, y) in pixels.
        hidden: names of the others.
        bbox: (x0, y0, x1, y1) of what is visible of the object, in pixels.
        yaw: foreshortening angle in radians.
    """

    image: PillowImage.Image
    mask: PillowImage.Image
    keypoints: dict[str, tuple[float, float]]
    hidden: set[str]
    bbox: tuple[int, int, int, int]
    mirrored: bool
    yaw: float
    truncated: bool
    occluded: bool


def render(category: str, rng: np.random.Generator, *, sketch: bool = False, clear: bool = False) -> Scene:
    """Draw one object.

    Args:
        category: one of CATEGORIES.
        rng: decides pose, view, colours and background.
        sketch: pencil on paper instead of paint.
        clear: no mirroring, occluder or truncation, and only a slight turn.
    """
    thing = CATEGORIES[category](rng)
    height, width = SIZES[rng.integers(len(SIZES))]
    mirrored = bool(not clear and rng.random() < 0.5)
    yaw = rng.uniform(-0.35, 0.35) if clear else rng.uniform(-0.9, 0.9)
    turn = rng.uniform(-0.15, 0.15) if clear else rng.uniform(-0.35, 0.35)
    if category == "plane":
        turn = rng.uniform(-np.pi, np.pi)
    matrix = rotation(turn) @ np.diag([np.cos(yaw) * (-1 if mirrored else 1), 1.0])
    points = np.concatenate([polygon for polygon, _ in thing.parts]) @ matrix.T
    low, high = points.min(axis=0), points.max(axis=0)
    fill = rng.uniform(0.75, 0.95) if clear else rng.uniform(0.45, 0.95)
    scale = fill * ((width, height) / (high - low)).min()
    slack = np.array((width, height)) - (high - low) * scale
    place = rng.uniform(0, 1, 2)
    offset = slack * place - low * scale
    if not clear and rng.random() < 0.2:  # let a part of it, along one axis, leave the image
        axis = rng.integers(2)
        lost = rng.uniform(0.1, 0.4) * (high - low)[axis] * scale
        offset[axis] += (
            -slack[axis] * place[axis] - lost if rng.random() < 0.5 else slack[axis] * (1 - place[axis]) + lost
        )

    def to_pixels(xy: np.ndarray) -> np.ndarray:
        return xy @ matrix.T * scale + offset - 0.5

    parts = [(to_pixels(polygon), tone) for polygon, tone in thing.parts]
    occluder = _occluder(rng, to_pixels(points[:1] * 0), scale) if not clear and rng.random() < 0.25 else []
    owners = PillowImage.new("L", (width, height), 0)
    for index, (polygon, _) in enumerate(parts, start=1):
        _fill(owners, polygon, index)
    whole = np.array(owners) > 0
    for polygon in occluder:
        _fill(owners, polygon, OCCLUDER)
    owner = np.array(owners)
    visible = (owner > 0) & (owner < OCCLUDER)
    if visible.sum() < 0.3 * whole.sum() or visible.sum() < 300:
        return render(category, rng, sketch=sketch, clear=clear)
    keypoints, hidden = {}, set()
    for name, (x, y, part) in thing.marks.items():
        px, py = to_pixels(np.array((x, y)))
        column, row = round(px), round(py)
        inside = 0 <= column < width and 0 <= row < height
        name = swap_sides(name) if mirrored else name
        if inside and owner[row, column] == part + 1:
            keypoints[name] = (float(px), float(py))
        else:
            hidden.add(name)
    rows, columns = np.nonzero(visible)
    bbox = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    corners = np.concatenate([polygon for polygon, _ in parts])
    return Scene(
        image=_paint(parts, occluder, (height, width), rng, sketch),
        mask=PillowImage.fromarray(visible.astype(np.uint8) * 255),
        keypoints=keypoints,
        hidden=hidden,
        bbox=bbox,
        mirrored=mirrored,
        yaw=float(yaw),
        truncated=bool((corners < -0.5).any() or (corners > (width, height)).any()),
        occluded=bool(visible.sum() < 0.98 * whole.sum()),
    )


def swap_sides(name: str) -> str:
    """A keypoint's name in the mirror: left is right."""
    side, _, rest = name.partition("_")
    return {"left": f"right_{rest}", "right": f"left_{rest}"}.get(side, name)


def _fill(image: PillowImage.Image, polygon: np.ndarray, value: int) -> None:
    ImageDraw.Draw(image).polygon([tuple(point) for point in polygon.tolist()], fill=value)


def _occluder(rng: np.random.Generator, center: np.ndarray, scale: float) -> list[np.ndarray]:
    """A post or a bush somewhere in front of the object."""
    middle = center.reshape(2) + rng.uniform(-0.5, 0.5, 2) * scale
    if rng.random() < 0.5:
        half = rng.uniform(0.05, 0.10) * scale
        lean = rng.uniform(-20, 20)
        x = middle[0]
        return [np.array([(x - half, -10), (x + half, -10), (x + half + lean, 400), (x - half + lean, 400)])]
    bush = Object()
    for _ in range(7):
        at = middle + rng.uniform(-0.22, 0.22, 2) * scale
        bush.ellipse(tuple(at), (0.13 * scale, 0.11 * scale), "dark")
    return [polygon for polygon, _ in bush.parts]


def _paint(
    parts: list, occluder: list, size: tuple[int, int], rng: np.random.Generator, sketch: bool
) -> PillowImage.Image:
    """Draw the parts at several times the size, with light and grain, and shrink."""
    height, width = size
    large = (width * SUPERSAMPLE, height * SUPERSAMPLE)
    hue = rng.random()
    tones = _tones(rng, hue, sketch)
    canvas = _background(rng, large, hue, sketch)
    draw = ImageDraw.Draw(canvas)
    line = round(SUPERSAMPLE * (1.3 if sketch else 0.7))
    for polygon, tone in [*parts, *((polygon, "occluder") for polygon in occluder)]:
        points = [tuple(point) for point in ((polygon + 0.5) * SUPERSAMPLE).tolist()]
        draw.polygon(points, fill=tones[tone])
        edge = (40, 40, 48) if sketch else tuple(int(value * 0.6) for value in tones[tone])
        draw.line([*points, points[0]], fill=edge, width=line, joint="curve")
    image = np.asarray(canvas.resize((width, height), PillowImage.Resampling.LANCZOS), float)
    left, right = rng.uniform(0.75, 1.12, 2).tolist()
    light = np.linspace(left, right, width) * np.linspace(1.1, 0.85, height)[:, None]
    grain = rng.normal(0, 5, (height, width, 1))
    return PillowImage.fromarray(np.clip(image * (1 if sketch else light[..., None]) + grain, 0, 255).astype(np.uint8))


def _tones(rng: np.random.Generator, hue: float, sketch: bool) -> dict[str, tuple[int, int, int]]:
    strength, value = (0.25, 0.97) if sketch else (rng.uniform(0.4, 0.85), rng.uniform(0.6, 0.95))
    accent = hue + rng.uniform(0.1, 0.9)
    colours = {
        "body": (hue, strength, value),
        "far": (hue, strength, value * 0.72),
        "dark": (hue, strength, value * 0.5),
        "accent": (accent, strength, value * 0.9),
        "pale": (accent, strength * 0.3, min(1.0, value * 1.15)),
        "black": (hue, 0.2, 0.15),
        "white": (hue, 0.05, 0.97),
        "occluder": (rng.random(), 0.35, rng.uniform(0.3, 0.7)),
    }
    return {tone: _rgb(*colour) for tone, colour in colours.items()}


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _background(rng: np.random.Generator, size: tuple[int, int], hue: float, sketch: bool) -> PillowImage.Image:
    """Paper, or a sky over a ground with things lying about."""
    if sketch:
        return PillowImage.new("RGB", size, _rgb(0.12, rng.uniform(0.02, 0.12), rng.uniform(0.92, 1.0)))
    width, height = size
    sky, ground = (_rgb(hue + rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.98)) for _ in range(2))
    canvas = PillowImage.new("RGB", size, sky)
    draw = ImageDraw.Draw(canvas)
    horizon = int(height * rng.uniform(0.4, 0.8))
    draw.rectangle((0, horizon, width, height), fill=ground)
    for _ in range(rng.integers(4, 12)):
        x, y = rng.uniform((0, 0), size)
        radius = rng.uniform(0.03, 0.13) * width
        colour = _rgb(rng.random(), rng.uniform(0.1, 0.5), rng.uniform(0.3, 0.95))
        box = (x - radius, y - radius * rng.uniform(0.3, 1), x + radius, y + radius)
        (draw.ellipse if rng.random() < 0.6 else draw.rectangle)(box, fill=colour)
    return canvas.filter(ImageFilter.GaussianBlur(SUPERSAMPLE * 2))
