"""Which people were found, but in pieces or mixed with another: what mending the association alone would make right."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from utils.box_ops import Tube
from utils.metrics.average_precision import PROTOCOLS, Protocol
from utils.metrics.evaluation import Evaluation
from utils.metrics.overlaps import Boxes, overlaps_with, span_overlap, stack

FAINT = 0.1  # IoU below which nothing of a ground truth was detected, as in TIDE
ON = 0.5  # IoU from which a box is on a person


def broken_links(
    e: Evaluation,
    threshold: float,
    names: Sequence[str],
    first_pred: np.ndarray,
    first_gt: np.ndarray,
    taken: np.ndarray,
    score: np.ndarray,
) -> tuple[dict[int, float], dict[int, int]]:
    """Ground truths that joining pieces of tubes of their class would find, and pieces of those that were found.

    Args:
        e: what is evaluated.
        threshold: 3D IoU.
        names: the videos.
        first_pred, first_gt: of each video the number of its first predicted and its first annotated tube.
        taken: of each predicted tube the annotated one that it is matched to, -1 for a false positive, int64 (P,).
        score: float64 (P,).

    Returns:
        Missed ground truth that joined pieces would match -> the best score of the pieces; predicted tube -> the ground
        truth that it is a piece of.
    """
    linked: dict[int, float] = {}
    pieces: dict[int, tuple[int, int]] = {}  # predicted tube -> frames on the ground truth, and which it is
    finder = {g: i for i, g in enumerate(taken.tolist()) if g >= 0}
    for place, name in enumerate(names):
        gt = [(first_gt[place] + j, tube) for j, tube in enumerate(e.gt.get(name, ())) if len(tube)]
        pred = [(first_pred[place] + i, tube) for i, tube in enumerate(e.pred.get(name, ())) if len(tube)]
        for label in {tube.label for _, tube in gt if tube.label >= 0}:
            own = {i: tube for i, tube in pred if tube.label == label}
            if (taken[list(own)] >= 0).all():
                continue
            for g, value, parts, mixed in _joined_tubes(own, gt, label, finder, PROTOCOLS[e.protocol]):
                if g not in finder:
                    if value < threshold or (len(parts) == 1 and not mixed):
                        continue
                    linked[g] = float(score[list(parts)].max())
                for i, n in parts.items():
                    if n > pieces.get(i, (0, 0))[0]:
                        pieces[i] = n, g
    return linked, {i: g for i, (_, g) in pieces.items()}


def _joined_tubes(
    own: Mapping[int, Tube],
    gt: Sequence[tuple[int, Tube]],
    label: int,
    finder: Mapping[int, int],
    rule: Protocol,
) -> Iterator[tuple[int, float, dict[int, int], bool]]:
    """Of each ground truth of one class and video: its number, the 3D IoU of the joined pieces, the pieces by their
    numbers -> frames on it, and whether one of them has boxes on another person."""
    numbers = list(own)
    boxes = stack(list(own.values()), rule.inclusive)
    on = []
    for _, tube in gt:
        within, _, _, iou = overlaps_with(boxes, tube, rule.inclusive)
        on.append(np.zeros(len(boxes.frames), bool))
        on[-1][within] = iou >= ON
    for k, (g, target) in enumerate(gt):
        if target.label != label:
            continue
        others = [on[m] for m, (_, tube) in enumerate(gt) if m != k and not tube.person_id == target.person_id >= 0]
        elsewhere = np.any([np.zeros(len(boxes.frames), bool), *others], axis=0) & ~on[k]
        keeper = numbers.index(finder[g]) if g in finder else None
        value, parts = _join(boxes, target, elsewhere, rule, keeper)
        mixed = bool((elsewhere & np.isin(boxes.tube, list(parts))).any())
        yield g, value, {numbers[i]: n for i, n in parts.items()}, mixed


def _join(
    boxes: Boxes, target: Tube, elsewhere: np.ndarray, rule: Protocol, keeper: int | None
) -> tuple[float, dict[int, int]]:
    """Join the pieces of tubes that are on a ground truth.

    The tube with most overlap comes first (`keeper`, where the ground truth is matched); the next ones fill the frames
    in which those before have no box, or one that is not on the ground truth at all. Boxes outside of the ground
    truth's frames stay, as the association is not to blame for them, but those that are on another person.

    Args:
        boxes: of the tubes of one class and video.
        target: the ground truth.
        elsewhere: bool (R,), boxes that are on another person.
        rule: how the protocol overlaps tubes.
        keeper: the tube that is matched to the ground truth, None where it is missed.

    Returns:
        The 3D IoU of the joined tube; its pieces (but the keeper) -> in how many frames they are on the ground truth.
        With a keeper a piece is a tube of which this is at least half.
    """
    within, both, row, iou = overlaps_with(boxes, target, rule.inclusive)
    owner, iou, row = boxes.tube[within][both], iou[both], row[both]
    order = np.argsort(-np.bincount(owner, iou, minlength=1), kind="stable").tolist()
    if keeper is not None:
        order = [keeper, *(k for k in order if k != keeper)]
    value, parts = np.full(len(target), -1.0), {}
    for k in order:
        rows, ious = row[owner == k], iou[owner == k]
        fills = (value[rows] < FAINT) & (ious > value[rows])
        n = int((ious[fills] >= ON).sum())
        if n or k == keeper:
            value[rows[fills]] = ious[fills]
            parts[k] = n
    outside = np.ones(len(boxes.frames), bool)
    outside[within] = ~both
    extra = outside & np.isin(boxes.tube, list(parts)) & ~elsewhere
    joined, shown = float(np.maximum(value, 0).sum()), np.append(target.frames[value >= 0], boxes.frames[extra])
    if rule.spans and len(shown):
        ends = shown.min(keepdims=True), shown.max(keepdims=True), *target.frames[[0, -1]].tolist()
        joined *= float(span_overlap(*ends)[0]) / max((value >= 0).sum(), 1)
    else:
        joined /= len(target) + len(np.unique(boxes.frames[extra]))
    if keeper is not None:
        parts = {k: n for k, n in parts.items() if k != keeper and 2 * n >= (boxes.tube == k).sum()}
    return joined, parts
