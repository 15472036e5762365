"""AP over the boxes of single frames as AVA and MultiSports evaluate it, for millions of boxes at a time.

A detection takes the ground truth of its frame and class that it overlaps most *of all*: where another detection of a
higher score has that one already, it is a false positive, even if it also overlaps a free one.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube, frames_and_boxes, paired_iou
from utils.metrics.average_precision import average_precision
from utils.metrics.matching import instances_of, numbered_tubes


class FrameBoxes(NamedTuple):
    """n boxes: `frames` int64 (n,), one number for each frame of any video; `labels` int64 (n,), from 0; `boxes`
    float64 (n, 4) xyxy; `scores` float64 (n,), of ground truth any order among the boxes of a frame."""

    frames: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def where(self, keep: np.ndarray) -> "FrameBoxes":
        """The boxes that a mask or an index selects."""
        return FrameBoxes(*(column[keep] for column in self))


def frame_ap(
    pred: FrameBoxes,
    gt: FrameBoxes,
    num_classes: int,
    iou_th: Sequence[float] = (0.5,),
    most_per_frame: int | None = None,
) -> np.ndarray:
    """AP of every class: float64 (thresholds, num_classes), NaN where a class has no ground truth.

    Equal scores are ordered by frame, label and box, so that the order of rows does not matter. Boxes without area
    are not detected; as ground truth they count and are never found.

    Args:
        most_per_frame: of each frame only so many detections of the highest score count, over all classes together
            (the cap comes before boxes without area are left out).
    """
    pred = pred.where(_by_frame_and_score(pred))
    if most_per_frame is not None:
        pred = pred.where(np.arange(len(pred.frames)) - _first_of_run(pred.frames) < most_per_frame)
    pred = pred.where((pred.boxes[:, 2:] > pred.boxes[:, :2]).all(1))
    gt = gt.where(_by_frame_and_score(gt))
    gt = gt.where(np.lexsort((gt.labels, gt.frames)))
    best, iou = _nearest(pred, gt, num_classes)
    by_class = np.lexsort((-pred.scores, pred.labels))
    ends = np.searchsorted(pred.labels[by_class], np.arange(1, num_classes))
    n_gt = np.bincount(gt.labels, minlength=num_classes)
    ap = []
    for threshold in iou_th:
        correct = np.zeros(len(best), bool)
        hits = np.flatnonzero((best >= 0) & (iou >= threshold))
        correct[hits[np.unique(best[hits], return_index=True)[1]]] = True  # the highest score of each
        of_classes = np.split(correct[by_class], ends)
        ap.append([average_precision(c, int(n)) for c, n in zip(of_classes, n_gt, strict=True)])
    return np.array(ap)


def _nearest(pred: FrameBoxes, gt: FrameBoxes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The ground truth of its frame and class that each detection overlaps most, int64 (n,), -1 without any, and their
    IoU (n,); `gt` by rising frame and label."""
    frames = np.unique(gt.frames)
    at = np.searchsorted(frames, pred.frames)
    group = np.where(np.append(frames, -1)[at] == pred.frames, at * num_classes + pred.labels, -1)
    gt_group = np.searchsorted(frames, gt.frames) * num_classes + gt.labels
    first, end = (np.searchsorted(gt_group, group, side) for side in ("left", "right"))
    row = np.repeat(np.arange(len(group)), end - first)  # every pair of one frame and class
    target = np.arange(len(row)) - np.repeat((end - first).cumsum() - end, end - first)
    iou = paired_iou(pred.boxes[row], gt.boxes[target])
    order = np.lexsort((-target, iou))  # the last one written is the best, the first of equals
    best, best_iou = np.full(len(group), -1), np.zeros(len(group))
    best[row[order]], best_iou[row[order]] = target[order], iou[order]
    return best, best_iou


def _by_frame_and_score(boxes: FrameBoxes) -> np.ndarray:
    """An order by frame, then falling score, then content."""
    order = np.lexsort((-boxes.scores, boxes.frames))
    same = (np.diff(boxes.frames[order]) == 0) & (np.diff(boxes.scores[order]) == 0)
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))  # whole runs of equal keys
    rows = order[tied]
    columns = (*boxes.boxes[rows].T[::-1], boxes.labels[rows], -boxes.scores[rows], boxes.frames[rows])
    order[tied] = rows[np.lexsort(columns)]
    return order


def _first_of_run(values: np.ndarray) -> np.ndarray:
    """The index at which each element's run of equal values begins."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return np.repeat(starts, np.diff(np.append(starts, len(values))))


def boxes_of_tubes(
    tubes: Mapping[str, Sequence[Tube]],
    videos: Sequence[str],
    scores: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> FrameBoxes:
    """The boxes of all tubes that have a label.

    Args:
        videos: numbers the frames: those of the i-th of them are i * 2**32 + frame.
        scores: of every box of every tube; None: its tube's.
    """
    rows = instances_of(tubes, videos, boxes=True, frame_scores=scores)
    _, boxes = frames_and_boxes([tube for *_, tube in numbered_tubes(tubes, videos)])
    every = FrameBoxes((rows.video << 32) + rows.frame, rows.label, boxes.astype(np.float64), rows.score)
    return every.where(rows.label >= 0)
