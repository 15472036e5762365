"""AP over the boxes of single frames as AVA and MultiSports evaluate it, for millions of boxes at a time.

A detection takes the ground truth of its frame and class that it overlaps most *of all*: where another detection of a
higher score has that one already, it is a false positive, even if it also overlaps a free one.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube, paired_iou
from utils.video_map import average_precision


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
    best, best_iou = np.full(len(pred.frames), -1), np.zeros(len(pred.frames))
    known = np.unique(gt.frames)
    frame = np.searchsorted(known, pred.frames).clip(max=len(known) - 1)
    places = np.searchsorted(known, gt.frames) * num_classes + gt.labels
    first, end = (np.searchsorted(places, frame * num_classes + pred.labels, side) for side in ("left", "right"))
    some = np.flatnonzero((end > first) & (known[frame] == pred.frames)) if len(known) else np.zeros(0, np.int64)
    if not len(some):
        return best, best_iou
    counts = (end - first)[some]
    begin = np.cumsum(counts) - counts
    row = np.repeat(np.arange(len(some)), counts)
    target = np.arange(len(row)) - begin[row] + first[some][row]
    iou = paired_iou(pred.boxes[some[row]], gt.boxes[target])
    highest = np.maximum.reduceat(iou, begin)
    is_best = np.flatnonzero(iou == highest[row])
    rows, at = np.unique(row[is_best], return_index=True)  # the first of equals
    best[some[rows]], best_iou[some] = target[is_best[at]], highest
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
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))]
    for i, video in enumerate(videos):
        for n, tube in enumerate(tubes.get(video, ())):
            if tube.label >= 0 and len(tube):
                label, of_tube = np.full(len(tube), tube.label), np.full(len(tube), tube.score)
                of_box = of_tube if scores is None else np.asarray(scores[video][n], np.float64)
                parts.append(((i << 32) + tube.frames, label, tube.boxes.astype(np.float64), of_box))
    return FrameBoxes(*(np.concatenate(column) for column in zip(*parts, strict=True)))
