"""People who were detected, but in pieces or mixed with another: what a better association alone would make right."""

import numpy as np

from utils.box_ops import Tube
from utils.metrics.average_precision import Protocol
from utils.metrics.matching import Candidates
from utils.metrics.overlaps import Boxes, overlaps_with, span_overlap, stack

MIN_OVERLAP = 0.1  # IoU below which nothing of a ground truth was detected, as in TIDE
ON_PERSON = 0.5  # minimum IoU of a box that is on a person


def broken_links(c: Candidates, matched: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Missed ground truth that joined pieces of predicted tubes would match, and further pieces of what is matched.

    Args:
        c: the P predicted and G annotated tubes.
        matched: int64 (P,), the annotated tube that each predicted one is matched to, -1 for a false positive.
        threshold: 3D IoU.

    Returns:
        The best score of the pieces that, once joined, would match a missed ground truth, -inf for every other ground
        truth: float64 (G,). The ground truth that each predicted tube is a piece of, -1 for none: int64 (P,).
    """
    joined, piece_of = np.full(len(c.gt.label), -np.inf), np.full(len(c.pred.label), -1)
    n_frames = np.zeros(len(piece_of), np.int64)  # frames of a piece that are on the ground truth
    matched_by = np.full(len(joined), -1)
    matched_by[matched[matched >= 0]] = np.flatnonzero(matched >= 0)
    begin, gt_begin = (np.searchsorted(side.video, np.arange(len(c.names) + 1)) for side in (c.pred, c.gt))
    for video in range(len(c.names)):
        in_video = np.arange(begin[video], begin[video + 1])
        people = [tube for *_, tube in c.gt.tubes[gt_begin[video] : gt_begin[video + 1]]]
        for label in {person.label for person in people if person.label >= 0}:
            own = in_video[c.pred.label[in_video] == label]
            if (matched[own] >= 0).all():
                continue
            boxes = stack([c.pred.tubes[i].tube for i in own], c.rule.inclusive)
            overlaps = [overlaps_with(boxes, person, c.rule.inclusive) for person in people]
            on = np.zeros((len(people), len(boxes.frames)), bool)
            for row, (within, _, _, iou) in zip(on, overlaps, strict=True):
                row[within] = iou >= ON_PERSON
            for k, person in enumerate(people):
                if person.label != label:
                    continue
                g = gt_begin[video] + k
                keeper = int(np.searchsorted(own, matched_by[g])) if matched_by[g] >= 0 else None
                strangers = [i for i, p in enumerate(people) if i != k and not p.person_id == person.person_id >= 0]
                elsewhere = on[strangers].any(0) & ~on[k]
                iou, parts = _join(boxes, person, overlaps[k], elsewhere, c.rule, keeper)
                pieces = own[list(parts)]
                if keeper is None:
                    mixed = (elsewhere & np.isin(boxes.tube, list(parts))).any()
                    if iou < threshold or (len(parts) == 1 and not mixed):
                        continue
                    joined[g] = c.pred.score[pieces].max()
                for piece, n in zip(pieces, parts.values(), strict=True):
                    if n > n_frames[piece]:
                        n_frames[piece], piece_of[piece] = n, g
    return joined, piece_of


def _join(
    boxes: Boxes, target: Tube, overlap: tuple, elsewhere: np.ndarray, rule: Protocol, keeper: int | None
) -> tuple[float, dict[int, int]]:
    """Join the pieces of tubes that are on a ground truth.

    The tube with most overlap comes first (`keeper`, where the ground truth is matched). Each further one fills the
    frames in which those before it have no box, or one that is not on the ground truth at all. Boxes outside of the
    ground truth's frames stay, since the association is not to blame for them, unless they are on another person.

    Args:
        boxes: of the tubes of one class and video.
        target: the ground truth.
        overlap: of the boxes with it, as from `overlaps_with`.
        elsewhere: bool (R,), boxes that are on another person.
        rule: how the protocol overlaps tubes.
        keeper: the tube that is matched to the ground truth, None where it is missed.

    Returns:
        The 3D IoU of the joined tube; each piece but the keeper -> the number of its frames that are on the ground
        truth. With a keeper, tubes with less than half of their frames on it are no pieces.
    """
    within, both, row, iou = overlap
    owner, iou, row = boxes.tube[within][both], iou[both], row[both]
    order = np.argsort(-np.bincount(owner, iou, minlength=1), kind="stable").tolist()
    if keeper is not None:
        order = [keeper, *(k for k in order if k != keeper)]
    value, parts = np.full(len(target), -1.0), {}
    for k in order:
        rows, ious = row[owner == k], iou[owner == k]
        fills = (value[rows] < MIN_OVERLAP) & (ious > value[rows])
        n = int((ious[fills] >= ON_PERSON).sum())
        if n or k == keeper:
            value[rows[fills]] = ious[fills]
            parts[k] = n
    outside = np.ones(len(boxes.frames), bool)
    outside[within] = ~both
    extra = boxes.frames[outside & np.isin(boxes.tube, list(parts)) & ~elsewhere]
    covered, joined = target.frames[value >= 0], float(np.maximum(value, 0).sum())
    if rule.spans and len(covered) + len(extra):
        shown = np.append(covered, extra)
        in_time = span_overlap(shown.min(), shown.max(), target.frames[0], target.frames[-1])
        joined *= float(in_time) / max(len(covered), 1)
    else:
        joined /= len(target) + len(np.unique(extra))
    if keeper is not None:
        parts = {k: n for k, n in parts.items() if k != keeper and 2 * n >= (boxes.tube == k).sum()}
    return joined, parts
