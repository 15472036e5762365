"""Average precision (AP) of action tubes: v-mAP, motion-AP and frame-mAP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tubes, motion_category
from utils.metrics.average_precision import average_precision
from utils.metrics.matching import Candidates, candidates, matching, nearest
from utils.metrics.overlaps import check_thresholds
from utils.metrics.published import published_motion_ap, published_video_map


class Ranking(NamedTuple):
    """What AP is computed from: one class's n detections by falling score at one threshold.

    correct: bool (n,). video: int64 (n,), the index of each one's video among the V videos' sorted names; n_gt: int64
    (V,), the ground truths of each video.
    """

    correct: np.ndarray
    video: np.ndarray
    n_gt: np.ndarray


def calc_video_map(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    tiou_th: float | Sequence[float] = 0.2,
    protocol: str = "voc",
    count_duplicates: bool = False,
) -> np.ndarray:
    """AP of every class over action tubes; their mean is v-mAP.

    Args:
        pred, gt: ground truth with label -1 (a person without an action) is ignored; a detection in a video without
            ground truth is a false positive.
        num_classes: labels are 0 to `num_classes` - 1.
        tiou_th: 3D IoU threshold, or several.
        protocol: one of `PROTOCOLS`, or "published" (`utils.metrics.published`): the method's own evaluation.
        count_duplicates: as in the method's published evaluation, a second detection of a ground truth is correct
            again; AP may then exceed 1.

    Returns:
        float64 (num_classes,), or (n, num_classes) for n thresholds. NaN where a class has no ground truth: such
        classes are left out of the mean (`mean_ap`).

    Raises:
        InputError: a label out of range, a score or box that is not finite, a threshold outside (0, 1], or an unknown
            protocol.
    """
    thresholds = check_thresholds(tiou_th)
    if protocol == "published":
        ap = np.stack([published_video_map(pred, gt, num_classes, threshold) for threshold in thresholds])
    else:
        rankings = video_rankings(pred, gt, num_classes, thresholds, protocol, count_duplicates)
        ap = ap_of_rankings(rankings, protocol)
    return ap if np.ndim(tiou_th) else ap[0]


def calc_motion_ap(
    pred: Tubes, gt: Tubes, num_classes: int, tiou_th: float | Sequence[float] = 0.2, protocol: str = "voc"
) -> dict[str, np.ndarray]:
    """AP of every class by the motion category of the ground truth (`utils.box_ops.motion_category`).

    Detections are matched once, as for v-mAP. In a category the ground truth of the other two is set aside, and so are
    the detections of it: those matched to it, and further ones whose highest IoU, at or above the threshold, is with it
    (as COCO does for object areas). Detections that overlap nothing are false positives in all three.

    Returns:
        "small", "medium" and "large" -> array as from `calc_video_map`, whose arguments and errors these are; with
        `protocol="published"` that of one class, since all are pooled.
    """
    thresholds = check_thresholds(tiou_th)
    if protocol == "published":
        pooled = [published_motion_ap(pred, gt, num_classes, threshold) for threshold in thresholds]
        by_category = {category: np.array([[ap[category]] for ap in pooled]) for category in MOTION_CATEGORIES}
    else:
        rankings = motion_rankings(pred, gt, num_classes, thresholds, protocol)
        by_category = {category: ap_of_rankings(rows, protocol) for category, rows in rankings.items()}
    return {category: ap if np.ndim(tiou_th) else ap[0] for category, ap in by_category.items()}


def calc_frame_map(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    iou_th: float | Sequence[float] = 0.5,
    protocol: str = "voc",
    frame_scores: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> np.ndarray:
    """AP of every class over the boxes of single frames; their mean is frame-mAP.

    A box in a frame without ground truth of its class is a false positive.

    Args:
        frame_scores: `frame_scores[video][i]` takes the place of those of `pred[video][i]`.

    Returns:
        As `calc_video_map`, whose other arguments and errors these are.

    Raises:
        ValueError: `frame_scores` does not fit the boxes.
    """
    thresholds = check_thresholds(iou_th)
    if frame_scores is not None:
        pred = {
            video: [replace(tube, frame_scores=s) for tube, s in zip(tubes, frame_scores[video], strict=True)]
            for video, tubes in pred.items()
        }
    c = candidates(pred, gt, num_classes, min(thresholds), protocol, boxes=True)
    ap = ap_of_rankings(rankings_at(c, thresholds), protocol)
    return ap if np.ndim(iou_th) else ap[0]


def mean_ap(ap: np.ndarray) -> float | np.ndarray:
    """The mean over the classes that have ground truth, NaN where none has; `ap` (num_classes,).

    Of many sets of classes at once: `ap` (num_classes, B) -> float64 (B,).
    """
    known = ~np.isnan(ap)
    with np.errstate(invalid="ignore"):
        return np.where(known, ap, 0).sum(0) / known.sum(0)


def video_rankings(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    thresholds: Sequence[float],
    protocol: str = "voc",
    count_duplicates: bool = False,
) -> list[list[Ranking]]:
    """For each threshold the ranking of each class that `calc_video_map` takes AP from; arguments are its."""
    c = candidates(pred, gt, num_classes, min(thresholds), protocol)
    return rankings_at(c, thresholds, nearest if count_duplicates else matching)


def motion_rankings(
    pred: Tubes, gt: Tubes, num_classes: int, thresholds: Sequence[float], protocol: str = "voc"
) -> dict[str, list[list[Ranking]]]:
    """By category, for each threshold the ranking of each class that `calc_motion_ap` takes AP from."""
    c = candidates(pred, gt, num_classes, min(thresholds), protocol)
    of_gt = [motion_category(t.tube) if t.tube.label >= 0 else "" for t in c.gt.tubes]
    motion = np.array([*of_gt, ""])  # the last is that of index -1, no ground truth
    rankings: dict[str, list] = {category: [] for category in MOTION_CATEGORIES}
    for threshold in thresholds:
        matched = matching(c, threshold)
        of_pred = motion[np.where(matched >= 0, matched, nearest(c, threshold))]
        for category in MOTION_CATEGORIES:
            counted = (of_pred == category) | (of_pred == "")
            rankings[category].append(by_class(c, matched >= 0, counted, motion[:-1] == category))
    return rankings


def rankings_at(c: Candidates, thresholds: Sequence[float], choose: Callable = matching) -> list[list[Ranking]]:
    """For each threshold the ranking of each class, matched by `choose`, one of `utils.metrics.matching`."""
    return [by_class(c, choose(c, threshold) >= 0) for threshold in thresholds]


def by_class(
    c: Candidates,
    correct: np.ndarray,
    counted: np.ndarray | None = None,
    counted_gt: np.ndarray | None = None,
) -> list[Ranking]:
    """The ranking of every class; `correct` bool (n,).

    `counted`, `counted_gt`: bool (n,) and (m,), the detections and the ground truths that count; None: all.
    """
    ranked = c.ranked if counted is None else c.ranked[counted[c.ranked]]
    ranked = ranked[np.argsort(c.pred.label[ranked], kind="stable")]
    begin = np.searchsorted(c.pred.label[ranked], np.arange(c.num_classes))
    counts = c.gt.label >= 0 if counted_gt is None else counted_gt
    cell = c.gt.label[counts] * len(c.names) + c.gt.video[counts]
    n_gt = np.bincount(cell, minlength=c.num_classes * len(c.names)).reshape(c.num_classes, -1)
    rows = zip(np.split(ranked, begin)[1:], n_gt, strict=True)
    return [Ranking(correct[own], c.pred.video[own], of_videos) for own, of_videos in rows]


def ap_of_rankings(rankings: Sequence[Sequence[Ranking]], protocol: str) -> np.ndarray:
    """AP of every ranking, float64 (thresholds, classes)."""
    ap = [[average_precision(r.correct, int(r.n_gt.sum()), protocol) for r in row] for row in rankings]
    return np.array(ap, np.float64)
