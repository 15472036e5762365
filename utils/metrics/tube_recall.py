"""Precision and recall of linked person tubes against ground-truth tubes: regions only, labels are not compared."""

from collections.abc import Mapping, Sequence

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tube, motion_categories
from utils.metrics.tube_arrays import TubeArrays, by_content, check_thresholds, pack
from utils.metrics.tube_overlaps import best_partner, overlaps


def tube_precision_recall(
    pred: Mapping[str, Sequence[Tube]],
    gt: Mapping[str, Sequence[Tube]],
    tiou_th: float | Sequence[float] = 0.2,
    label_centric: bool = True,
    frame_iou: float | None = None,
    num_classes: int = 0,
) -> list[dict]:
    """For each 3D IoU threshold a dict of `recall` and `precision` (float), `class_recall` and `class_precision`
    (float64 (num_classes,)), `motion_recall` and `motion_precision` ("small", "medium", "large" -> float).

    The (predicted, ground-truth) pairs of a video go by falling 3D IoU (`utils.box_ops.tube_iou`; with
    `label_centric` over the ground truth's frames, with `frame_iou` a frame's IoU above it counts as 1). A pair is
    accepted when the ground truth is free and the prediction does not hold another person in the same
    frames: one linked person may cover annotated tubes that follow each other, or simultaneous ones of one
    `person_id`, but of two predictions of one person the second is a false one.

    recall: accepted ground truth / ground truth. precision: predictions with an accepted pair / predictions. By
    class and by motion category of the ground truth, a prediction without one counts where the ground truth
    belongs that it overlaps most, if at or above the threshold, and else in all that its video has ground truth of.
    NaN where there is nothing to count. InputError for a threshold outside (0, 1] and numbers that are not finite.
    """
    thresholds = check_thresholds(tiou_th)
    names = sorted({*pred, *gt})
    a, b = pack(pred, names), pack(gt, names)
    pairs = overlaps(a, b, False, min(thresholds), label_centric, frame_iou)
    accepted, iou = _accept(a, b, *pairs)
    motion = np.array([MOTION_CATEGORIES.index(name) for name in motion_categories(b.tubes)], np.int64)
    results = []
    for threshold in thresholds:
        held = accepted[iou >= threshold]
        about = best_partner(pairs, len(a), threshold)
        (recall,), _ = _rates(a, b, held, about, np.zeros(len(b), np.int64), 1)
        class_recall, class_precision = _rates(a, b, held, about, b.label, num_classes)
        motion_recall, motion_precision = (
            dict(zip(MOTION_CATEGORIES, rate.tolist(), strict=True))
            for rate in _rates(a, b, held, about, motion, len(MOTION_CATEGORIES))
        )
        results.append(
            {
                "recall": float(recall),
                "precision": len(np.unique(held[:, 0])) / len(a) if len(a) else float("nan"),
                "class_recall": class_recall,
                "class_precision": class_precision,
                "motion_recall": motion_recall,
                "motion_precision": motion_precision,
            }
        )
    return results


def _accept(
    a: TubeArrays, b: TubeArrays, i: np.ndarray, j: np.ndarray, iou: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The accepted pairs int64 (k, 2) and their IoU (k,), falling: its beginning is what a higher threshold accepts."""
    rank = np.zeros(len(a), np.int64)
    rank[by_content(a, np.unique(i))] = np.arange(len(np.unique(i)))
    order = np.lexsort((j, rank[i], -iou))
    free = [True] * len(b)
    holds: dict[int, list[int]] = {}
    accepted = []
    for place, prediction, truth in zip(order.tolist(), i[order].tolist(), j[order].tolist(), strict=True):
        held = holds.setdefault(prediction, [])
        if free[truth] and not any(_clash(b.tubes[truth], b.tubes[other]) for other in held):
            free[truth] = False
            held.append(truth)
            accepted.append(place)
    return np.stack([i[accepted], j[accepted]], 1), iou[accepted]


def _clash(one: Tube, other: Tube) -> bool:
    """Two people who are there at the same time."""
    same_person = one.person_id == other.person_id >= 0
    return not same_person and len(np.intersect1d(one.frames, other.frames, assume_unique=True)) > 0


def _rates(
    a: TubeArrays, b: TubeArrays, held: np.ndarray, about: np.ndarray, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision by group of the ground truth, float64 (n_groups,) each; other groups do not count.

    `held` int64 (k, 2) the accepted pairs; `about` int64 (n,) the ground truth each prediction overlaps most, or -1;
    `group` int64 (m,).
    """
    group = np.where((group >= 0) & (group < n_groups), group, n_groups)
    there = np.bincount(group, minlength=n_groups + 1)
    found = np.bincount(group[held[:, 1]], minlength=n_groups + 1)
    in_video = np.zeros((max(a.video.max(initial=0), b.video.max(initial=0)) + 1, n_groups + 1), bool)
    in_video[b.video, group] = True
    right = np.zeros((len(a), n_groups + 1), bool)
    right[held[:, 0], group[held[:, 1]]] = True
    counted = in_video[a.video]
    counted[about >= 0] = False
    counted[about >= 0, group[about[about >= 0]]] = True
    counted[held[:, 0]] = False
    counted |= right
    with np.errstate(invalid="ignore"):
        return (found / there)[:n_groups], (right.sum(0) / counted.sum(0))[:n_groups]
