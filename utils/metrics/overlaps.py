"""Overlaps of the tubes of one video, and the checks that all metrics begin with."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from utils.box_ops import Tube, Tubes, equal_pairs, frames_and_boxes, paired_iou
from utils.misc import InputError

BLOCK = 2**10  # boxes that are compared with ground truth at a time


def edges(boxes: np.ndarray, inclusive: bool) -> np.ndarray:
    """Boxes (R, 4) xyxy as float64. With `inclusive`, x1 and y1 are the last pixels: the edges are 1 further."""
    return boxes + np.array([0.0, 0, inclusive, inclusive])


def box_overlaps(
    keys: np.ndarray, boxes: np.ndarray, gt_keys: np.ndarray, gt_boxes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every pair of boxes of one key, such as a frame, some at a time.

    Args:
        keys, gt_keys: int64 (n,) and (m,).
        boxes, gt_boxes: float (n, 4) and (m, 4), xyxy.

    Yields:
        The numbers of both boxes, int64 (k,) each, and their IoU, float64 (k,); by rising number of the first.
    """
    order = np.argsort(gt_keys, kind="stable")
    gt_keys = gt_keys[order]
    for begin in range(0, len(keys), BLOCK):
        i, j = equal_pairs(keys[begin : begin + BLOCK], gt_keys)
        i, j = i + begin, order[j]
        yield i, j, paired_iou(boxes.take(i, 0), gt_boxes.take(j, 0))


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
    (frames, boxes), (gt_frames, gt_boxes) = frames_and_boxes(pred), frames_and_boxes(gt)
    lengths, gt_lengths = (np.array([len(tube) for tube in tubes], np.int64) for tubes in (pred, gt))
    owner, gt_owner = np.arange(len(pred)).repeat(lengths), np.arange(len(gt)).repeat(gt_lengths)
    total, common = np.zeros((2, len(pred) * len(gt)))
    for i, j, iou in box_overlaps(frames, edges(boxes, inclusive), gt_frames, edges(gt_boxes, inclusive)):
        if frame_iou is not None:
            iou = np.where(iou > frame_iou, 1.0, iou)
        pair = owner[i] * len(gt) + gt_owner[j]
        np.add.at(total, pair, iou)
        np.add.at(common, pair, 1)
    total, common = (sums.reshape(len(pred), len(gt)) for sums in (total, common))
    if not spans:
        return total / (gt_lengths if label_centric else lengths[:, None] + gt_lengths - common)
    (first, last), (begin, end) = (
        np.array([tube.frames[[0, -1]] for tube in tubes], np.int64).reshape(-1, 2).T for tubes in (pred, gt)
    )
    return total / np.maximum(common, 1) * span_overlap(first[:, None], last[:, None], begin, end)


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
        if tube.frame_scores is not None and not np.isfinite(tube.frame_scores).all():
            raise InputError(f"frame_scores of video {video!r}: a score is not finite")
        if num_classes is not None and not lowest_label <= tube.label < num_classes:
            raise InputError(f"video {video!r}: a tube has label {tube.label}; there are {num_classes} classes, from 0")


def check_thresholds(thresholds: float | Sequence[float]) -> list[float]:
    """One IoU threshold or several as a list; InputError where one is not in (0, 1], or where none is given."""
    values = np.atleast_1d(np.asarray(thresholds, np.float64)).tolist()
    bad = [value for value in values if not 0 < value <= 1]
    if bad or not values:
        raise InputError(f"IoU threshold {bad[0] if bad else values}: give values above 0 and up to 1")
    return values
