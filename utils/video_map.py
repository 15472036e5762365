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
from utils.metrics.average_precision import PROTOCOLS, Protocol, average_precision
from utils.metrics.overlaps import box_pairs, by_content, check_thresholds, check_tubes, tube_pairs
from utils.metrics.published import published_motion_ap, published_video_map
from utils.misc import InputError

Tubes = Mapping[str, Sequence[Tube]]


class Candidates(NamedTuple):
    """One class's n detections by falling score, and the ground truth that each overlaps.

    scores: float64 (n,). pred, gt: int64 (k,), indices of the detection and the ground truth of each pair, by rising
    detection, then falling IoU; iou: float64 (k,). video, gt_video: int64 (n,) and (n_gt,), the place of each one's
    video among the sorted names of both sides' videos. row, gt_row: int64 (n,) and (n_gt,), which of its video's tubes
    each is, or with `box_pairs` which of the boxes where these tubes stand one after another.
    """

    scores: np.ndarray
    pred: np.ndarray
    gt: np.ndarray
    iou: np.ndarray
    video: np.ndarray
    gt_video: np.ndarray
    row: np.ndarray
    gt_row: np.ndarray

    @property
    def n_gt(self) -> int:
        return len(self.gt_video)


class Ranking(NamedTuple):
    """What AP is computed from: one class's n detections by falling score at one threshold.

    correct: bool (n,). video: int64 (n,), the place of each one's video among the V videos' sorted names; n_gt: int64
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
    rankings = video_rankings(pred, gt, num_classes, thresholds, protocol, count_duplicates)
    ap = ap_of_rankings(rankings, protocol)
    return ap if np.ndim(tiou_th) else ap[0]


def video_rankings(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    thresholds: Sequence[float],
    protocol: str = "voc",
    count_duplicates: bool = False,
) -> list[list[Ranking]]:
    """For each threshold the ranking of each class that `calc_video_map` takes AP from; arguments are its."""
    classes = tube_candidates(pred, gt, num_classes, min(thresholds), protocol)
    choose = nearest if count_duplicates else matching(protocol)
    n_videos = len({*pred, *gt})
    return [[ranking(c, choose(c, th) >= 0, n_videos) for c in classes] for th in thresholds]


def ap_of_rankings(rankings: Sequence[Sequence[Ranking]], protocol: str) -> np.ndarray:
    """AP of every ranking, float64 (thresholds, classes)."""
    ap = [[average_precision(r.correct, int(r.n_gt.sum()), protocol) for r in row] for row in rankings]
    return np.array(ap, np.float64)


def ranking(c: Candidates, correct: np.ndarray, n_videos: int) -> Ranking:
    """The ranking of a class's detections, `correct` bool (n,)."""
    return Ranking(correct, c.video, np.bincount(c.gt_video, minlength=n_videos))


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
    rankings = motion_rankings(pred, gt, num_classes, thresholds, protocol)
    ap = {category: ap_of_rankings(rows, protocol) for category, rows in rankings.items()}
    return {category: rows if np.ndim(tiou_th) else rows[0] for category, rows in ap.items()}


def motion_rankings(
    pred: Tubes, gt: Tubes, num_classes: int, thresholds: Sequence[float], protocol: str = "voc"
) -> dict[str, list[list[Ranking]]]:
    """By category, for each threshold the ranking of each class that `calc_motion_ap` takes AP from."""
    classes = tube_candidates(pred, gt, num_classes, min(thresholds), protocol)
    n_videos = len({*pred, *gt})
    rankings: dict[str, list] = {category: [[] for _ in thresholds] for category in MOTION_CATEGORIES}
    for label, c in enumerate(classes):
        motion = motion_categories([tube for video in sorted(gt) for tube in _of_class(gt[video], label)])
        motion = np.array([*motion, ""])  # the last is that of index -1, no ground truth
        for i, threshold in enumerate(thresholds):
            matched = matching(protocol)(c, threshold)
            category_of = motion[np.where(matched >= 0, matched, nearest(c, threshold))]
            for category in MOTION_CATEGORIES:
                counted = (category_of == category) | (category_of == "")
                n_gt = np.bincount(c.gt_video[motion[:-1] == category], minlength=n_videos)
                rankings[category][i].append(Ranking(matched[counted] >= 0, c.video[counted], n_gt))
    return rankings


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
    ap = ap_of_rankings(frame_rankings(pred, gt, num_classes, thresholds, protocol, frame_scores), protocol)
    return ap if np.ndim(iou_th) else ap[0]


def frame_rankings(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    thresholds: Sequence[float],
    protocol: str = "voc",
    frame_scores: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> list[list[Ranking]]:
    """For each threshold the ranking of each class that `calc_frame_map` takes AP from; arguments are its."""
    classes = frame_candidates(pred, gt, num_classes, min(thresholds), protocol, frame_scores)
    n_videos = len({*pred, *gt})
    choose = matching(protocol)
    return [[ranking(c, choose(c, th) >= 0, n_videos) for c in classes] for th in thresholds]


def mean_ap(ap: np.ndarray) -> float:
    """The mean over the classes that have ground truth, NaN where none has; `ap` (num_classes,)."""
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else float("nan")


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


def tube_candidates(pred: Tubes, gt: Tubes, num_classes: int, min_iou: float, protocol: str) -> list[Candidates]:
    """The candidates of every class among tubes; pairs below `min_iou` are left out."""
    scores = {video: [[tube.score] for tube in tubes] for video, tubes in pred.items()}
    return _candidates(pred, scores, gt, num_classes, tube_pairs, min_iou, protocol)


def frame_candidates(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    min_iou: float,
    protocol: str,
    frame_scores: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> list[Candidates]:
    """The candidates of every class among boxes; pairs below `min_iou` are left out."""
    if frame_scores is None:
        frame_scores = {video: [np.full(len(tube), tube.score) for tube in tubes] for video, tubes in pred.items()}
    for video, tubes in pred.items():
        if [len(tube) for tube in tubes] != [len(scores) for scores in frame_scores[video]]:
            raise ValueError(f"frame_scores of video {video!r}: one score is needed for every box of every tube")
        if not all(np.isfinite(scores).all() for scores in frame_scores[video]):
            raise InputError(f"frame_scores of video {video!r}: a score is not finite")
    return _candidates(pred, frame_scores, gt, num_classes, box_pairs, min_iou, protocol)


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
    empty = np.zeros(0, np.int64)
    class_scores: list[float] = []
    parts, videos, gt_videos, pred_rows, gt_rows = [(empty, empty, np.zeros(0))], [], [], [empty], [empty]
    of_tubes = pairs_of is tube_pairs
    options = (protocol.inclusive, protocol.spans) if of_tubes else (protocol.inclusive,)
    for place, video in enumerate(sorted({*pred, *gt})):
        own, targets = pred.get(video, ()), gt.get(video, ())
        chosen = [i for i, tube in enumerate(own) if tube.label == label and len(tube)]
        chosen.sort(key=lambda i: by_content(own[i]))
        of_class = [j for j, tube in enumerate(targets) if tube.label == label and len(tube)]
        if chosen and of_class:
            i, j, iou = pairs_of([own[i] for i in chosen], [targets[j] for j in of_class], min_iou, *options)
            parts.append((i + len(videos), j + len(gt_videos), iou))
        for rows, places, tubes, indices in ((pred_rows, videos, own, chosen), (gt_rows, gt_videos, targets, of_class)):
            rows.append(np.array(indices, np.int64) if of_tubes else _box_rows(tubes, indices))
            places += [place] * len(rows[-1])
        class_scores += [s for i in chosen for s in scores[video][i]]
    i, j, iou = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-np.array(class_scores), kind="stable")
    rank = np.argsort(order)
    by_rank = np.lexsort((j, -iou, rank[i]))
    return Candidates(
        scores=np.array(class_scores)[order],
        pred=rank[i][by_rank],
        gt=j[by_rank],
        iou=iou[by_rank],
        video=np.array(videos, np.int64)[order],
        gt_video=np.array(gt_videos, np.int64),
        row=np.concatenate(pred_rows)[order],
        gt_row=np.concatenate(gt_rows),
    )


def _box_rows(tubes: Sequence[Tube], indices: Sequence[int]) -> np.ndarray:
    """Which boxes those of some tubes are where all tubes stand one after another, int64."""
    first = np.append(0, np.cumsum([len(tube) for tube in tubes]))
    rows = [np.arange(first[i], first[i] + len(tubes[i])) for i in indices]
    return np.concatenate([np.zeros(0, np.int64), *rows])
