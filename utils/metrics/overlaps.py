"""Overlaps of the tubes of one video, and the checks that all metrics begin with."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube, Tubes, frames_and_boxes, paired_iou
from utils.misc import InputError


class Boxes(NamedTuple):
    """The R boxes of several tubes of one video, by rising frame.

    frames: int64 (R,); boxes: float64 (R, 4) xyxy; tube: int64 (R,), index of a box's tube.
    """

    frames: np.ndarray
    boxes: np.ndarray
    tube: np.ndarray


def stack(tubes: Sequence[Tube], inclusive: bool = False) -> Boxes:
    """The boxes of all tubes; see `edges` for `inclusive`. Boxes of one frame are in the order of their tubes."""
    frames, boxes = frames_and_boxes(tubes)
    tube = np.repeat(np.arange(len(tubes)), [len(tube) for tube in tubes])
    order = np.argsort(frames, kind="stable")
    return Boxes(frames[order], edges(boxes[order], inclusive), tube[order])


def edges(boxes: np.ndarray, inclusive: bool) -> np.ndarray:
    """Boxes (R, 4) xyxy as float64. With `inclusive`, x1 and y1 are the last pixels: the edges are 1 further."""
    return boxes + np.array([0.0, 0, inclusive, inclusive])


def overlaps_with(
    boxes: Boxes, tube: Tube, inclusive: bool = False
) -> tuple[slice, np.ndarray, np.ndarray, np.ndarray]:
    """The boxes within a tube's first and last frame, and each one's IoU with the tube's box of the same frame.

    Returns:
        The k boxes as a slice of `boxes`; whether the tube has a box in the frame of each, bool (k,), and which, int64
        (k,); the IoU, float64 (k,), 0 where it has none.
    """
    begin = np.searchsorted(boxes.frames, np.append(tube.frames, tube.frames[-1] + 1))
    within = slice(begin[0], begin[-1])
    row = np.repeat(np.arange(len(tube)), np.diff(begin))  # a frame in the tube's gap has the row before it
    both = tube.frames[row] == boxes.frames[within]
    iou = paired_iou(boxes.boxes[within], edges(tube.boxes, inclusive)[row])
    return within, both, row, np.where(both, iou, 0.0)


def tube_ious(
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    label_centric: bool = False,
    frame_iou: float | None = None,
    inclusive: bool = False,
    spans: bool = False,
) -> np.ndarray:
    """The 3D IoU of every pair of tubes, as `utils.box_ops.tube_iou` defines it, but for all pairs at once.

    Args:
        pred, gt: tubes of one video, none empty.
        label_centric: only frames of the ground truth count.
        frame_iou: a frame's IoU above it counts as 1.
        inclusive: see `edges`.
        spans: as MultiSports, the mean IoU of the frames that both have times the overlap of the spans from first to
            last frame, neither of which counts its last frame: two tubes of one frame do not overlap.

    Returns:
        float64 (len(pred), len(gt)).
    """
    boxes = stack(pred, inclusive)
    lengths = np.array([len(tube) for tube in pred], np.int64)
    first, last = (np.array([tube.frames[end] for tube in pred], np.int64) for end in (0, -1))
    ious = np.zeros((len(pred), len(gt)))
    for j, tube in enumerate(gt):
        within, both, _, iou = overlaps_with(boxes, tube, inclusive)
        if frame_iou is not None:
            iou = np.where(iou > frame_iou, 1.0, iou)
        owner = boxes.tube[within]
        common = np.bincount(owner, both, minlength=len(pred))
        if spans:
            mean = np.bincount(owner, iou, minlength=len(pred)) / np.maximum(common, 1)
            ious[:, j] = mean * span_overlap(first, last, tube.frames[0], tube.frames[-1])
            continue
        frames = len(tube) if label_centric else lengths + len(tube) - common
        ious[:, j] = np.bincount(owner, iou, minlength=len(pred)) / frames
    return ious


def span_overlap(first: np.ndarray, last: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Intersection / hull of the spans [first, last] and [begin, end] that broadcast, 0 where the hull is one frame."""
    hull = np.maximum(last, end) - np.minimum(first, begin)
    return np.maximum(np.minimum(last, end) - np.maximum(first, begin), 0) / np.maximum(hull, 1)


def by_content(tube: Tube) -> tuple:
    """A key to sort a video's tubes by that does not depend on the order in which they were given."""
    return int(tube.frames[0]), len(tube), tube.frames.tobytes(), tube.boxes.tobytes(), tube.label


def check_tubes(pred: Tubes, gt: Tubes, num_classes: int | None = None) -> None:
    """InputError, naming the video, where a score or a box is not finite or (with `num_classes`) a label not known;
    ground truth may have label -1."""
    every = [(video, tube, 0) for video, of_video in pred.items() for tube in of_video]
    every += [(video, tube, -1) for video, of_video in gt.items() for tube in of_video]
    for video, tube, lowest_label in every:
        if not np.isfinite(tube.boxes).all():
            frame = tube.frames[np.isfinite(tube.boxes).all(1).argmin()]
            raise InputError(f"video {video!r}: the box in frame {frame} is not finite; leave such boxes out")
        if not math.isfinite(tube.score):
            raise InputError(f"video {video!r}: a tube's score is {tube.score}; scores must be finite")
        if num_classes is not None and not lowest_label <= tube.label < num_classes:
            raise InputError(f"video {video!r}: a tube has label {tube.label}; there are {num_classes} classes, from 0")


def check_thresholds(thresholds: float | Sequence[float]) -> list[float]:
    """One IoU threshold or several as a list; InputError where one is not in (0, 1], or where none is given."""
    values = np.atleast_1d(np.asarray(thresholds, np.float64)).tolist()
    bad = [value for value in values if not 0 < value <= 1]
    if bad or not values:
        raise InputError(f"IoU threshold {bad[0] if bad else values}: give values above 0 and up to 1")
    return values
