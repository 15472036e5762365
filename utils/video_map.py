"""Average precision of action tubes: v-mAP, motion-AP and frame-mAP.

Detections of a class go by falling score; each takes the best still unmatched ground truth of its class
and video (or frame) with an IoU of at least the threshold, and is a false positive where there is none, so a
second detection of one tube never counts as correct. Equal scores go by video name, first frame, and so on
through the tube's content, so that the order in which predictions are handed over never matters.

Two protocols: "voc" takes continuous boxes and the area under the precision envelope (PASCAL VOC 2010);
"act" is what the ACT detector's evaluation (Kalogeiton et al., ICCV 2017) computes, which the field's tables
come from: inclusive pixels, trapezoids under the raw curve.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tube, motion_categories
from utils.metrics.tube_arrays import TubeArrays, by_content, check_thresholds, pack
from utils.metrics.tube_overlaps import best_partner, box_overlaps, overlaps
from utils.misc import InputError

PROTOCOLS = ("voc", "act")
Tubes = Mapping[str, Sequence[Tube]]
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def calc_video_map(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    tiou_th: float | Sequence[float] = 0.2,
    protocol: str = "voc",
    count_duplicates: bool = False,
) -> np.ndarray:
    """v-mAP before the mean: AP of every class, float64 (num_classes,), or (n, num_classes) for n thresholds.

    `pred` and `gt` map a video's name to its tubes. NaN where a class has no ground truth: leave such classes
    out of the mean (`mean_ap`) and list them. Tubes of `gt` with label -1, people without an action, do not count.
    A detection in a video without ground truth is a false positive. `count_duplicates` is the method's published
    evaluation: ground truth stays free when it is taken, so that any detection of it counts as correct, and AP may
    exceed 1. InputError for a label out of range, a score or box that is not finite, a threshold outside (0, 1] and
    an unknown protocol.
    """
    thresholds = check_thresholds(tiou_th)
    a, b = _pack_both(pred, gt, num_classes, protocol)
    order = _by_class_and_score(a.label, a.score, lambda tied: by_content(a, tied))
    pairs = overlaps(a, b, same_label=True, min_iou=min(thresholds))
    n_gt = np.bincount(b.label, minlength=num_classes)
    if count_duplicates:
        matches = [best_partner(pairs, len(a), threshold) for threshold in thresholds]
    else:
        matches = _match(pairs, thresholds, order, len(b))
    ap = [_class_ap(order, a.label, found >= 0, n_gt, protocol) for found in matches]
    return np.array(ap if np.ndim(tiou_th) else ap[0])


def sorted_matches(
    pred: Tubes, gt: Tubes, num_classes: int, tiou_th: float = 0.2, protocol: str = "voc"
) -> tuple[list[np.ndarray], np.ndarray]:
    """What `calc_video_map` computes AP of: for each class whether each of its detections is a true positive, bool
    (n_c,) by falling score, and how many ground-truth tubes it has, int64 (num_classes,). Errors as there."""
    thresholds = check_thresholds(tiou_th)
    a, b = _pack_both(pred, gt, num_classes, protocol)
    order = _by_class_and_score(a.label, a.score, lambda tied: by_content(a, tied))
    (found,) = _match(overlaps(a, b, same_label=True, min_iou=thresholds[0]), thresholds, order, len(b))
    begin = np.searchsorted(a.label[order], np.arange(1, num_classes))
    return np.split(found[order] >= 0, begin), np.bincount(b.label, minlength=num_classes)


def calc_motion_ap(
    pred: Tubes, gt: Tubes, num_classes: int, tiou_th: float | Sequence[float] = 0.2, protocol: str = "voc"
) -> dict[str, np.ndarray]:
    """Motion-AP: "small", "medium" and "large" -> AP of every class, shape, NaN and errors as in `calc_video_map`.

    The category is the ground truth's (`utils.box_ops.motion_category`). Detections are matched once, as for
    v-mAP. In a category the ground truth of the other two is set aside, and so are the detections of it: those
    matched to it, and further ones whose best overlap, at or above the threshold, is with it (as COCO does for
    object areas). Detections of nothing are false positives in all three.
    """
    thresholds = check_thresholds(tiou_th)
    a, b = _pack_both(pred, gt, num_classes, protocol)
    order = _by_class_and_score(a.label, a.score, lambda tied: by_content(a, tied))
    pairs = overlaps(a, b, same_label=True, min_iou=min(thresholds))
    motion = np.array([*motion_categories(b.tubes), ""])  # the last one is that of index -1: of nothing
    ap: dict[str, list[np.ndarray]] = {name: [] for name in MOTION_CATEGORIES}
    for threshold, found in zip(thresholds, _match(pairs, thresholds, order, len(b)), strict=True):
        of = motion[np.where(found >= 0, found, best_partner(pairs, len(a), threshold))]
        for name in MOTION_CATEGORIES:
            kept = order[((of == name) | (of == ""))[order]]
            n_gt = np.bincount(b.label[motion[:-1] == name], minlength=num_classes)
            ap[name].append(_class_ap(kept, a.label, found >= 0, n_gt, protocol))
    return {name: np.array(rows if np.ndim(tiou_th) else rows[0]) for name, rows in ap.items()}


def calc_frame_map(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    iou_th: float | Sequence[float] = 0.5,
    protocol: str = "voc",
    frame_scores: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> np.ndarray:
    """Frame-mAP: AP of every class over the boxes of all frames; shape, NaN and errors as in `calc_video_map`.

    A box has its tube's score, or `frame_scores[video][i][t]` for box t of `pred[video][i]` (ValueError where
    they do not fit). A box in a frame without ground truth of its class is a false positive.
    """
    thresholds = check_thresholds(iou_th)
    a, b = _pack_both(pred, gt, num_classes, protocol)
    scores = a.score[a.owner] if frame_scores is None else _scores_of_boxes(pred, frame_scores, a)
    labels = a.label[a.owner]
    rank = np.empty(len(a), np.int64)
    rank[by_content(a, np.arange(len(a)))] = np.arange(len(a))
    order = _by_class_and_score(labels, scores, lambda tied: tied[np.lexsort((a.frames[tied], rank[a.owner[tied]]))])
    pairs = box_overlaps(a, b, same_label=True, min_iou=min(thresholds))
    n_gt = np.bincount(b.label[b.owner], minlength=num_classes)
    found = _match(pairs, thresholds, order, len(b.frames))
    ap = [_class_ap(order, labels, one >= 0, n_gt, protocol) for one in found]
    return np.array(ap if np.ndim(iou_th) else ap[0])


def mean_ap(ap: np.ndarray) -> float:
    """The mean over the classes that have ground truth, NaN where none has; `ap` (num_classes,)."""
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else float("nan")


def average_precision(correct: np.ndarray, n_gt: int, protocol: str = "voc") -> float:
    """AP of one class: `correct` bool (n,) by falling score, `n_gt` > 0 ground truths in all."""
    found = correct.cumsum()
    precision = found / np.arange(1, len(correct) + 1)
    if protocol == "voc":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    else:
        precision = (precision + np.append(1.0, precision[:-1])) / 2
    return float(precision[correct].sum() / n_gt)


def _pack_both(pred: Tubes, gt: Tubes, num_classes: int, protocol: str) -> tuple[TubeArrays, TubeArrays]:
    """Predictions and ground truth over the same videos, sorted by name."""
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    names = sorted({*pred, *gt})
    acting = {name: [tube for tube in tubes if tube.label != -1] for name, tubes in gt.items()}
    both = tuple(pack(tubes, names, inclusive=protocol == "act") for tubes in (pred, acting))
    for kind, x in zip(("predicted", "ground-truth"), both, strict=True):
        bad = np.flatnonzero((x.label < 0) | (x.label >= num_classes))
        if len(bad):
            raise InputError(
                f"video {names[x.video[bad[0]]]!r}: a {kind} tube has label {x.label[bad[0]]}; "
                f"there are {num_classes} classes, from 0"
            )
    return both


def _scores_of_boxes(pred: Tubes, frame_scores: Mapping[str, Sequence[np.ndarray]], a: TubeArrays) -> np.ndarray:
    """`frame_scores` in the order of a's rows."""
    given = [
        np.asarray(scores, np.float64)
        for name in sorted(pred)
        for tube, scores in zip(pred[name], frame_scores[name], strict=True)
        if len(tube)
    ]
    if [one.shape for one in given] != [(n,) for n in a.length.tolist()]:
        raise ValueError("frame_scores: one score is needed for every box of every tube")
    scores = np.concatenate([*given, np.zeros(0)])
    if not np.isfinite(scores).all():
        raise InputError("frame_scores: a score is not finite")
    return scores


def _by_class_and_score(
    label: np.ndarray, score: np.ndarray, break_ties: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Indices by rising class, then falling score; `break_ties` puts the indices of equal scores in order."""
    order = np.lexsort((-score, label))
    same = (np.diff(score[order]) == 0) & (np.diff(label[order]) == 0)
    if not same.any():
        return order
    tied = break_ties(order[np.append(same, False) | np.append(False, same)])
    rank = np.zeros(len(order), np.int64)
    rank[tied] = np.arange(len(tied))
    return np.lexsort((rank, -score, label))


def _match(pairs: Pairs, thresholds: list[float], order: np.ndarray, n_gt: int) -> list[np.ndarray]:
    """For each threshold the ground truth that each detection takes, -1 for none; int64 (n,) each.

    `pairs` detection, ground truth, IoU; detections choose in the order `order`.
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_choice = np.lexsort((pairs[1], -pairs[2], rank[pairs[0]]))
    i, j, iou = (part[by_choice] for part in pairs)
    matches = []
    for threshold in thresholds:
        close = iou >= threshold
        taken = [-1] * len(order)
        free = [True] * n_gt
        for detection, truth in zip(i[close].tolist(), j[close].tolist(), strict=True):
            if free[truth] and taken[detection] < 0:
                taken[detection], free[truth] = truth, False
        matches.append(np.array(taken, np.int64))
    return matches


def _class_ap(order: np.ndarray, label: np.ndarray, correct: np.ndarray, n_gt: np.ndarray, protocol: str) -> np.ndarray:
    """AP of every class, NaN where it has no ground truth; `order` detections by class, then score."""
    begin = np.searchsorted(label[order], np.arange(len(n_gt) + 1))
    return np.array(
        [
            average_precision(correct[order[begin[c] : begin[c + 1]]], n_gt[c], protocol) if n_gt[c] else np.nan
            for c in range(len(n_gt))
        ]
    )
