"""Which class is taken for which, and for "no action", by tubes and by frames."""

from collections.abc import Sequence

import numpy as np

from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.evaluation import Evaluation
from utils.metrics.matching import Candidates, candidates, match

FRAME_IOU = 0.5
NO_ACTION = "no action"


def confusion(e: Evaluation) -> dict:
    """Confusion matrices of tubes at every threshold, and of frames at IoU 0.5.

    By falling score, whatever its class, a detection takes the free ground truth of its video (frame) that it overlaps
    most, if by the threshold; of equals that of its own class, then of the lower label. "no action" is
    the row of people without an action and of detections that overlap nobody, and the column of ground truth that
    nothing was matched to. Further detections of a ground truth are not counted.

    Returns:
        "tubes@T", "frames" -> "labels", the classes' names and "no action"; "counts", rows of the ground truth's class,
        columns of the detection's.
    """
    protocol = e.protocol if e.protocol in PROTOCOLS else "voc"
    of_tubes, of_boxes = (
        candidates(e.pred, e.gt, len(e.labels), min_iou, protocol, boxes, any_class=True)
        for min_iou, boxes in ((min(e.thresholds), False), (FRAME_IOU, True))
    )
    matrices = {f"tubes@{threshold:g}": _matrix(of_tubes, threshold, e.labels) for threshold in e.thresholds}
    return matrices | {"frames": _matrix(of_boxes, FRAME_IOU, e.labels)}


def _matrix(c: Candidates, threshold: float, labels: Sequence[str]) -> dict:
    c = c.with_pairs(c.iou >= threshold)
    n = len(labels)
    gt_label = np.where(c.gt.label < 0, n, c.gt.label)
    matched = match(c, threshold)
    hit, free, alone = matched >= 0, np.ones(len(gt_label), bool), np.ones(len(matched), bool)
    free[matched[hit]] = False
    alone[c.i] = False
    counts = np.zeros((n + 1, n + 1), np.int64)
    np.add.at(counts, (gt_label[matched[hit]], c.pred.label[hit]), 1)
    np.add.at(counts, (gt_label[free], n), 1)
    np.add.at(counts, (n, c.pred.label[alone]), 1)
    counts[n, n] = 0  # people without an action of whom nothing was said
    return {"labels": [*labels, NO_ACTION], "counts": counts.tolist()}
