"""Transforms of frames and boxes before the detector: resizing, normalisation, colour jitter, erasing of people."""

from collections.abc import Sequence

import cv2
import numpy as np

from utils.box_ops import paired_iou

GREY = np.array([0.299, 0.587, 0.114])  # luma of R, G, B (BT.601)
_YIQ = np.array([GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_YIQ)


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the longer side `size` and the shorter one in proportion, rounded, at least 1."""
    scale = size / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def resize(frame: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) with its longer side `size`: area average when shrinking, bilinear when growing."""
    return resize_to(frame, *resized_shape(*frame.shape[:2], size))


def resize_to(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (height, width, 3), as `resize`."""
    if (height, width) == frame.shape[:2]:
        return frame
    shrinks = max(height, width) < max(frame.shape[:2])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def normalise_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """xyxy pixels (..., 4) -> cxcywh divided by the frame's size: unchanged by resizing and by padding."""
    corners = boxes.astype(np.float64) / (width, height, width, height)
    low, high = corners[..., :2], corners[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1).astype(np.float32)


def jitter_matrix(rng: np.random.Generator, mean_grey: float, strength: Sequence[float]) -> np.ndarray:
    """Draw a colour jitter as one affine map of RGB, (3, 4) float64.

    Brightness, contrast about `mean_grey`, saturation and hue are drawn as by torchvision's ColorJitter, of which
    `strength` has the four arguments. The first three are linear in RGB. Hue is rotated about the grey axis of YIQ,
    which keeps the luma, instead of in HSV, so that all four cost one multiplication a pixel.
    """
    brightness, contrast, saturation = (rng.uniform(max(1 - s, 0), 1 + s) for s in strength[:3])
    angle = 2 * np.pi * rng.uniform(-strength[3], strength[3])
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    hue = _FROM_YIQ @ rotation @ _YIQ
    colour = saturation * np.eye(3) + (1 - saturation) * GREY  # one row an output channel
    matrix = hue @ colour * (brightness * contrast)
    offset = (hue @ colour).sum(1) * (1 - contrast) * brightness * mean_grey
    return np.column_stack([matrix, offset])


def choose_erased(boxes: np.ndarray, draw: np.random.Generator) -> int:
    """Choose who is painted over in a frame, at random among the people who overlap nobody.

    Returns the row of `boxes`, (n, 4) xyxy; -1 where the frame shows fewer than two people, or all overlap.
    """
    apart = np.flatnonzero((paired_iou(boxes[:, None], boxes[None]) > 0).sum(1) == 1)
    return int(draw.choice(apart)) if len(boxes) > 1 and len(apart) else -1


def erase(image: np.ndarray, box: np.ndarray) -> None:
    """Paint over a box, xyxy pixels, of an image, uint8 (H, W, 3), and a margin around it, in place.

    Each row runs evenly from the colour to the left of it to that to its right.
    """
    height, width = image.shape[:2]
    margin = max(height, width) // 80
    corners = np.stack([np.floor(box[:2]) - margin, np.ceil(box[2:]) + margin]).astype(int)
    (x0, y0), (x1, y1) = corners.clip(0, (width, height))
    left, right = (image[y0:y1, x].astype(np.float32)[:, None] for x in (max(x0 - 1, 0), min(x1, width - 1)))
    if x0 == 0:
        left = right
    if x1 == width:
        right = left
    share = np.linspace(0, 1, x1 - x0, dtype=np.float32)[:, None]
    image[y0:y1, x0:x1] = left + share * (right - left)


def erase_in_clip(images: np.ndarray, boxes: np.ndarray, counts: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Paint over one of several people (`choose_erased`) in half of a clip's images, at random, in place.

    `images` uint8 (T, H, W, 3); `boxes` (n, 4) xyxy pixels, one image's after another's; `counts` (T,), those of each.
    Returns whether each box still shows somebody: bool (n,).
    """
    shown, end = np.ones(len(boxes), bool), np.cumsum(counts)
    for t in np.flatnonzero(draw.random(len(images)) < 0.5).tolist():
        first = end[t] - counts[t]
        row = choose_erased(boxes[first : end[t]], draw)
        if row >= 0:
            erase(images[t], boxes[first + row])
            shown[first + row] = False
    return shown
