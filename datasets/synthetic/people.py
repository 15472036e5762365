"""People of the synthetic data set: their looks, the motion of their limbs in each action, their outlines.

Lengths are in statures (a person's standing height is about 1), angles in degrees, actions in cycles. A pose is one
array of joint angles, so that two actions blend by a weighted sum. The skeleton is three-dimensional and seen from the
front (turn 0) to the side (turn +-90).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.synthetic.scenery import bgr

POSE_SIZE = 21
TURN, LIFT, RIGHT_ARM = 0, 1, slice(9, 13)  # indices in a pose
SHIFT = 4  # fractional bits of the coordinates that OpenCV fills polygons with
_CIRCLE = np.stack([f(np.arange(20) * (2 * np.pi / 20)) for f in (np.cos, np.sin)], 1)

Limb = tuple[float, float, float, float]  # swing, spread, bend, roll: see `pose`
Blob = tuple[np.ndarray, tuple[int, int, int]]  # convex outline (n, 2) in pixels, BGR colour


def pose(
    turn: float,
    arms: tuple[Limb, Limb],
    legs: tuple[Limb, Limb],
    lift: float = 0.0,
    lean: float = 0.0,
    sway: float = 0.0,
    nod: float = 0.0,
) -> np.ndarray:
    """Joint angles (POSE_SIZE,); `lift` is the height of the feet above the floor.

    A limb, left or right, is (swing forward, spread sideways, bend of elbow or knee, roll of that bend: 0 in the plane
    of the swing, 90 in that of the spread).
    """
    return np.array([turn, lift, lean, sway, nod, *arms[0], *arms[1], *legs[0], *legs[1]], np.float64)


def mirrored(poses: np.ndarray) -> np.ndarray:
    """Poses (T, POSE_SIZE) with left and right limbs exchanged; `turn` stays."""
    swapped = poses[:, np.r_[0:5, 9:13, 5:9, 17:21, 13:17]]
    swapped[:, 3] *= -1
    return swapped


def _there_and_back(cycles: float) -> float:
    """0 at whole cycles, 1 halfway."""
    return (1 - np.cos(2 * np.pi * cycles)) / 2


def _gait(p: float, stride: float, knee: float, swing: float, elbow: float) -> tuple:
    """Arms and legs of walking and running: opposite sides together, the knee bent while its leg swings forward."""
    s, c = np.sin(2 * np.pi * p), np.cos(2 * np.pi * p)
    arms = (-swing * s, 6, elbow, 0), (swing * s, 6, elbow, 0)
    legs = (stride * s, 2, 6 + knee * max(c, 0), 0), (-stride * s, 2, 6 + knee * max(-c, 0), 0)
    return arms, legs


def idle(p: float) -> np.ndarray:
    breath = np.sin(2 * np.pi * p)
    return pose(15, ((2 + 2 * breath, 9, 12, 0), (2 - 2 * breath, 9, 12, 0)), ((0, 4, 3, 0), (0, 4, 3, 0)), sway=breath)


def walk(p: float) -> np.ndarray:
    return pose(72, *_gait(p, 27, 45, 26, 16), lean=3)


def run(p: float) -> np.ndarray:
    arms, legs = _gait(p, 52, 85, 52, 88)
    return pose(78, arms, legs, lift=0.05 * abs(np.cos(2 * np.pi * p)), lean=16, nod=-8)


def wave(p: float) -> np.ndarray:
    s = np.sin(2 * np.pi * p)
    return pose(4, ((0, 10, 12, 0), (0, 138 + 30 * s, 8 + 22 * (1 + s), 90)), ((0, 7, 3, 0), (0, 5, 3, 0)), sway=4 * s)


def jump(p: float) -> np.ndarray:
    p %= 1
    air = max(0.0, np.sin(np.pi * (p - 0.35) / 0.6)) if p > 0.35 else 0.0
    crouch = max(0.0, np.cos(np.pi * (p - 0.18) / 0.4)) if p < 0.38 else 0.0
    arm = (-45 * crouch + 160 * air, 12, 20, 0)
    leg = (58 * crouch + 30 * air, 5, 100 * crouch + 55 * air, 0)
    return pose(40, (arm, arm), (leg, leg), lift=0.38 * air, lean=32 * crouch)


def jumping_jack(p: float) -> np.ndarray:
    opened = _there_and_back(p)
    arm, leg = (0, 8 + 150 * opened, 8, 90), (0, 3 + 27 * opened, 3, 0)
    return pose(0, (arm, arm), (leg, leg), lift=0.06 * np.sin(2 * np.pi * p) ** 2)


def squat(p: float) -> np.ndarray:
    down = _there_and_back(p)
    arm, leg = (6 + 84 * down, 6, 8, 0), (100 * down, 10 + 8 * down, 122 * down, 0)
    return pose(48, (arm, arm), (leg, leg), lean=38 * down, nod=-20 * down)


def kick(p: float) -> np.ndarray:
    up = _there_and_back(p) ** 1.5
    late = _there_and_back(p - 0.08)
    guard = (45, 14, 95, 0)
    return pose(
        74, (guard, (20 - 40 * up, 24, 70, 0)), ((-4, 3, 8, 0), (-12 + 112 * up, 3, 70 * (1 - late), 0)), lean=-20 * up
    )


def bow(p: float) -> np.ndarray:
    down = _there_and_back(p) ** 0.7
    arm, leg = (6 + 88 * down, 5, 6, 0), (-6 * down, 3, 2, 0)
    return pose(80, (arm, arm), (leg, leg), lean=88 * down, nod=22 * down)


@dataclass(frozen=True)
class Action:
    """Pose at a time in cycles, frames in a cycle, and speed in statures a frame."""

    pose: Callable[[float], np.ndarray]
    period: float
    speed: float = 0.0


IDLE = Action(idle, 40)
ACTIONS = {
    "walk": Action(walk, 15, 0.036),
    "run": Action(run, 9, 0.11),
    "jump": Action(jump, 13),
    "jumping_jack": Action(jumping_jack, 12),
    "wave": Action(wave, 9),
    "squat": Action(squat, 16),
    "kick": Action(kick, 13),
    "bow": Action(bow, 22),
}


AT_ONCE = {"walk": "wave", "run": "wave"}
"""Actions during which another one can be done: the legs are the first's, the right arm the second's."""


@dataclass(frozen=True)
class Look:
    """Clothes and build. Colours are BGR; `pattern` is plain, stripes, band or halves; `build` widens the limbs."""

    skin: tuple
    hair: tuple
    shirt: tuple
    accent: tuple
    trousers: tuple
    shoes: tuple
    pattern: str
    head: str
    long_sleeves: bool
    long_trousers: bool
    build: float


SKIN = [(205, 222, 250), (150, 185, 232), (105, 145, 205), (70, 100, 160), (45, 65, 110)]
HAIR = [(25, 25, 30), (30, 50, 85), (60, 120, 190), (110, 190, 230), (40, 60, 160), (175, 175, 180)]


def random_looks(random: np.random.Generator, n: int) -> list[Look]:
    """Looks of `n` people who differ: hues of shirts and of trousers are spread over the circle, light and dark
    trousers alternate."""
    shirts, trousers = (random.random() + random.permutation(n) / n + random.uniform(-0.06, 0.06, n) for _ in range(2))
    dark = (random.integers(2) + random.permutation(n)) % 2 == 0
    looks = []
    for i in range(n):
        bright = random.uniform(0.8, 1.0)
        white = random.random() < 0.15
        looks.append(
            Look(
                skin=SKIN[random.integers(len(SKIN))],
                hair=HAIR[random.integers(len(HAIR))],
                shirt=bgr(shirts[i], 0.05 if white else random.uniform(0.7, 0.95), 0.95 if white else bright),
                accent=bgr(shirts[i] + random.uniform(0.3, 0.7), random.uniform(0, 0.9), random.uniform(0.15, 1)),
                trousers=bgr(trousers[i], random.uniform(0.25, 0.8), 0.28 if dark[i] else random.uniform(0.7, 0.95)),
                shoes=bgr(random.random(), random.uniform(0, 0.6), random.choice([0.15, 0.9])),
                pattern=str(random.choice(["plain", "stripes", "band", "halves"])),
                head=str(random.choice(["short", "long", "cap"])),
                long_sleeves=bool(random.random() < 0.5),
                long_trousers=bool(random.random() < 0.7),
                build=float(random.uniform(0.88, 1.3)),
            )
        )
    return looks


def _limb(angles: np.ndarray, side: int, lengths: tuple[float, float], bend: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (3,) from a limb's root to its middle joint and from there to its end: x to the person's left, y up,
    z ahead."""
    swing, spread, flex, roll = np.radians(angles)
    down = np.array([side * np.sin(spread), -np.cos(spread) * np.cos(swing), np.cos(spread) * np.sin(swing)])
    ahead = np.array([0.0, np.sin(swing), np.cos(swing)])
    out = np.array([side * np.cos(spread), np.sin(spread) * np.cos(swing), -np.sin(spread) * np.sin(swing)])
    towards = bend * np.cos(roll) * ahead + np.sin(roll) * out
    return lengths[0] * down, lengths[1] * (np.cos(flex) * down + np.sin(flex) * towards)


def skeleton(angles: np.ndarray) -> dict[str, np.ndarray]:
    """Joints (3,) in statures: x to the right of the image, y up from the floor, z towards the viewer."""
    turn, lift, lean, sway, nod = angles[:5]
    lean_r, sway_r, nod_r, turn_r = np.radians([lean, sway, lean + nod, turn])
    spine = np.array([np.sin(sway_r), np.cos(lean_r), np.sin(lean_r)])
    tilt = np.array([[1, 0, 0], [0, np.cos(lean_r), -np.sin(lean_r)], [0, np.sin(lean_r), np.cos(lean_r)]])
    joints = {"hip": np.zeros(3), "neck": 0.3 * spine}
    joints["head"] = joints["neck"] + 0.125 * np.array([np.sin(sway_r), np.cos(nod_r), np.sin(nod_r)])
    joints["face"] = joints["head"] + 0.035 * np.array([0, -np.sin(nod_r) - 0.4 * np.cos(nod_r), np.cos(nod_r)])
    for i, (name, side) in enumerate((("l", 1), ("r", -1))):
        upper, lower = _limb(angles[5 + 4 * i : 9 + 4 * i], side, (0.165, 0.16), 1)
        joints[f"shoulder_{name}"] = joints["neck"] - 0.035 * spine + side * np.array([0.105, 0, 0])
        joints[f"elbow_{name}"] = joints[f"shoulder_{name}"] + tilt @ upper
        joints[f"hand_{name}"] = joints[f"elbow_{name}"] + tilt @ lower
        upper, lower = _limb(angles[13 + 4 * i : 17 + 4 * i], side, (0.235, 0.225), -1)
        joints[f"hip_{name}"] = side * np.array([0.055, 0, 0])
        joints[f"knee_{name}"] = joints[f"hip_{name}"] + upper
        joints[f"foot_{name}"] = joints[f"knee_{name}"] + lower
        ahead = np.array([0, lower[2], -lower[1]]) / 0.225  # at a right angle to the shin
        joints[f"toe_{name}"] = joints[f"foot_{name}"] + 0.07 * ahead + np.array([side * 0.015, 0, 0])
    names, points = list(joints), np.array(list(joints.values()))
    floor = min(joints[f"{part}_{side}"][1] for part in ("foot", "toe") for side in "lr") - 0.028
    points[:, 1] += lift - floor
    x, z = points[:, 0].copy(), points[:, 2].copy()
    points[:, 0] = x * np.cos(turn_r) + z * np.sin(turn_r)
    points[:, 2] = z * np.cos(turn_r) - x * np.sin(turn_r)
    return dict(zip(names, points, strict=True))


def _hull(centres: list[np.ndarray], radii: list[float]) -> np.ndarray:
    """Outline (n, 2) of the convex hull of discs."""
    discs = np.array(centres)[:, None] + np.array(radii)[:, None, None] * _CIRCLE
    return cv2.convexHull(discs.reshape(-1, 2).astype(np.float32))[:, 0]


def _shade(colour: tuple, factor: float) -> tuple:
    return tuple(int(min(255, c * factor)) for c in colour)


def person_blobs(angles: np.ndarray, look: Look, foot: np.ndarray, stature: float) -> list[Blob]:
    """A person's blobs, farthest first, in pixels: standing on `foot` (x, y), `stature` pixels tall.

    Each limb has a dark rim, which sets it off from what lies behind it.
    """
    joints = skeleton(angles)
    at = {name: foot + stature * np.array([p[0], -p[1]]) for name, p in joints.items()}
    rim = 0.011 * stature
    wide = stature * look.build

    def part(blobs: list[tuple[list[str], list[float], tuple]], light: float = 1.0) -> list[Blob]:
        """Rims, then hulls of discs around joints: names, radii and colour of each."""
        hulls = [([at[p] for p in names], [r * wide for r in radii], _shade(c, light)) for names, radii, c in blobs]
        rims = [(_hull(points, [r + rim for r in radii]), _shade(c, 0.42)) for points, radii, c in hulls]
        return rims + [(_hull(points, radii), c) for points, radii, c in hulls]

    groups = []
    for side in "lr":
        sleeve = look.accent if look.pattern == "halves" and side == "l" else look.shirt
        arm = [
            ([f"hand_{side}"], [0.031], look.skin),
            ([f"elbow_{side}", f"hand_{side}"], [0.027, 0.021], sleeve if look.long_sleeves else look.skin),
            ([f"shoulder_{side}", f"elbow_{side}"], [0.038, 0.03], sleeve),
        ]
        leg = [
            ([f"foot_{side}", f"toe_{side}"], [0.027, 0.02], look.shoes),
            ([f"knee_{side}", f"foot_{side}"], [0.036, 0.026], look.trousers if look.long_trousers else look.skin),
            ([f"hip_{side}", f"knee_{side}"], [0.05, 0.039], look.trousers),
        ]
        for limb in (arm, leg):
            depth = sum(joints[name][2] for name in limb[1][0]) / 2
            before = 0.02 if limb is arm else -0.02 if depth < 0.12 else 0.0
            groups.append((depth + before, part(limb, 0.8 if depth < -0.03 else 1.0)))

    left, right, hip_l, hip_r = at["shoulder_l"], at["shoulder_r"], at["hip_l"], at["hip_r"]
    trunk = part([(["shoulder_l", "shoulder_r", "hip_l", "hip_r"], [0.042, 0.042, 0.048, 0.048], look.shirt)])
    edge = stature * 0.04 * look.build
    spine = (hip_l + hip_r - left - right) / 2
    across = np.array([-spine[1], spine[0]]) / (np.linalg.norm(spine) + 1e-6)

    def stripe(t: float, thick: float) -> Blob:
        sides = [a + (b - a) * t for a, b in ((left, hip_l), (right, hip_r))]
        return _hull([p + s * (edge - thick) * across for p in sides for s in (-1, 1)], [thick] * 4), look.accent

    if look.pattern == "stripes":
        trunk += [stripe(t, 0.014 * stature) for t in (0.12, 0.42, 0.72)]
    elif look.pattern == "band":
        trunk.append(stripe(0.35, 0.035 * stature))
    elif look.pattern == "halves":
        half = [left, (left + right) / 2, hip_l, (hip_l + hip_r) / 2]
        trunk.append((_hull(half, [edge, 0.1, edge, 0.1]), look.accent))
    trunk += part([(["hip_l", "hip_r"], [0.05, 0.05], look.trousers)])[1:]
    groups.append((0.0, trunk))

    head = [(["neck", "head"], [0.028, 0.028], look.skin)]
    if look.head == "long":
        head = [(["head", "neck"], [0.075, 0.06], look.hair), *head]
    head.append((["head"], [0.076], look.accent if look.head == "cap" else look.hair))
    blobs = part(head)
    top, face = at["head"], at["face"]
    ahead, facing = face - top, joints["face"][2] - joints["head"][2]
    blobs.append((_hull([face, face + ahead * 0.35], [0.056 * stature] * 2), look.skin))
    if look.head == "cap":
        crown, peak = top - [0, 0.03 * stature], top + 2.2 * ahead * [1, 0.2] - [0, 0.012 * stature]
        blobs.append((_hull([crown, peak], [0.045 * stature, 0.012 * stature]), look.accent))
    if facing > -0.01:
        spread = np.array([0.022 * facing / 0.035, 0.0]) * stature
        eyes = face + ahead * [0.8, 0] - [0, 0.006 * stature]
        blobs += [(_hull([eyes + s * spread], [0.009 * stature]), (30, 25, 25)) for s in (-1, 1)]
    groups.append((0.05, blobs))
    return [blob for _, blobs in sorted(groups, key=lambda g: g[0]) for blob in blobs]


def paint(canvas: np.ndarray, blobs: list[Blob], person: int, corner: tuple[int, int] = (0, 0)) -> None:
    """Fill blobs into a canvas whose upper left corner is `corner` (x, y): uint8 (H, W, 4), BGR and `person`, or
    (H, W), `person` alone."""
    for outline, colour in blobs:
        fixed = np.round((outline - corner) * 2**SHIFT).astype(np.int32)
        cv2.fillConvexPoly(canvas, fixed, (*colour, person) if canvas.ndim == 3 else person, shift=SHIFT)
