"""Average precision (AP) of action tubes: v-mAP, motion-AP and frame-mAP.

The detections of a class are matched by falling score. Each takes the ground truth of its video (or frame) that it
overlaps most among those still unmatched, if their IoU is at least the threshold; otherwise it is a false positive. A
second detection of one tube is therefore never correct. Equal scores are ordered by video name and the tube's content,
so that the order in which predictions are given does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tube, motion_categories
from utils.metrics.overlaps import box_pairs, by_content, check_thresholds, check_tubes, tube_pairs
from utils.metrics.published import published_motion_ap, published_video_map
from utils.misc import InputError

Tubes = Mapping[str, Sequence[Tube]]
NOT_EVALUATED = (
    "aerobic kick jump",
    "aerobic off axis jump",
    "aerobic butterfly jump",
    "aerobic balance turn",
    "basketball save",
    "basketball jump ball",
)
"""The labels of MultiSports that are not in its mean."""


def area_under_envelope(precision: np.ndarray, correct: np.ndarray, n_gt: int) -> float:
    """Area under the precision envelope at every recall, as PASCAL VOC since 2010."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[correct].sum() / n_gt)


def area_of_trapezoids(precision: np.ndarray, correct: np.ndarray, n_gt: int) -> float:
    """Area of trapezoids under the raw curve, which begins at precision 1."""
    previous = np.append(1.0, precision[:-1])
    return float((precision + previous)[correct].sum() / 2 / n_gt)


class Protocol(NamedTuple):
    """How AP is computed.

    area: the area under the curve, from the precision after each detection, float64 (n,), whether each is correct, bool
    (n,), and the number of ground truths. inclusive: x1 and y1 of a box are its last pixels, so that it is one pixel
    wider and higher than their difference. spans: see `utils.metrics.overlaps.tube_ious`. taken_too: a detection takes
    the ground truth that it overlaps most of all, and is a false positive where that one is taken. left_out: labels
    that are not in the mean.
    """

    area: Callable[[np.ndarray, np.ndarray, int], float]
    inclusive: bool
    spans: bool = False
    taken_too: bool = False
    left_out: frozenset[str] = frozenset()


PROTOCOLS = {
    "voc": Protocol(area_under_envelope, inclusive=False),
    # the evaluation of the ACT detector (Kalogeiton et al., ICCV 2017), which the field's tables come from
    "act": Protocol(area_of_trapezoids, inclusive=True),
    # the evaluation of MultiSports since 2022 (Li et al., ICCV 2021)
    "multisports": Protocol(
        area_under_envelope, inclusive=False, spans=True, taken_too=True, left_out=frozenset(NOT_EVALUATED)
    ),
}


class Candidates(NamedTuple):
    """One class's n detections by falling score, and the ground truth that each overlaps.

    scores: float64 (n,). pred, gt: int64 (k,), indices of the detection and the ground truth of each pair, by rising
    detection, then falling IoU; iou: float64 (k,). n_gt: how many the ground truths are.
    """

    scores: np.ndarray
    pred: np.ndarray
    gt: np.ndarray
    iou: np.ndarray
    n_gt: int


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
        pred, gt: the tubes of every video by its name. Ground truth with label -1 (a person without an action) is
            ignored; a detection in a video without ground truth is a false positive.
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
        ap = [published_video_map(pred, gt, num_classes, threshold) for threshold in thresholds]
        return np.stack(ap) if np.ndim(tiou_th) else ap[0]
    classes = _tube_candidates(pred, gt, num_classes, min(thresholds), protocol)
    choose = nearest if count_duplicates else matching(protocol)
    ap = [[average_precision(choose(c, th) >= 0, c.n_gt, protocol) for c in classes] for th in thresholds]
    return np.array(ap if np.ndim(tiou_th) else ap[0], np.float64)


def calc_motion_ap(
    pred: Tubes, gt: Tubes, num_classes: int, tiou_th: float | Sequence[float] = 0.2, protocol: str = "voc"
) -> dict[str, np.ndarray]:
    """AP of every class by the motion category of the ground truth (`utils.box_ops.motion_category`).

    Detections are matched once, as for v-mAP. In a category the ground truth of the other two is set aside, and so are
    the detections of it: those matched to it, and further ones whose highest IoU, at or above the threshold, is with it
    (as COCO does for object areas). Detections that overlap nothing are false positives in all three.

    Returns:
        "small", "medium" and "large" -> array as of `calc_video_map`, whose arguments and errors these are; with
        `protocol="published"` as of one class, since all are pooled.
    """
    thresholds = check_thresholds(tiou_th)
    if protocol == "published":
        pooled = [published_motion_ap(pred, gt, num_classes, threshold) for threshold in thresholds]
        rows = {category: np.array([[ap[category]] for ap in pooled]) for category in MOTION_CATEGORIES}
        return {category: row if np.ndim(tiou_th) else row[0] for category, row in rows.items()}
    classes = _tube_candidates(pred, gt, num_classes, min(thresholds), protocol)
    ap = {category: np.full((len(thresholds), num_classes), np.nan) for category in MOTION_CATEGORIES}
    for label, candidates in enumerate(classes):
        motion = motion_categories([tube for video in sorted(gt) for tube in _of_class(gt[video], label)])
        motion = np.array([*motion, ""])  # the last is that of index -1, no ground truth
        for row, threshold in enumerate(thresholds):
            matched = matching(protocol)(candidates, threshold)
            category_of = motion[np.where(matched >= 0, matched, nearest(candidates, threshold))]
            for category in MOTION_CATEGORIES:
                counted = (category_of == category) | (category_of == "")
                n_gt = int((motion == category).sum())
                ap[category][row, label] = average_precision(matched[counted] >= 0, n_gt, protocol)
    return {category: rows if np.ndim(tiou_th) else rows[0] for category, rows in ap.items()}


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
        frame_scores: `frame_scores[video][i][t]` is the score of box t of `pred[video][i]`; None: its tube's score.

    Returns:
        As `calc_video_map`, whose other arguments and errors these are.

    Raises:
        ValueError: `frame_scores` does not fit the boxes.
    """
    thresholds = check_thresholds(iou_th)
    if frame_scores is None:
        frame_scores = {video: [np.full(len(tube), tube.score) for tube in tubes] for video, tubes in pred.items()}
    for video, tubes in pred.items():
        if [len(tube) for tube in tubes] != [len(scores) for scores in frame_scores[video]]:
            raise ValueError(f"frame_scores of video {video!r}: one score is needed for every box of every tube")
        if not all(np.isfinite(scores).all() for scores in frame_scores[video]):
            raise InputError(f"frame_scores of video {video!r}: a score is not finite")
    classes = _candidates(pred, frame_scores, gt, num_classes, box_pairs, min(thresholds), protocol)
    choose = matching(protocol)
    ap = [[average_precision(choose(c, th) >= 0, c.n_gt, protocol) for c in classes] for th in thresholds]
    return np.array(ap if np.ndim(iou_th) else ap[0], np.float64)


def sorted_matches(
    pred: Tubes, gt: Tubes, num_classes: int, tiou_th: float = 0.2, protocol: str = "voc"
) -> tuple[list[np.ndarray], np.ndarray]:
    """What `calc_video_map` computes AP from, whose arguments and errors these are.

    Returns:
        For each class whether each of its detections is correct, bool (n_c,) by falling score; how many ground-truth
        tubes each class has, int64 (num_classes,).
    """
    (threshold,) = check_thresholds(tiou_th)
    classes = _tube_candidates(pred, gt, num_classes, threshold, protocol)
    return [matching(protocol)(c, threshold) >= 0 for c in classes], np.array([c.n_gt for c in classes], np.int64)


def mean_ap(ap: np.ndarray) -> float:
    """The mean over the classes that have ground truth, NaN where none has; `ap` (num_classes,)."""
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else float("nan")


def average_precision(correct: np.ndarray, n_gt: int, protocol: str = "voc") -> float:
    """AP of one class, NaN without ground truth.

    Args:
        correct: bool (n,), whether each detection is correct, by falling score.
        n_gt: number of ground truths.
        protocol: one of `PROTOCOLS`.
    """
    if not n_gt:
        return float("nan")
    precision = correct.cumsum() / np.arange(1, len(correct) + 1)
    return PROTOCOLS[protocol].area(precision, correct, n_gt)


def match(candidates: Candidates, threshold: float) -> np.ndarray:
    """The ground truth that each detection is matched to, -1 for a false positive; int64 (n,)."""
    matched = [-1] * len(candidates.scores)
    free = [True] * candidates.n_gt
    close = candidates.iou >= threshold
    for detection, target in zip(candidates.pred[close].tolist(), candidates.gt[close].tolist(), strict=True):
        if matched[detection] < 0 and free[target]:
            matched[detection], free[target] = target, False
    return np.array(matched, np.int64)


def match_taken_too(candidates: Candidates, threshold: float) -> np.ndarray:
    """The same where a detection only asks for the ground truth that it overlaps most, matched or not."""
    matched = nearest(candidates, threshold)
    hits = np.flatnonzero(matched >= 0)
    first = hits[np.unique(matched[hits], return_index=True)[1]]
    return np.where(np.isin(np.arange(len(matched)), first), matched, -1)


def matching(protocol: str) -> Callable[[Candidates, float], np.ndarray]:
    """The rule by which a protocol's detections are matched: `match` or `match_taken_too`."""
    return match_taken_too if PROTOCOLS[protocol].taken_too else match


def nearest(candidates: Candidates, threshold: float) -> np.ndarray:
    """The ground truth that each detection overlaps most, matched or not, -1 below the threshold; int64 (n,)."""
    close = candidates.iou >= threshold
    detections, first = np.unique(candidates.pred[close], return_index=True)
    best = np.full(len(candidates.scores), -1)
    best[detections] = candidates.gt[close][first]
    return best


def _of_class(tubes: Sequence[Tube], label: int) -> list[Tube]:
    return [tube for tube in tubes if tube.label == label and len(tube)]


def _tube_candidates(pred: Tubes, gt: Tubes, num_classes: int, min_iou: float, protocol: str) -> list[Candidates]:
    scores = {video: [[tube.score] for tube in tubes] for video, tubes in pred.items()}
    return _candidates(pred, scores, gt, num_classes, tube_pairs, min_iou, protocol)


def _candidates(
    pred: Tubes,
    scores: Mapping[str, Sequence[Sequence[float]]],
    gt: Tubes,
    num_classes: int,
    pairs_of: Callable,
    min_iou: float,
    protocol: str,
) -> list[Candidates]:
    """The candidates of every class, checked.

    Args:
        scores: of every predicted tube, one with `tube_pairs`, one for each box with `box_pairs`.
        pairs_of: `tube_pairs`, whose detections are tubes, or `box_pairs`, whose detections are boxes.
        min_iou: the lowest threshold.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    check_tubes(pred, num_classes)
    check_tubes(gt, num_classes, lowest_label=-1)
    return [
        _class_candidates(pred, scores, gt, label, pairs_of, min_iou, PROTOCOLS[protocol])
        for label in range(num_classes)
    ]


def _class_candidates(
    pred: Tubes,
    scores: Mapping[str, Sequence[Sequence[float]]],
    gt: Tubes,
    label: int,
    pairs_of: Callable,
    min_iou: float,
    protocol: Protocol,
) -> Candidates:
    """The candidates of one class; arguments as of `_candidates`."""
    class_scores: list[float] = []
    options = (protocol.inclusive, protocol.spans) if pairs_of is tube_pairs else (protocol.inclusive,)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    n_gt = 0
    for video in sorted({*pred, *gt}):
        scored = zip(pred.get(video, ()), scores.get(video, ()), strict=True)
        detections = [(tube, score) for tube, score in scored if tube.label == label and len(tube)]
        detections.sort(key=lambda detection: by_content(detection[0]))
        targets = _of_class(gt.get(video, ()), label)
        if detections and targets:
            i, j, iou = pairs_of([tube for tube, _ in detections], targets, min_iou, *options)
            parts.append((i + len(class_scores), j + n_gt, iou))
        class_scores += [s for _, score in detections for s in score]
        n_gt += len(targets) if pairs_of is tube_pairs else sum(map(len, targets))
    i, j, iou = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-np.array(class_scores), kind="stable")
    rank = np.argsort(order)
    by_rank = np.lexsort((j, -iou, rank[i]))
    return Candidates(np.array(class_scores)[order], rank[i][by_rank], j[by_rank], iou[by_rank], n_gt)
