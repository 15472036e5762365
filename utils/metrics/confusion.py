"""Which class is taken for which, and for "no action", by tubes and by frames."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from utils.box_ops import Tube
from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.evaluation import Evaluation
from utils.video_map import Candidates, frame_candidates, match, tube_candidates

FRAME_IOU = 0.5
NO_ACTION = "no action"


def confusion(e: Evaluation) -> dict:
    """Confusion matrices of tubes at every threshold, and of frames at IoU 0.5.

    By falling score, whatever its class, a detection takes the free ground truth of its video (frame) that it overlaps
    most, if by the threshold. "no action" is the row of people without an action and of detections that overlap nobody,
    and the column of ground truth that nothing was matched to. Further detections of a ground truth are not counted.

    Returns:
        "tubes@T", "frames" -> "labels", the classes' names and "no action"; "counts", rows of the ground truth's class,
        columns of the detection's.
    """
    protocol = e.protocol if e.protocol in PROTOCOLS else "voc"
    alike = [{name: [replace(t, label=0) for t in tubes] for name, tubes in side.items()} for side in (e.pred, e.gt)]
    matrices = {}
    for threshold in e.thresholds:
        (c,) = tube_candidates(*alike, 1, threshold, protocol)
        matrices[f"tubes@{threshold:g}"] = _matrix(c, threshold, e, boxes=False)
    (c,) = frame_candidates(*alike, 1, FRAME_IOU, protocol, e.frame_scores)
    return matrices | {"frames": _matrix(c, FRAME_IOU, e, boxes=True)}


def _matrix(c: Candidates, threshold: float, e: Evaluation, boxes: bool) -> dict:
    n = len(e.labels)
    names = sorted({*e.pred, *e.gt})
    pred = _labels(e.pred, names, c.video, c.row, boxes)
    gt = _labels(e.gt, names, c.gt_video, c.gt_row, boxes)
    gt = np.where(gt < 0, n, gt)
    matched = match(c, threshold)
    hit, free = matched >= 0, np.ones(len(gt), bool)
    free[matched[hit]] = False
    alone = np.ones(len(pred), bool)
    alone[c.pred[c.iou >= threshold]] = False
    counts = np.zeros((n + 1, n + 1), np.int64)
    np.add.at(counts, (gt[matched[hit]], pred[hit]), 1)
    np.add.at(counts, (gt[free], n), 1)
    np.add.at(counts, (n, pred[alone]), 1)
    counts[n, n] = 0  # people without an action of whom nothing was said
    return {"labels": [*e.labels, NO_ACTION], "counts": counts.tolist()}


def _labels(
    tubes_of: dict[str, list[Tube]], names: Sequence[str], video: np.ndarray, row: np.ndarray, boxes: bool
) -> np.ndarray:
    """The labels of tubes, or of the boxes of a video's tubes one after another, by video and row."""
    parts = []
    for name in names:
        tubes = tubes_of.get(name, ())
        labels = np.array([tube.label for tube in tubes], np.int64)
        parts.append(np.repeat(labels, [len(tube) for tube in tubes]) if boxes else labels)
    first = np.append(0, np.cumsum([len(part) for part in parts]))
    return np.concatenate([np.zeros(0, np.int64), *parts])[first[video] + row]
