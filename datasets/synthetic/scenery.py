"""Backgrounds of the synthetic data set: streets, parks, rooms and fields."""

import cv2
import numpy as np

FLOOR = 0.62  # where the floor begins, in image heights from the top
MARGIN = 0.4  # how far a background reaches beyond the image on each side, in image heights


def bgr(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """The colour of a hue in turns, the others from 0 to 1."""
    colour = np.uint8([[[hue % 1 * 179, saturation * 255, value * 255]]])
    return tuple(cv2.cvtColor(colour, cv2.COLOR_HSV2BGR)[0, 0].tolist())


def _tone(random: np.random.Generator, *ranges: tuple[float, float]) -> np.ndarray:
    """A random colour, float32 (3,), its hue, saturation and value (`bgr`) from these ranges."""
    return np.float32(bgr(*(random.uniform(*limits) for limits in ranges)))


def _grain(random: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise float32 (H, W, 1) around 0 with lumps of `cell` (height, width) pixels."""
    coarse = [max(2, round(n / max(c, 1))) for n, c in zip(shape, cell, strict=True)]
    noise = random.standard_normal(coarse, np.float32)
    return cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)[..., None]


def _gradient(top: np.ndarray, low: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    t = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    return np.broadcast_to(top * (1 - t) + low * t, (*shape, 3)).copy()


def _bricks(random: np.random.Generator, wall: np.ndarray, unit: float) -> None:
    base, rows, columns = wall[0, 0] * 0.95, int(np.ceil(len(wall) / unit)), int(np.ceil(wall.shape[1] / unit / 2)) + 1
    wall[:] = wall * 0.75
    shades = random.uniform(0.85, 1.1, (rows, columns)).astype(np.float32)
    for r in range(rows):
        for c in range(columns):
            x, y = (2 * c - r % 2) * unit, r * unit
            a, b = (int(x), int(y)), (int(x + 1.86 * unit), int(y + 0.86 * unit))
            cv2.rectangle(wall, a, b, (base * shades[r, c]).tolist(), -1)


def _windows(random: np.random.Generator, wall: np.ndarray, unit: float) -> None:
    glass, frame = _tone(random, (0.5, 0.62), (0.1, 0.35), (0.55, 0.95)), _tone(random, (0, 1), (0, 0.2), (0.3, 0.9))
    high, wide, step = unit * random.uniform(4, 6), unit * random.uniform(3, 4.5), unit * random.uniform(7, 10)
    for x in np.arange(random.uniform(0, step), wall.shape[1], step):
        y = len(wall) * 0.38
        a, b = (int(x), int(y)), (int(x + wide), int(y + high))
        cv2.rectangle(wall, a, b, glass.tolist(), -1)
        cv2.rectangle(wall, a, b, frame.tolist(), max(1, int(unit / 4)))
        cv2.line(wall, (int(x + wide / 2), a[1]), (int(x + wide / 2), b[1]), frame.tolist(), max(1, int(unit / 5)))


def _trees(random: np.random.Generator, sky: np.ndarray, unit: float) -> None:
    for x in np.arange(0, sky.shape[1], unit * random.uniform(4, 7)) + random.uniform(0, 4 * unit):
        foot, high = len(sky), unit * random.uniform(5, 9)
        cv2.line(sky, (int(x), foot), (int(x), int(foot - high)), (38, 55, 75), max(1, int(unit * 0.5)))
        for _ in range(7):
            spot = (int(x + random.normal(0, unit)), int(foot - high + random.normal(0, unit * 0.8)))
            leaf = _tone(random, (0.22, 0.36), (0.35, 0.6), (0.3, 0.55))
            cv2.circle(sky, spot, int(unit * random.uniform(0.8, 1.6)), leaf.tolist(), -1, cv2.LINE_AA)


def _hills(random: np.random.Generator, sky: np.ndarray, unit: float) -> None:
    x = np.arange(sky.shape[1])
    for far in (2, 1):
        phase, bumps = random.uniform(0, 6, 2), random.uniform(0.002, 0.012, 2) * 20 / unit
        crest = len(sky) - unit * (
            far * 2.5 + 1.2 * np.sin(x * bumps[0] + phase[0]) + 0.7 * np.sin(x * bumps[1] * 2 + phase[1])
        )
        outline = np.concatenate([np.stack([x, crest], 1), [[x[-1], len(sky)], [0, len(sky)]]]).astype(np.int32)
        cv2.fillPoly(sky, [outline], _tone(random, (0.25, 0.45), (0.15, 0.35), (0.45, 0.7)).tolist(), cv2.LINE_AA)


def _posts(random: np.random.Generator, image: np.ndarray, horizon: int, unit: float) -> None:
    colour = _tone(random, (0, 1), (0, 0.3), (0.3, 0.85)).tolist()
    low, high = horizon + int(unit * 0.6), horizon - int(unit * random.uniform(2, 3.5))
    thick = max(1, int(unit * 0.35))
    for x in np.arange(random.uniform(0, 4 * unit), image.shape[1], unit * random.uniform(3, 6)):
        cv2.line(image, (int(x), low), (int(x), high), colour, thick, cv2.LINE_AA)
    for y in (high + unit * 0.4, (high + low) / 2):
        cv2.line(image, (0, int(y)), (image.shape[1], int(y)), colour, max(1, thick // 2), cv2.LINE_AA)


def background(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A random background for images of `width` x `height`.

    Returns:
        uint8 (H, W, 3) BGR, 1.25 pixels an image pixel, `MARGIN` image heights larger on each side.
    """
    scale = 1.25 * height
    shape = (round((1 + 2 * MARGIN) * scale), round((width / height + 2 * MARGIN) * scale))
    horizon, unit = round((MARGIN + FLOOR) * scale), scale / 28
    kind = random.choice(["street", "park", "room", "field"])
    image = np.empty((*shape, 3), np.float32)
    above, floor = image[:horizon], image[horizon:]
    if kind in ("street", "room"):
        tone = _tone(random, (0, 1), (0.05, 0.3), (0.5, 0.85))
        above[:] = _gradient(tone, tone, above.shape[:2])
        if kind == "street" or random.random() < 0.4:
            _bricks(random, above, unit)
        _windows(random, above, unit)
        above += 3 * _grain(random, above.shape[:2], (unit, unit))
        tone = _tone(random, (0.04, 0.14), (0.05, 0.4), (0.35, 0.75))
        floor[:] = _gradient(0.8 * tone, tone, floor.shape[:2])
        floor += 5 * _grain(random, floor.shape[:2], (unit / 4, 8 * unit) if kind == "room" else (unit / 6, unit / 6))
        lines = np.geomspace(1, len(floor) / unit + 1, 8) * unit - unit
        for y in lines:
            cv2.line(floor, (0, int(y)), (shape[1], int(y)), (0.75 * tone).tolist(), max(1, int(unit / 8)), cv2.LINE_AA)
        if kind == "room":
            cv2.rectangle(above, (0, int(horizon - 0.7 * unit)), (shape[1], horizon), (0.6 * tone).tolist(), -1)
    else:
        sky = _tone(random, (0.53, 0.62), (0.2, 0.5), (0.75, 0.95))
        above[:] = _gradient(sky, 0.4 * sky + 145, above.shape[:2])
        above += 6 * np.maximum(_grain(random, above.shape[:2], (4 * unit, 9 * unit)), 0)
        (_trees if kind == "park" else _hills)(random, above, unit)
        green = _tone(random, (0.14, 0.36), (0.3, 0.55), (0.4, 0.7))
        floor[:] = _gradient(0.8 * green, green, floor.shape[:2])
        floor += 9 * _grain(random, floor.shape[:2], (unit / 3, unit / 6)) + 7 * _grain(
            random, floor.shape[:2], (unit, 5 * unit)
        )
    if random.random() < 0.4:
        _posts(random, image, horizon, unit)
    return np.clip(image, 0, 255).astype(np.uint8)
