"""AP over the boxes of single frames as AVA and MultiSports evaluate it, for millions of boxes at a time.

A detection takes the ground truth of its frame and class that it overlaps most *of all*: where another detection of a
higher score has that one already, it is a false positive, even if it also overlaps a free one.
"""

from collections.abc import Sequence

import numpy as np

from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.matching import Instances, box_pairs, ranked_candidates
from utils.video_map import ap_of_rankings, rankings_at

PROTOCOL = "multisports"  # whose rule of matching and area under the curve AVA has too


def frame_ap(
    pred: Instances,
    gt: Instances,
    videos: Sequence[str],
    num_classes: int,
    iou_th: Sequence[float],
    max_per_frame: int | None = None,
) -> np.ndarray:
    """AP of every class: float64 (thresholds, num_classes), NaN where a class has no ground truth.

    Equal scores are ordered by frame, label and box, so that the order of rows does not matter. Ground truth without
    area counts and is never found.

    Args:
        pred, gt: boxes; `frame` rises with `video`.
        max_per_frame: AVA's rule: of each frame only so many detections of the highest score count, over all classes
            together; of these, boxes without area are left out. Else such boxes are false positives.
    """
    pred, gt = (boxes.where(_by_frame_and_score(boxes)) for boxes in (pred, gt))
    if max_per_frame is not None:
        pred = pred.where(np.arange(len(pred.frame)) - np.searchsorted(pred.frame, pred.frame) < max_per_frame)
        pred = pred.where((pred.boxes[:, 2:] > pred.boxes[:, :2]).all(1))
    pairs, order = box_pairs(pred, gt, min(iou_th)), np.arange(len(pred.frame))
    c = ranked_candidates(videos, num_classes, PROTOCOLS[PROTOCOL], pred, gt, pairs, order)
    return ap_of_rankings(rankings_at(c, iou_th), PROTOCOL)


def _by_frame_and_score(boxes: Instances) -> np.ndarray:
    """An order by frame, then falling score, then content."""
    order = np.lexsort((-boxes.score, boxes.frame))
    same = (np.diff(boxes.frame[order]) == 0) & (np.diff(boxes.score[order]) == 0)
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))  # whole runs of equal keys
    rows = order[tied]
    columns = (*boxes.boxes[rows].T[::-1], boxes.label[rows], -boxes.score[rows], boxes.frame[rows])
    order[tied] = rows[np.lexsort(columns)]
    return order
