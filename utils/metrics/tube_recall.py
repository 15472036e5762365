"""Recall and precision of person tracks against ground-truth tubes; labels are not compared."""

from collections.abc import Sequence

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tube, Tubes, motion_category
from utils.metrics.overlaps import by_content, check_thresholds, check_tubes, tube_ious


def tube_precision_recall(
    pred: Tubes,
    gt: Tubes,
    tiou_th: float | Sequence[float] = 0.2,
    label_centric: bool = True,
    frame_iou: float | None = None,
    num_classes: int = 0,
) -> list[dict]:
    """Recall and precision of all, by class and by motion category of the ground truth.

    The (track, ground truth) pairs of a video are accepted by falling 3D IoU, if the ground truth is free and the track
    does not yet cover another person in the same frames: one track may cover annotated tubes that follow each other, or
    simultaneous ones of one `person_id`, but of two tracks of one person the second is a false positive.

    Recall: accepted ground truth / ground truth. Precision: tracks with an accepted pair / tracks. By class and by
    motion category, a track without an accepted pair counts in those of the ground truth it overlaps most, if at or
    above the threshold, and otherwise in all that its video has ground truth of.

    Args:
        tiou_th: 3D IoU threshold (`utils.box_ops.tube_iou`), or several.
        label_centric: only frames of the ground truth count.
        frame_iou: a frame's IoU above it counts as 1.
        num_classes: labels are 0 to `num_classes` - 1; others belong to no class.

    Returns:
        For each threshold `recall` and `precision` (float), `class_recall` and `class_precision` (float64
        (num_classes,)), `motion_recall` and `motion_precision` ("small", "medium", "large" -> float). NaN where there
        is nothing to count.

    Raises:
        InputError: a threshold outside (0, 1], or a score or box that is not finite.
    """
    thresholds = check_thresholds(tiou_th)
    check_tubes(pred, gt)
    n_groups = 1 + num_classes + len(MOTION_CATEGORIES)  # all, classes, motion categories
    accepted_gt, all_gt, accepted_pred, all_pred = np.zeros((4, len(thresholds), n_groups))
    for video in sorted({*pred, *gt}):  # sums of floats depend on their order
        tracks, targets = (sorted(filter(len, side.get(video, ())), key=by_content) for side in (pred, gt))
        ious = tube_ious(tracks, targets, label_centric, frame_iou)
        accepted = _accept(ious, targets, min(thresholds))
        member = _groups(targets, num_classes)
        for k, threshold in enumerate(thresholds):
            pairs = accepted & (ious >= threshold)  # accepted by falling IoU: a higher threshold stops earlier
            accepted_gt[k] += member[pairs.any(0)].sum(0)
            all_gt[k] += member.sum(0)
            covers = pairs @ member  # bool (tracks, groups)
            accepted_pred[k] += covers.sum(0)
            near = (ious >= threshold).any(1)
            nearest = ious == ious.max(1, keepdims=True, initial=0)  # one person's simultaneous actions overlap equally
            missed = np.where(near[:, None], nearest @ member, member.any(0))
            counted = np.where(pairs.any(1)[:, None], covers, missed)
            counted[:, 0] = True
            all_pred[k] += counted.sum(0)
    with np.errstate(invalid="ignore"):
        recalls, precisions = accepted_gt / all_gt, accepted_pred / all_pred
    results: list[dict] = [{} for _ in thresholds]
    for name, rates in (("recall", recalls), ("precision", precisions)):
        for result, values in zip(results, rates, strict=True):
            result[name] = float(values[0])
            result[f"class_{name}"] = values[1 : 1 + num_classes]
            result[f"motion_{name}"] = dict(zip(MOTION_CATEGORIES, values[1 + num_classes :].tolist(), strict=True))
    return results


def _accept(ious: np.ndarray, gt: Sequence[Tube], threshold: float) -> np.ndarray:
    """The accepted pairs of one video, bool (n, m); `ious` (n, m) are of n tracks and the m tubes of `gt`."""
    accepted = np.zeros(ious.shape, bool)
    for index in np.argsort(-ious, axis=None, kind="stable"):
        i, j = np.unravel_index(index, ious.shape)
        if ious[i, j] < threshold:
            break
        covered = np.flatnonzero(accepted[i])
        if not accepted[:, j].any() and not any(_simultaneous(gt[j], gt[other]) for other in covered):
            accepted[i, j] = True
    return accepted


def with_accepted_pair(
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    threshold: float,
    label_centric: bool = True,
    frame_iou: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which tracks and which ground truth of one video have an accepted pair, bool (n,) and (m,); arguments as in
    `tube_precision_recall`. Empty tubes, which are not counted, are True."""
    rows = sorted((i for i, tube in enumerate(pred) if len(tube)), key=lambda i: by_content(pred[i]))
    columns = sorted((j for j, tube in enumerate(gt) if len(tube)), key=lambda j: by_content(gt[j]))
    targets = [gt[j] for j in columns]
    pairs = _accept(tube_ious([pred[i] for i in rows], targets, label_centric, frame_iou), targets, threshold)
    of_pred, of_gt = np.ones(len(pred), bool), np.ones(len(gt), bool)
    of_pred[rows], of_gt[columns] = pairs.any(1), pairs.any(0)
    return of_pred, of_gt


def _simultaneous(a: Tube, b: Tube) -> bool:
    """Whether two people are annotated in the same frame."""
    same_person = a.person_id == b.person_id >= 0
    return not same_person and len(np.intersect1d(a.frames, b.frames, assume_unique=True)) > 0


def _groups(gt: Sequence[Tube], num_classes: int) -> np.ndarray:
    """To which of all, the classes and the motion categories each tube belongs: bool (m, 1 + num_classes + 3)."""
    labels = np.array([tube.label for tube in gt]).reshape(-1, 1)
    motion = np.array([motion_category(tube) for tube in gt]).reshape(-1, 1)
    everything = np.ones((len(gt), 1), bool)
    return np.hstack([everything, labels == np.arange(num_classes), motion == np.array(MOTION_CATEGORIES)])
