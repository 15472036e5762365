"""Detections and ground truth of all videos as arrays, which of them overlap, and how detections are matched.

The detections of a class are matched by falling score. Each takes the ground truth of its video (or frame) that it
overlaps most among those still unmatched, if their IoU is at least the threshold; otherwise it is a false positive. A
second detection of one tube is therefore never correct. Equal scores are ordered by video name and the tube's content,
so that the order in which predictions are given does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube
from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.overlaps import box_pairs, by_content, check_tubes, tube_pairs
from utils.misc import InputError

Tubes = Mapping[str, Sequence[Tube]]
FrameScores = Mapping[str, Sequence[np.ndarray]]
"""`frame_scores[video][i][t]` is the score of box t of the video's i-th tube."""


class Instances(NamedTuple):
    """The n tubes, or the n boxes of the tubes, of all videos, one video and one tube after another; no empty tubes.

    video, tube: int64 (n,), the place of each one's video in the list of names, and which of its video's tubes it is
    (of). frame: int64 (n,), a tube's first one. label: int64 (n,). score: float64 (n,).
    """

    video: np.ndarray
    tube: np.ndarray
    frame: np.ndarray
    label: np.ndarray
    score: np.ndarray


class Candidates(NamedTuple):
    """n detections and m ground truths of all classes, tubes or boxes, and the k pairs that overlap.

    names: of the videos, sorted. ranked: int64 (n,), the detections by falling score. i, j: int64 (k,), the detection
    and the ground truth of each pair, by falling score of the detection, then falling IoU. iou: float64 (k,).
    """

    names: list[str]
    pred: Instances
    gt: Instances
    ranked: np.ndarray
    i: np.ndarray
    j: np.ndarray
    iou: np.ndarray

    def pairs(self, keep: np.ndarray) -> "Candidates":
        """The same with some of the pairs, bool (k,)."""
        return self._replace(i=self.i[keep], j=self.j[keep], iou=self.iou[keep])


def numbered_tubes(tubes_of: Tubes, names: Sequence[str]) -> list[tuple[int, int, Tube]]:
    """Every tube that is not empty, with the place of its video in `names` and its own among the video's tubes."""
    return [(v, i, t) for v, name in enumerate(names) for i, t in enumerate(tubes_of.get(name, ())) if len(t)]


def instances_of(
    tubes_of: Tubes, names: Sequence[str], boxes: bool, frame_scores: FrameScores | None = None
) -> Instances:
    """The tubes of some videos as arrays or, with `boxes`, their boxes, whose scores are by default their tube's.

    Raises:
        ValueError: `frame_scores` does not fit the boxes.
        InputError: one of them is not finite.
    """
    rows = numbered_tubes(tubes_of, names)
    lengths = np.array([len(tube) if boxes else 1 for *_, tube in rows], np.int64)
    columns = np.array([(video, i, tube.label) for video, i, tube in rows], np.int64).reshape(-1, 3)
    video, tube, label = columns.repeat(lengths, 0).T
    frames = [tube.frames if boxes else tube.frames[:1] for *_, tube in rows]
    if boxes and frame_scores is not None:
        _check_frame_scores(tubes_of, frame_scores)
        scores = [frame_scores[names[video]][i] for video, i, _ in rows]
    else:
        scores = [np.repeat([tube.score for *_, tube in rows], lengths)]
    return Instances(
        video,
        tube,
        np.concatenate([np.zeros(0, np.int64), *frames]),
        label,
        np.concatenate([np.zeros(0), *scores]),
    )


def candidates(
    pred: Tubes,
    gt: Tubes,
    num_classes: int,
    min_iou: float,
    protocol: str,
    boxes: bool = False,
    frame_scores: FrameScores | None = None,
    any_class: bool = False,
) -> Candidates:
    """Tubes or, with `boxes`, boxes of one video (frame) and class that overlap by at least `min_iou`.

    Args:
        protocol: one of `PROTOCOLS`, by which IoU is computed.
        frame_scores: of boxes; None: each one's tube's.
        any_class: those of different classes too, and ground truth of label -1.

    Raises:
        InputError, ValueError: as `utils.video_map.calc_video_map` and `calc_frame_map`.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    rule = PROTOCOLS[protocol]
    check_tubes(pred, num_classes)
    check_tubes(gt, num_classes, lowest_label=-1)
    names = sorted({*pred, *gt})
    detections, truths = instances_of(pred, names, boxes, frame_scores), instances_of(gt, names, boxes)
    own, targets = numbered_tubes(pred, names), numbered_tubes(gt, names)
    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for side, tubes in enumerate((own, targets)):
        for n, (video, _, tube) in enumerate(tubes):
            groups.setdefault((video, 0 if any_class else tube.label), ([], []))[side].append(n)
    rows, target_rows = (_rows(tubes, boxes) for tubes in (own, targets))
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for a, b in groups.values():
        if a and b:
            of_group = [own[n][2] for n in a], [targets[n][2] for n in b], min_iou, rule.inclusive
            i, j, iou = box_pairs(*of_group) if boxes else tube_pairs(*of_group, rule.spans)
            pairs.append((np.concatenate([rows[n] for n in a])[i], np.concatenate([target_rows[n] for n in b])[j], iou))
    i, j, iou = (np.concatenate(part) for part in zip(*pairs, strict=True))

    by_given = sorted(range(len(own)), key=lambda n: (own[n][0], by_content(own[n][2])))
    given = np.concatenate([np.zeros(0, np.int64), *(rows[n] for n in by_given)])
    ranked = given[np.argsort(-detections.score[given], kind="stable")]
    order = np.lexsort((j, -iou, np.argsort(ranked)[i]))
    return Candidates(names, detections, truths, ranked, i[order], j[order], iou[order])


def match(c: Candidates, threshold: float) -> np.ndarray:
    """The ground truth that each detection is matched to, -1 for a false positive; int64 (n,)."""
    matched = [-1] * len(c.pred.label)
    free = [True] * len(c.gt.label)
    close = c.iou >= threshold
    for detection, target in zip(c.i[close].tolist(), c.j[close].tolist(), strict=True):
        if matched[detection] < 0 and free[target]:
            matched[detection], free[target] = target, False
    return np.array(matched, np.int64)


def match_taken_too(c: Candidates, threshold: float) -> np.ndarray:
    """The same where a detection only asks for the ground truth that it overlaps most, matched or not."""
    wanted = nearest(c, threshold)
    hits = c.ranked[wanted[c.ranked] >= 0]
    first = hits[np.unique(wanted[hits], return_index=True)[1]]
    matched = np.full(len(wanted), -1)
    matched[first] = wanted[first]
    return matched


def nearest(c: Candidates, threshold: float) -> np.ndarray:
    """The ground truth that each detection overlaps most, matched or not, -1 below the threshold; int64 (n,)."""
    close = c.iou >= threshold
    detections, first = np.unique(c.i[close], return_index=True)
    best = np.full(len(c.pred.label), -1)
    best[detections] = c.j[close][first]
    return best


def matching(protocol: str) -> Callable[[Candidates, float], np.ndarray]:
    """The rule by which a protocol's detections are matched: `match` or `match_taken_too`."""
    return match_taken_too if PROTOCOLS[protocol].taken_too else match


def _check_frame_scores(tubes_of: Tubes, frame_scores: FrameScores) -> None:
    for video, tubes in tubes_of.items():
        if [len(tube) for tube in tubes] != [len(scores) for scores in frame_scores[video]]:
            raise ValueError(f"frame_scores of video {video!r}: one score is needed for every box of every tube")
        if not all(np.isfinite(scores).all() for scores in frame_scores[video]):
            raise InputError(f"frame_scores of video {video!r}: a score is not finite")


def _rows(tubes: Sequence[tuple[int, int, Tube]], boxes: bool) -> list[np.ndarray]:
    """The numbers of each tube's instances, int64."""
    ends = np.cumsum([len(tube) if boxes else 1 for *_, tube in tubes], dtype=np.int64).tolist()
    return [np.arange(first, end) for first, end in zip([0, *ends], ends, strict=False)]
