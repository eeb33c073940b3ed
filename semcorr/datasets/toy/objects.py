"""What is drawn: articulated objects, stacks of flat parts with keypoints marked on them.

Each object has its own coordinates (x right, y down, about one unit in size, facing left); a random pose bends it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


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

    def polygon(self, points: list | np.ndarray, tone: str) -> None:
        """Add a part."""
        self.parts.append((np.array(points, float), tone))

    def ellipse(self, center: tuple, radii: tuple, tone: str, turn: float = 0.0) -> None:
        """Add an elliptic part, turned by `turn` radians."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        points = np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], axis=1)
        self.polygon(points @ rotation(turn).T + center, tone)

    def ring(self, center: tuple, outer: float, inner: float, tone: str) -> None:
        """Add an annulus: through its hole one sees what is behind."""
        angle = np.linspace(0, 2 * np.pi, 48)
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.polygon(np.concatenate([circle * outer, circle[::-1] * inner]) + center, tone)

    def limb(self, start: tuple, end: tuple, widths: tuple[float, float], tone: str) -> None:
        """Add a rounded bar that is widths[0] wide at its start and widths[1] at its end."""
        first, last = np.array(start, float), np.array(end, float)
        direction = np.arctan2(*(last - first)[::-1])
        back = direction + np.linspace(np.pi / 2, 3 * np.pi / 2, 12)
        front = direction + np.linspace(-np.pi / 2, np.pi / 2, 12)
        caps = [
            first + widths[0] / 2 * np.stack([np.cos(back), np.sin(back)], axis=1),
            last + widths[1] / 2 * np.stack([np.cos(front), np.sin(front)], axis=1),
        ]
        self.polygon(np.concatenate(caps), tone)

    def mark(self, name: str, point: tuple) -> None:
        """Mark a keypoint on the part added last."""
        self.marks[name] = (float(point[0]), float(point[1]), len(self.parts) - 1)


def rotation(angle: float) -> np.ndarray:
    """The matrix (2, 2) that turns points by `angle` radians, x towards y."""
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
                thing, hip, (leg, leg * 0.9), width, side, name, (bend, bend * 0.4 + swings[(2 * index + 1) % 8] * 0.5)
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
        return tuple(np.array(head) + rotation(tilt) @ (x, y))

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
        [(head[0] - 0.13, head[1] + 0.02), (head[0] - 0.36, head[1] + 0.06 + open_), (head[0] - 0.10, head[1] + 0.09)],
        "pale",
    )
    thing.polygon(
        [(head[0] - 0.13, head[1] - 0.04), (head[0] - 0.38, head[1] + 0.03 - open_), (head[0] - 0.12, head[1] + 0.06)],
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
    for start, end in ((rear, crank), (rear, seat), (seat, crank), (crank, head), (seat, head), (head, front)):
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
            [(-0.18, sign * 0.05), (tip[0] - 0.05, tip[1]), (tip[0] + 0.06, tip[1]), (0.16, sign * 0.05)], "body"
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
