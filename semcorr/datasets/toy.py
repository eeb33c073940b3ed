"""Toy benchmarks drawn from a seed: articulated objects with exact keypoints, masks, boxes and difficulty codes.

Each object is a stack of flat parts in its own coordinates (x right, y down, about one unit in size, facing left),
with keypoints marked on parts. A random pose bends its limbs; a random view scales, turns, foreshortens and mirrors
it. A keypoint is visible where its own part is the topmost one, so legs behind legs and occluders hide what they
should. In the mirror, left and right change their names, as they do on a real animal.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFilter

from semcorr.files import write_json, write_text

SUPERSAMPLE = 3
OCCLUDER = 255
MIN_COMMON = 3  # keypoints that a pair must share, as in SPair-71k
SIZES = ((168, 224), (224, 224), (224, 168), (180, 240), (210, 240))  # height, width


@dataclass
class Object:
    """Parts from back to front, and keypoints with the part they lie on.

    Attributes:
        parts: polygons (K, 2) with a tone: "body", "dark", "accent", "pale", "black", "white", and "far" for what
            lies on the far side.
        marks: name -> (x, y, index of the part that it is visible on).
    """

    parts: list[tuple[np.ndarray, str]] = field(default_factory=list)
    marks: dict[str, tuple[float, float, int]] = field(default_factory=dict)

    def polygon(self, points: list, tone: str) -> None:
        """Add a part."""
        self.parts.append((np.array(points, float), tone))

    def ellipse(self, center: tuple, radii: tuple, tone: str, turn: float = 0.0) -> None:
        """Add an elliptic part, turned by `turn` radians."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        points = np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], axis=1)
        self.polygon(points @ _rotation(turn).T + center, tone)

    def ring(self, center: tuple, outer: float, inner: float, tone: str) -> None:
        """Add an annulus: through its hole one sees what is behind."""
        angle = np.linspace(0, 2 * np.pi, 48)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.polygon(np.concatenate([circle * outer, circle[::-1] * inner]) + center, tone)

    def limb(self, start: tuple, end: tuple, widths: tuple[float, float], tone: str) -> None:
        """Add a rounded bar that is widths[0] wide at its start and widths[1] at its end."""
        start, end = np.array(start, float), np.array(end, float)
        direction = np.arctan2(*(end - start)[::-1])
        back = direction + np.linspace(np.pi / 2, 3 * np.pi / 2, 12)
        front = direction + np.linspace(-np.pi / 2, np.pi / 2, 12)
        caps = [
            start + widths[0] / 2 * np.stack([np.cos(back), np.sin(back)], axis=1),
            end + widths[1] / 2 * np.stack([np.cos(front), np.sin(front)], axis=1),
        ]
        self.polygon(np.concatenate(caps), tone)

    def mark(self, name: str, point: tuple) -> None:
        """Mark a keypoint on the part added last."""
        self.marks[name] = (float(point[0]), float(point[1]), len(self.parts) - 1)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _along(start: tuple, angle: float, length: float) -> tuple[float, float]:
    """The point `length` from `start`; angle 0 points down, positive angles turn towards the front (left)."""
    return start[0] - length * np.sin(angle), start[1] + length * np.cos(angle)


def _leg(thing: Object, hip: tuple, lengths: tuple, width: float, side: str, name: str, swing: tuple) -> None:
    tone = "far" if side == "right" else "body"
    knee = _along(hip, swing[0], lengths[0])
    foot = _along(knee, swing[1], lengths[1])
    thing.limb(hip, knee, (width * 1.25, width), tone)
    thing.limb(knee, foot, (width, width * 0.75), tone)
    thing.mark(f"{side}_{name}_knee", knee)
    thing.ellipse((foot[0] - width * 0.3, foot[1]), (width * 0.75, width * 0.45), "dark")
    thing.mark(f"{side}_{name}_foot", (foot[0] - width * 0.3, foot[1]))


def _quadruped(rng: np.random.Generator, *, leg: float, neck: float, neck_angle: float, giraffe: bool) -> Object:
    thing = Object()
    width, half = (0.085, 0.30) if giraffe else (0.115, 0.36)
    swings = rng.uniform(-0.35, 0.35, 8)
    hips = {"front": (-half + 0.06, 0.06), "hind": (half - 0.06, 0.06)}

    def legs(side: str, first: int) -> None:
        for index, (name, hip) in enumerate(hips.items(), start=first):
            bend = swings[2 * index % 8]
            _leg(
                thing,
                hip,
                (leg, leg * 0.9),
                width,
                side,
                name,
                (bend, bend * 0.4 + swings[(2 * index + 1) % 8] * 0.5),
            )

    legs("right", 0)
    tail_base = (half + 0.06, -0.10)
    tail_turn = rng.uniform(0.3, 0.8) if giraffe else rng.uniform(-2.6, -0.8)
    tail_tip = _along(tail_base, -abs(tail_turn), 0.34)
    thing.limb(tail_base, tail_tip, (0.07, 0.04), "body")
    thing.ellipse(tail_tip, (0.05, 0.05), "dark")
    thing.mark("tail_tip", tail_tip)
    ear = 0.13 if giraffe else 0.16
    shoulder = (-half + 0.02, -0.08)
    angle = np.pi - neck_angle + rng.uniform(-0.25, 0.25)
    head = _along(shoulder, angle, neck)
    tilt = rng.uniform(-0.25, 0.25)

    def on_head(x: float, y: float) -> tuple[float, float]:
        return tuple(np.array(head) + _rotation(tilt) @ (x, y))

    thing.polygon([on_head(0.02, -0.08), on_head(0.11, -0.09 - ear), on_head(0.12, -0.02)], "far")
    thing.mark("right_ear", on_head(0.098, -0.06 - ear * 0.75))
    thing.ellipse((0, 0), (half + 0.10, 0.19), "body")
    thing.mark("back", (0.02, -0.15))
    thing.mark("belly", (0.04, 0.14))
    thing.mark("tail_base", (half + 0.02, -0.06))
    thing.mark("chest", (-half - 0.02, 0.04))
    if giraffe:
        for x, y in rng.uniform((-half, -0.10), (half, 0.10), (9, 2)):
            thing.ellipse((x, y), (0.055, 0.04), "accent", rng.uniform(0, 3))
    else:
        thing.ellipse((rng.uniform(-0.1, 0.2), -0.05), (0.13, 0.09), "accent")
    legs("left", 2)
    thing.limb(shoulder, head, (0.19, 0.11) if giraffe else (0.24, 0.19), "body")
    thing.mark("neck", tuple((np.array(shoulder) + head) / 2))
    thing.ellipse(head, (0.14, 0.12), "body", tilt)
    thing.limb(on_head(-0.06, 0.02), on_head(-0.23, 0.06), (0.14, 0.09), "body")
    thing.ellipse(on_head(-0.27, 0.04), (0.035, 0.03), "black")
    thing.mark("nose", on_head(-0.27, 0.04))
    thing.limb(on_head(-0.14, 0.09), on_head(-0.21, 0.10), (0.02, 0.02), "dark")
    thing.mark("mouth", on_head(-0.18, 0.095))
    thing.polygon([on_head(-0.01, -0.07), on_head(0.06, -0.08 - ear), on_head(0.10, -0.03)], "accent")
    thing.mark("left_ear", on_head(0.055, -0.06 - ear * 0.75))
    thing.ellipse(on_head(-0.05, -0.03), (0.028, 0.028), "black")
    thing.mark("left_eye", on_head(-0.05, -0.03))
    return thing


def dog(rng: np.random.Generator) -> Object:
    """A dog from its left side."""
    return _quadruped(rng, leg=0.21, neck=0.26, neck_angle=0.6, giraffe=False)


def giraffe(rng: np.random.Generator) -> Object:
    """A giraffe from its left side."""
    return _quadruped(rng, leg=0.33, neck=0.62, neck_angle=0.35, giraffe=True)


def bird(rng: np.random.Generator) -> Object:
    """A standing bird from its left side."""
    thing = Object()
    spread = rng.uniform(0.0, 0.35)
    for side, x, tone in (("right", 0.10, "far"), ("left", 0.0, "accent")):
        foot = (x + rng.uniform(-0.06, 0.06), 0.56)
        thing.limb((x, 0.25), foot, (0.035, 0.03), tone)
        thing.limb(foot, (foot[0] - 0.11, foot[1] + 0.01), (0.04, 0.03), tone)
        thing.mark(f"{side}_foot", (foot[0] - 0.03, foot[1]))
    lift = rng.uniform(-0.15, 0.12)
    thing.polygon([(0.25, -0.02), (0.68, lift - 0.06), (0.70, lift + 0.08), (0.25, 0.14)], "dark")
    thing.mark("tail_tip", (0.63, lift + 0.01))
    thing.ellipse((0, 0.06), (0.40, 0.25), "body", -0.15)
    thing.mark("belly", (-0.03, 0.25))
    thing.mark("breast", (-0.30, 0.14))
    thing.mark("tail_base", (0.33, -0.01))
    thing.mark("back", (0.12, -0.13))
    head = (-0.36 + rng.uniform(-0.06, 0.06), -0.30 + rng.uniform(-0.08, 0.08))
    thing.limb((-0.24, 0.0), head, (0.26, 0.2), "body")
    thing.mark("neck", tuple((np.array(head) + (-0.24, 0.0)) / 2))
    thing.ellipse(head, (0.16, 0.15), "accent")
    thing.mark("crown", (head[0] + 0.01, head[1] - 0.12))
    open_ = rng.uniform(0.0, 0.05)
    thing.polygon(
        [
            (head[0] - 0.13, head[1] + 0.02),
            (head[0] - 0.36, head[1] + 0.06 + open_),
            (head[0] - 0.10, head[1] + 0.09),
        ],
        "pale",
    )
    thing.polygon(
        [
            (head[0] - 0.13, head[1] - 0.04),
            (head[0] - 0.38, head[1] + 0.03 - open_),
            (head[0] - 0.12, head[1] + 0.06),
        ],
        "pale",
    )
    thing.mark("beak", (head[0] - 0.34, head[1] + 0.025 - open_ * 0.8))
    thing.ellipse((head[0] - 0.05, head[1] - 0.03), (0.032, 0.032), "black")
    thing.mark("left_eye", (head[0] - 0.05, head[1] - 0.03))
    thing.polygon([(-0.16, -0.04), (0.10, -0.14), (0.42, 0.05 - spread), (0.46, 0.16 - spread), (0.05, 0.20)], "dark")
    thing.mark("left_wing_tip", (0.41, 0.11 - spread))
    thing.mark("left_shoulder", (-0.10, 0.0))
    return thing


def fish(rng: np.random.Generator) -> Object:
    """A fish from its left side."""
    thing = Object()
    bend = rng.uniform(-0.12, 0.12)
    tall = rng.uniform(0.24, 0.33)
    top, bottom = (0.74, -0.26 + bend), (0.74, 0.28 + bend)
    thing.polygon([(0.40, bend * 0.3 - 0.05), top, (0.62, bend), bottom, (0.40, bend * 0.3 + 0.06)], "accent")
    thing.mark("tail_top", (0.70, -0.21 + bend))
    thing.mark("tail_bottom", (0.70, 0.23 + bend))
    fin = (0.05 + rng.uniform(-0.08, 0.08), -tall - 0.17)
    thing.polygon([(-0.18, -tall * 0.8), fin, (0.32, -tall * 0.55)], "accent")
    thing.mark("dorsal_fin", (fin[0] + 0.015, fin[1] + 0.05))
    thing.polygon([(0.02, tall * 0.8), (0.20, tall + 0.15), (0.26, tall * 0.6)], "accent")
    thing.mark("anal_fin", (0.185, tall + 0.11))
    thing.ellipse((0, 0), (0.50, tall), "body")
    thing.mark("belly", (-0.08, tall - 0.05))
    thing.mark("tail_base", (0.44, 0.0))
    for x in (-0.02, 0.13, 0.28):
        thing.ellipse((x, 0), (0.025, tall * (0.8 - abs(x))), "pale")
    thing.ellipse((-0.24, 0.02), (0.02, 0.13), "dark")
    thing.mark("left_gill", (-0.24, 0.02))
    thing.limb((-0.44, 0.07), (-0.36, 0.09), (0.02, 0.02), "black")
    thing.mark("mouth", (-0.42, 0.075))
    thing.ellipse((-0.34, -0.07), (0.05, 0.05), "white")
    thing.ellipse((-0.35, -0.07), (0.026, 0.026), "black")
    thing.mark("left_eye", (-0.345, -0.07))
    tip = _along((-0.12, 0.08), -rng.uniform(0.5, 1.4), 0.22)
    thing.polygon([(-0.15, 0.03), tip, (-0.12, 0.14)], "dark")
    thing.mark("left_pectoral_fin", tuple(np.array(tip) * 0.8 + np.array((-0.13, 0.08)) * 0.2))
    return thing


def car(rng: np.random.Generator) -> Object:
    """A car from its left side."""
    thing = Object()
    roof, hood = rng.uniform(-0.42, -0.32), rng.uniform(-0.12, -0.05)
    front, rear = rng.uniform(-0.20, -0.10), rng.uniform(0.28, 0.42)
    base, trunk = rng.uniform(-0.38, -0.30), rng.uniform(0.48, 0.60)
    thing.polygon([(base, hood), (front, roof), (rear, roof), (trunk, hood)], "body")
    thing.mark("roof_front", (front + 0.02, roof + 0.03))
    thing.mark("roof_rear", (rear - 0.02, roof + 0.03))
    thing.polygon([(base + 0.08, hood), (front + 0.03, roof + 0.07), (0.04, roof + 0.07), (0.04, hood)], "pale")
    thing.mark("left_front_window", ((base + front) / 4 + 0.04, (hood + roof) / 2 + 0.05))
    thing.polygon([(0.09, hood), (0.09, roof + 0.07), (rear - 0.04, roof + 0.07), (trunk - 0.09, hood)], "pale")
    thing.mark("left_rear_window", (rear / 2 + 0.06, (hood + roof) / 2 + 0.05))
    thing.polygon([(-0.72, 0.0), (base, hood), (trunk, hood), (0.72, -0.03), (0.72, 0.18), (-0.74, 0.18)], "body")
    thing.limb((0.07, hood + 0.03), (0.07, 0.16), (0.012, 0.012), "dark")
    thing.limb((0.12, 0.02), (0.19, 0.02), (0.03, 0.03), "black")
    thing.mark("left_door_handle", (0.155, 0.02))
    thing.limb((base + 0.05, hood - 0.02), (base + 0.02, hood - 0.05), (0.06, 0.06), "dark")
    thing.mark("left_mirror", (base + 0.035, hood - 0.035))
    thing.limb((-0.76, 0.15), (-0.60, 0.15), (0.06, 0.06), "dark")
    thing.mark("front_bumper", (-0.72, 0.15))
    thing.limb((0.60, 0.15), (0.75, 0.15), (0.06, 0.06), "dark")
    thing.mark("rear_bumper", (0.71, 0.15))
    thing.ellipse((-0.66, 0.05), (0.055, 0.04), "white")
    thing.mark("left_headlight", (-0.66, 0.05))
    thing.ellipse((0.68, 0.04), (0.035, 0.05), "accent")
    thing.mark("left_tail_light", (0.68, 0.04))
    for name, x in (("front", -0.44), ("rear", 0.44)):
        thing.ellipse((x, 0.19), (0.155, 0.155), "black")
        thing.ellipse((x, 0.19), (0.075, 0.075), "pale")
        thing.mark(f"left_{name}_wheel", (x, 0.19))
    return thing


def bicycle(rng: np.random.Generator) -> Object:
    """A bicycle from its left side."""
    thing = Object()
    front, rear, size = (-0.46, 0.18), (0.46, 0.18), rng.uniform(0.26, 0.31)
    head = (-0.30 + rng.uniform(-0.03, 0.03), -0.26)
    seat = (0.20 + rng.uniform(-0.03, 0.03), -0.26 + rng.uniform(-0.06, 0.04))
    crank = (0.05, 0.20)
    for name, hub in (("front", front), ("rear", rear)):
        thing.ring(hub, size, size - 0.045, "black")
        for turn in rng.uniform(0, np.pi) + np.arange(4) * np.pi / 4:
            spoke = (size - 0.03) * np.array((np.cos(turn), np.sin(turn)))
            thing.limb(tuple(hub - spoke), tuple(hub + spoke), (0.008, 0.008), "dark")
        thing.mark(f"{name}_tyre_bottom", (hub[0], hub[1] + size - 0.022))
        thing.marks[f"{name}_tyre_bottom"] = (*thing.marks[f"{name}_tyre_bottom"][:2], len(thing.parts) - 5)
    for start, end in (
        (rear, crank),
        (rear, seat),
        (seat, crank),
        (crank, head),
        (seat, head),
        (head, front),
    ):
        thing.limb(start, end, (0.05, 0.05), "body")
    for name, hub in (("front", front), ("rear", rear)):
        thing.ellipse(hub, (0.045, 0.045), "pale")
        thing.mark(f"{name}_hub", hub)
    thing.ellipse(head, (0.035, 0.035), "accent")
    bar = (head[0] - 0.02, head[1] - 0.17)
    thing.limb(head, bar, (0.045, 0.045), "dark")
    thing.mark("head_tube", head)
    grip = (bar[0] + rng.uniform(-0.16, 0.12), bar[1] + rng.uniform(-0.04, 0.06))
    thing.limb(bar, grip, (0.05, 0.06), "black")
    thing.mark("left_grip", grip)
    thing.mark("stem", bar)
    thing.limb(seat, (seat[0] + 0.02, seat[1] - 0.11), (0.04, 0.04), "dark")
    thing.limb((seat[0] - 0.10, seat[1] - 0.11), (seat[0] + 0.13, seat[1] - 0.13), (0.05, 0.09), "black")
    thing.mark("saddle_nose", (seat[0] - 0.09, seat[1] - 0.11))
    thing.mark("saddle_rear", (seat[0] + 0.12, seat[1] - 0.13))
    thing.ellipse(crank, (0.075, 0.075), "accent")
    pedal = _along(crank, rng.uniform(0, 2 * np.pi), 0.16)
    thing.limb(crank, pedal, (0.03, 0.03), "dark")
    thing.mark("crank", crank)
    thing.limb((pedal[0] - 0.05, pedal[1]), (pedal[0] + 0.05, pedal[1]), (0.04, 0.04), "black")
    thing.mark("left_pedal", pedal)
    return thing


def plane(rng: np.random.Generator) -> Object:
    """An aeroplane from above, its nose to the left: its left wing is below the fuselage in the picture."""
    thing = Object()
    sweep, span = rng.uniform(0.10, 0.35), rng.uniform(0.52, 0.68)
    for side, sign in (("right", -1), ("left", 1)):
        tip = (0.05 + sweep, sign * span)
        thing.polygon(
            [(-0.18, sign * 0.05), (tip[0] - 0.05, tip[1]), (tip[0] + 0.06, tip[1]), (0.16, sign * 0.05)],
            "body",
        )
        thing.mark(f"{side}_wing_tip", (tip[0], tip[1] - sign * 0.04))
        engine = (sweep * 0.45 - 0.14, sign * span * 0.45)
        thing.limb(engine, (engine[0] + 0.14, engine[1]), (0.08, 0.07), "dark")
        thing.mark(f"{side}_engine", (engine[0] - 0.01, engine[1]))
        thing.polygon([(0.44, sign * 0.03), (0.60, sign * 0.24), (0.68, sign * 0.24), (0.60, sign * 0.03)], "body")
        thing.mark(f"{side}_stabiliser", (0.635, sign * 0.21))
    thing.limb((-0.60, 0), (0.62, 0), (0.17, 0.07), "pale")
    thing.mark("nose", (-0.65, 0))
    thing.mark("right_wing_root", (-0.12, -0.055))
    thing.mark("left_wing_root", (-0.12, 0.055))
    thing.limb((0.45, 0), (0.68, 0), (0.03, 0.05), "accent")
    thing.mark("fin", (0.66, 0))
    thing.polygon([(-0.60, -0.05), (-0.52, -0.07), (-0.52, 0.07), (-0.60, 0.05)], "black")
    thing.mark("cockpit", (-0.56, 0))
    for x in np.arange(-0.40, 0.35, 0.12):
        thing.ellipse((x, 0.0), (0.018, 0.018), "dark")
    return thing


def person(rng: np.random.Generator) -> Object:
    """A person from the front: their right hand is on the left of the picture."""
    thing = Object()
    for side, sign in (("right", -1), ("left", 1)):
        hip = (sign * 0.09, 0.16)
        knee = _along(hip, -sign * rng.uniform(-0.05, 0.45), 0.24)
        foot = _along(knee, -sign * rng.uniform(-0.25, 0.2), 0.24)
        thing.limb(hip, knee, (0.15, 0.12), "accent")
        thing.limb(knee, foot, (0.12, 0.09), "accent")
        thing.mark(f"{side}_knee", knee)
        thing.limb(foot, (foot[0] + sign * 0.07, foot[1] + 0.03), (0.09, 0.08), "black")
        thing.mark(f"{side}_foot", foot)
        thing.marks[f"{side}_hip"] = (*hip, len(thing.parts))
    torso = len(thing.parts)
    thing.polygon([(-0.20, -0.24), (0.20, -0.24), (0.16, 0.20), (-0.16, 0.20)], "body")
    thing.mark("navel", (0.0, 0.08))
    thing.mark("chest", (0.0, -0.12))
    for side, sign in (("right", -1), ("left", 1)):
        thing.marks[f"{side}_hip"] = (sign * 0.10, 0.16, torso)
        shoulder = (sign * 0.19, -0.20)
        lift = rng.uniform(0.1, 2.4)
        elbow = _along(shoulder, -sign * lift, 0.21)
        hand = _along(elbow, -sign * (lift + rng.uniform(-0.3, 1.0)), 0.20)
        thing.limb(shoulder, elbow, (0.12, 0.09), "dark")
        thing.mark(f"{side}_shoulder", shoulder)
        thing.limb(elbow, hand, (0.08, 0.06), "white")
        thing.mark(f"{side}_elbow", elbow)
        thing.ellipse(hand, (0.05, 0.05), "pale")
        thing.mark(f"{side}_hand", hand)
    lean = rng.uniform(-0.05, 0.05)
    thing.limb((0, -0.26), (lean, -0.36), (0.10, 0.10), "pale")
    thing.ellipse((lean, -0.46), (0.13, 0.15), "pale")
    thing.mark("chin", (lean, -0.34))
    thing.polygon(
        [
            (lean - 0.14, -0.46),
            (lean - 0.11, -0.60),
            (lean, -0.65),
            (lean + 0.11, -0.60),
            (lean + 0.14, -0.46),
            (lean, -0.56),
        ],
        "dark",
    )
    thing.mark("crown", (lean, -0.61))
    for side, sign in (("right", -1), ("left", 1)):
        thing.ellipse((lean + sign * 0.05, -0.46), (0.02, 0.025), "black")
        thing.mark(f"{side}_eye", (lean + sign * 0.05, -0.46))
    thing.limb((lean - 0.04, -0.39), (lean + 0.04, -0.39), (0.02, 0.02), "accent")
    thing.mark("mouth", (lean, -0.39))
    return thing


CATEGORIES: dict[str, Callable[[np.random.Generator], Object]] = {
    "bicycle": bicycle,
    "bird": bird,
    "car": car,
    "dog": dog,
    "fish": fish,
    "giraffe": giraffe,
    "person": person,
    "plane": plane,
}
POSES = {"person": ("Frontal", "Frontal"), "plane": ("Unspecified", "Unspecified")}

# PF-WILLOW annotates ten keypoints in every image, so these are ten that a clear side view shows.
WILLOW = {
    "bicycle": "front_hub rear_hub head_tube left_grip saddle_nose saddle_rear crank left_pedal "
    "front_tyre_bottom rear_tyre_bottom",
    "bird": "beak left_eye crown neck breast belly left_shoulder tail_tip left_wing_tip left_foot",
    "car": "left_front_wheel left_rear_wheel left_headlight left_tail_light roof_front roof_rear "
    "left_mirror left_door_handle front_bumper rear_bumper",
    "fish": "mouth left_eye left_gill dorsal_fin tail_top tail_bottom tail_base belly anal_fin left_pectoral_fin",
}


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
    matrix = _rotation(turn) @ np.diag([np.cos(yaw) * (-1 if mirrored else 1), 1.0])
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
        name = _swap_sides(name) if mirrored else name
        if inside and owner[row, column] == part + 1:
            keypoints[name] = (float(px), float(py))
        else:
            hidden.add(name)
    rows, columns = np.nonzero(visible)
    bbox = tuple(int(value) for value in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
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


def _swap_sides(name: str) -> str:
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
    light = np.linspace(*rng.uniform(0.75, 1.12, 2), width) * np.linspace(1.1, 0.85, height)[:, None]
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


def write_spair(root: Path, seed: int, images: dict[str, int]) -> None:
    """Write a folder in SPair-71k's format.

    Args:
        root: an empty or missing folder.
        seed: decides every pixel.
        images: images per category in each of trn, val, test; the splits share none.
    """
    order = {"large": {}, "small": {}}
    number = 0
    for split, count in images.items():
        names: dict[str, list[str]] = {"large": [], "small": []}
        for index, category in enumerate(CATEGORIES):
            scenes = {
                f"toy_{split}_{position:03d}": render(
                    category,
                    np.random.default_rng([seed, list(("trn", "val", "test")).index(split), index, position]),
                )
                for position in range(count)
            }
            for name, scene in scenes.items():
                _write_spair_image(root, category, name, scene)
            for source, target in permutations(scenes, 2):
                pair = _spair_pair(number, category, (source, scenes[source]), (target, scenes[target]))
                if len(pair["kps_ids"]) < MIN_COMMON:
                    continue
                write_json(root / "PairAnnotation" / split / f"{pair['filename']}.json", pair)
                names["large"].append(pair["filename"])
                if number % 5 == 0:
                    names["small"].append(pair["filename"])
                number += 1
        for layout in order:
            write_text(root / "Layout" / layout / f"{split}.txt", "\n".join(names[layout]) + "\n")


def keypoint_numbers(category: str) -> dict[str, str]:
    """SPair's number, as text, of each keypoint name of a category."""
    names = CATEGORIES[category](np.random.default_rng(0)).marks
    return {name: str(number) for number, name in enumerate(sorted({*names, *map(_swap_sides, names)}))}


def _write_spair_image(root: Path, category: str, name: str, scene: Scene) -> None:
    for folder, image, suffix in (("JPEGImages", scene.image, "jpg"), ("Segmentation", scene.mask, "png")):
        path = root / folder / category / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
    width, height = scene.image.size
    numbers = keypoint_numbers(category)
    points = {number: scene.keypoints.get(key) for key, number in numbers.items()}
    annotation = {
        "filename": f"{name}.jpg",
        "src_database": "semcorr toy",
        "src_annotation": "semcorr toy",
        "src_image": "drawn",
        "image_width": width,
        "image_height": height,
        "image_depth": 3,
        "category": category,
        "pose": _pose(category, scene),
        "truncated": int(scene.truncated),
        "occluded": int(scene.occluded),
        "difficult": 0,
        "bndbox": list(scene.bbox),
        "kps": {number: point and [round(value) for value in point] for number, point in points.items()},
        "azimuth_id": round(np.degrees(scene.yaw) % 360 / 45) % 8,
    }
    write_json(root / "ImageAnnotation" / category / f"{name}.json", annotation)


def _pose(category: str, scene: Scene) -> str:
    return POSES.get(category, ("Left", "Right"))[scene.mirrored]


def _spair_pair(number: int, category: str, source: tuple[str, Scene], target: tuple[str, Scene]) -> dict:
    (source_name, first), (target_name, second) = source, target
    numbers = keypoint_numbers(category)
    common = sorted(first.keypoints.keys() & second.keypoints.keys(), key=lambda name: int(numbers[name]))
    sides = [max(box[2] - box[0], box[3] - box[1]) for box in (first.bbox, second.bbox)]
    angle = abs(first.yaw - second.yaw)
    flipped = first.mirrored != second.mirrored and category not in POSES
    return {
        "pair_id": number,
        "filename": f"{number:06d}-{source_name}-{target_name}:{category}",
        "src_imname": f"{source_name}.jpg",
        "trg_imname": f"{target_name}.jpg",
        "src_imsize": [*first.image.size, 3],
        "trg_imsize": [*second.image.size, 3],
        "src_bndbox": list(first.bbox),
        "trg_bndbox": list(second.bbox),
        "category": category,
        "src_pose": _pose(category, first),
        "trg_pose": _pose(category, second),
        "src_kps": [[round(value) for value in first.keypoints[name]] for name in common],
        "trg_kps": [[round(value) for value in second.keypoints[name]] for name in common],
        "kps_ids": [numbers[name] for name in common],
        "mirror": int(flipped),
        "viewpoint_variation": 2 if flipped else int(angle > 0.5),
        "scale_variation": int(np.digitize(max(sides) / min(sides), (1.3, 1.8))),
        "truncation": int(first.truncated) + 2 * int(second.truncated),
        "occlusion": int(first.occluded) + 2 * int(second.occluded),
    }


def write_pfwillow(root: Path, seed: int, images: dict[str, int]) -> None:
    """Write a folder in PF-WILLOW's format, drawn in pencil; `images` is {"all": images per sub-set}."""
    for index, (category, names) in enumerate(WILLOW.items()):
        for position in range(images["all"]):
            rng = np.random.default_rng([seed, index, position])
            wanted = names.split()
            scene = render(category, rng, sketch=True, clear=True)
            while not scene.keypoints.keys() >= set(wanted):
                scene = render(category, rng, sketch=True, clear=True)
            stem = root / f"{category}(T)" / f"{category.capitalize()}_{position:03d}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            scene.image.save(stem.with_suffix(".png"))
            points = np.array([scene.keypoints[name] for name in wanted]).T
            scipy.io.savemat(stem.with_suffix(".mat"), {"pts_coord": points})
