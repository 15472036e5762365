"""Detections and ground truth of all videos as arrays, which of them overlap, and how detections are matched.

The detections of a class are matched by falling score. Each takes the ground truth of its video (or frame) that it
overlaps most among those still unmatched, if their IoU is at least the threshold; otherwise it is a false positive. A
second detection of one tube is therefore never correct. Equal scores are ordered by video name and content,
so that the order in which predictions are given does not matter. Of ground truths that a detection overlaps equally
(one person with two actions), that of its own class comes first, then the lower label, then content, so that the
annotation's order does not matter either.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube, Tubes, frames_and_boxes, paired_iou
from utils.metrics.average_precision import PROTOCOLS, Protocol
from utils.metrics.overlaps import by_content, check_tubes, edges, tube_ious
from utils.misc import InputError

BLOCK = 2**10  # boxes that are compared with ground truth at a time

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""k pairs of a detection and a ground truth: their numbers, int64 (k,) each, and their IoU, float64 (k,)."""


class VideoTube(NamedTuple):
    """A tube with the index of its video in a list of names and its own index among the video's tubes."""

    video: int
    index: int
    tube: Tube


class Instances(NamedTuple):
    """n tubes or n boxes by rising video.

    video: int64 (n,), indices of a list of names. label: int64 (n,). score: float64 (n,). Of boxes also frame: int64
    (n,), one number for each frame of any video; boxes: float64 (n, 4) xyxy. tubes: what they are made of, if of tubes.
    """

    video: np.ndarray
    label: np.ndarray
    score: np.ndarray
    frame: np.ndarray | None = None
    boxes: np.ndarray | None = None
    tubes: Sequence[VideoTube] = ()

    def where(self, keep: np.ndarray) -> "Instances":
        """The boxes that a mask or an index selects, without their tubes."""
        return Instances(*(column[keep] for column in self[:5]))


class Candidates(NamedTuple):
    """n detections and m ground truths of all classes, tubes or boxes, and the k pairs that overlap.

    names: of the videos. num_classes: labels are 0 to `num_classes` - 1. rule: of the protocol. ranked: int64 (n,), the
    detections by falling score. i, j: int64 (k,), the detection and the ground truth of each pair, by falling score of
    the detection, then falling IoU, then its own class first, then rising label. iou: float64 (k,).
    """

    names: Sequence[str]
    num_classes: int
    rule: Protocol
    pred: Instances
    gt: Instances
    ranked: np.ndarray
    i: np.ndarray
    j: np.ndarray
    iou: np.ndarray

    def with_pairs(self, keep: np.ndarray) -> "Candidates":
        """The same with the pairs that a mask or an index selects."""
        return self._replace(i=self.i[keep], j=self.j[keep], iou=self.iou[keep])


def numbered_tubes(tubes_of: Tubes, names: Sequence[str]) -> list[VideoTube]:
    """Every tube of the videos `names` that is not empty."""
    every = (VideoTube(v, i, t) for v, name in enumerate(names) for i, t in enumerate(tubes_of.get(name, ())))
    return [tube for tube in every if len(tube.tube)]


def tubes_as_instances(tubes: Sequence[VideoTube]) -> Instances:
    """The tubes themselves, not their boxes."""
    video, label = np.array([(t.video, t.tube.label) for t in tubes], np.int64).reshape(-1, 2).T
    return Instances(video, label, np.array([t.tube.score for t in tubes], np.float64), tubes=tubes)


def boxes_as_instances(tubes: Sequence[VideoTube], inclusive: bool = False) -> Instances:
    """The boxes of tubes, one tube after another; `inclusive`: see `utils.metrics.overlaps.edges`."""
    frames, boxes = frames_and_boxes([t.tube for t in tubes])
    video, label = (column.repeat([len(t.tube) for t in tubes]) for column in tubes_as_instances(tubes)[:2])
    own = [np.full(len(t), t.score) if t.frame_scores is None else t.frame_scores for _, _, t in tubes]
    score = np.concatenate([np.zeros(0), *own])
    return Instances(video, label, score, (video << 32) + frames, edges(boxes, inclusive), tubes)


def candidates(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    min_iou: float,
    protocol: str,
    boxes: bool = False,
    any_class: bool = False,
) -> Candidates:
    """Tubes or, with `boxes`, boxes of one video (frame) and class that overlap by at least `min_iou`.

    Args:
        protocol: one of `PROTOCOLS`, by which IoU is computed.
        any_class: those of different classes too, and ground truth of label -1.

    Raises:
        InputError, ValueError: as `utils.video_map.calc_video_map` and `calc_frame_map`.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    rule = PROTOCOLS[protocol]
    check_tubes(pred, gt, num_classes)
    names = sorted({*pred, *gt})
    # the order decides between equal scores and equal overlaps
    tubes, gt_tubes = (
        sorted(numbered_tubes(side, names), key=lambda t: (t.video, by_content(t.tube))) for side in (pred, gt)
    )
    if boxes:
        detections, targets = (boxes_as_instances(side, rule.inclusive) for side in (tubes, gt_tubes))
        if not (finite := np.isfinite(detections.score)).all():
            raise InputError(
                f"frame_scores of video {names[detections.video[finite.argmin()]]!r}: a score is not finite"
            )
        # by the box itself, so that linked and unlinked boxes count alike
        order = np.argsort(np.lexsort((detections.label, *detections.boxes.T[::-1], detections.frame)))
        pairs = box_pairs(detections, targets, min_iou, any_class)
    else:
        detections, targets = tubes_as_instances(tubes), tubes_as_instances(gt_tubes)
        order = np.arange(len(tubes))
        pairs = tube_pairs(tubes, gt_tubes, min_iou, rule, any_class)
    return ranked_candidates(names, num_classes, rule, detections, targets, pairs, order)


def ranked_candidates(
    names: Sequence[str],
    num_classes: int,
    rule: Protocol,
    pred: Instances,
    gt: Instances,
    pairs: Pairs,
    order: np.ndarray,
) -> Candidates:
    """The candidates by falling score, those of equal scores by rising `order`, int64 (n,)."""
    i, j, iou = pairs
    ranked = np.lexsort((order, -pred.score))
    label = gt.label[j]
    by_rank = np.lexsort((j, label, label != pred.label[i], -iou, np.argsort(ranked)[i]))
    return Candidates(names, num_classes, rule, pred, gt, ranked, i[by_rank], j[by_rank], iou[by_rank])


def tube_pairs(
    tubes: Sequence[VideoTube], targets: Sequence[VideoTube], min_iou: float, rule: Protocol, any_class: bool = False
) -> Pairs:
    """Tubes of one video, and one class unless `any_class`, with a 3D IoU of at least `min_iou`."""
    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for side, many in enumerate((tubes, targets)):
        for n, (video, _, tube) in enumerate(many):
            groups.setdefault((video, 0 if any_class else tube.label), ([], []))[side].append(n)
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for a, b in groups.values():
        if a and b:
            ious = tube_ious(
                [tubes[n].tube for n in a], [targets[n].tube for n in b], inclusive=rule.inclusive, spans=rule.spans
            )
            i, j = np.nonzero(ious >= min_iou)
            pairs.append((np.array(a)[i], np.array(b)[j], ious[i, j]))
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


def box_pairs(pred: Instances, gt: Instances, min_iou: float, any_class: bool = False) -> Pairs:
    """Boxes of one frame, and one class unless `any_class`, with an IoU of at least `min_iou`."""
    n = 2 + max(pred.label.max(initial=-1), gt.label.max(initial=-1))
    keys, gt_keys = (x.frame if any_class else x.frame * n + x.label + 1 for x in (pred, gt))  # equal: may be a pair
    order = np.argsort(gt_keys, kind="stable")
    gt_keys = gt_keys[order]
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for begin in range(0, len(keys), BLOCK):
        first, end = (np.searchsorted(gt_keys, keys[begin : begin + BLOCK], side) for side in ("left", "right"))
        counts = end - first
        i = np.repeat(np.arange(begin, begin + len(counts)), counts)  # every pair of equal keys
        j = order[np.arange(len(i)) + np.repeat(end - counts.cumsum(), counts)]
        iou = paired_iou(pred.boxes.take(i, 0), gt.boxes.take(j, 0))
        close = iou >= min_iou
        pairs.append((i[close], j[close], iou[close]))
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


def video_box_pairs(pred: Sequence[Tube], gt: Sequence[Tube]) -> Pairs:
    """Boxes of one frame that overlap, of any class, by their indices among all boxes of the tubes of one video."""
    sides = (boxes_as_instances([VideoTube(0, i, tube) for i, tube in enumerate(tubes)]) for tubes in (pred, gt))
    return box_pairs(*sides, np.finfo(np.float64).tiny, any_class=True)


def matching(c: Candidates, threshold: float) -> np.ndarray:
    """The ground truth that each detection is matched to by the protocol, -1 for a false positive; int64 (n,)."""
    if c.rule.taken_too:  # a detection only asks for the ground truth that it overlaps most
        c = c.with_pairs(c.iou >= threshold)
        c = c.with_pairs(np.sort(np.unique(c.i, return_index=True)[1]))
    return match(c, threshold)


def match(c: Candidates, threshold: float) -> np.ndarray:
    """The same where a detection takes the ground truth that it overlaps most among those unmatched."""
    matched = [-1] * len(c.pred.label)
    free = [True] * len(c.gt.label)
    close = c.iou >= threshold
    for detection, target in zip(c.i[close].tolist(), c.j[close].tolist(), strict=True):
        if matched[detection] < 0 and free[target]:
            matched[detection], free[target] = target, False
    return np.array(matched, np.int64)


def nearest(c: Candidates, threshold: float) -> np.ndarray:
    """The ground truth that each detection overlaps most, matched or not, -1 below the threshold; int64 (n,)."""
    close = c.iou >= threshold
    detections, first = np.unique(c.i[close], return_index=True)
    best = np.full(len(c.pred.label), -1)
    best[detections] = c.j[close][first]
    return best
