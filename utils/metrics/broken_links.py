"""People who were detected, but in pieces or mixed with another: what a better association alone would make right."""

import numpy as np

from utils.box_ops import Tube, frames_and_boxes
from utils.metrics.average_precision import Protocol
from utils.metrics.matching import Candidates
from utils.metrics.overlaps import box_overlaps, edges, span_overlap

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
    for video in range(len(c.names)):
        in_video = np.flatnonzero(c.gt.video == video)
        people = [c.gt.tubes[g].tube for g in in_video]
        gt_frames, gt_boxes = frames_and_boxes(people)
        gt_boxes = edges(gt_boxes, c.rule.inclusive)
        gt_owner = np.arange(len(people)).repeat([len(person) for person in people])
        for label in {person.label for person in people if person.label >= 0}:
            own = np.flatnonzero((c.pred.video == video) & (c.pred.label == label))
            if (matched[own] >= 0).all():
                continue
            tubes = [c.pred.tubes[i].tube for i in own]
            frames, boxes = frames_and_boxes(tubes)
            owner = np.arange(len(tubes)).repeat([len(tube) for tube in tubes])
            pairs = box_overlaps(frames, edges(boxes, c.rule.inclusive), gt_frames, gt_boxes)
            i, j, iou = (np.concatenate(part) for part in zip(*pairs, strict=True))
            on = np.zeros((len(people), len(frames)), bool)
            on[gt_owner[j], i] = iou >= ON_PERSON
            for k, person in enumerate(people):
                if person.label != label:
                    continue
                g = in_video[k]
                keeper = int(np.searchsorted(own, matched_by[g])) if matched_by[g] >= 0 else None
                strangers = [n for n, p in enumerate(people) if n != k and not p.person_id == person.person_id >= 0]
                elsewhere = on[strangers].any(0) & ~on[k]
                shared = gt_owner[j] == k
                joined_iou, parts = _join(frames, owner, person, i[shared], iou[shared], elsewhere, c.rule, keeper)
                pieces = own[list(parts)]
                if keeper is None:
                    mixed = (elsewhere & np.isin(owner, list(parts))).any()
                    if joined_iou < threshold or (len(parts) == 1 and not mixed):
                        continue
                    joined[g] = c.pred.score[pieces].max()
                for piece, n in zip(pieces, parts.values(), strict=True):
                    if n > n_frames[piece]:
                        n_frames[piece], piece_of[piece] = n, g
    return joined, piece_of


def _join(
    frames: np.ndarray,
    owner: np.ndarray,
    target: Tube,
    shared: np.ndarray,
    iou: np.ndarray,
    elsewhere: np.ndarray,
    rule: Protocol,
    keeper: int | None,
) -> tuple[float, dict[int, int]]:
    """Join the pieces of tubes that are on a ground truth.

    The tube with most overlap comes first (`keeper`, where the ground truth is matched). Each further one fills the
    frames in which those before it have no box, or one that is not on the ground truth at all. Boxes outside of the
    ground truth's frames stay, since the association is not to blame for them, unless they are on another person.

    Args:
        frames, owner: int64 (R,), frame and tube of each box of the tubes of one class and video.
        target: the ground truth.
        shared, iou: the k boxes in its frames, int64 (k,), and each one's IoU with it, float64 (k,).
        elsewhere: bool (R,), boxes that are on another person.
        rule: how the protocol overlaps tubes.
        keeper: the tube that is matched to the ground truth, None where it is missed.

    Returns:
        The 3D IoU of the joined tube; each piece but the keeper -> the number of its frames that are on the ground
        truth. With a keeper, tubes with less than half of their frames on it are no pieces.
    """
    tube, row = owner[shared], np.searchsorted(target.frames, frames[shared])
    order = np.argsort(-np.bincount(tube, iou, minlength=1), kind="stable").tolist()
    if keeper is not None:
        order = [keeper, *(k for k in order if k != keeper)]
    value, parts = np.full(len(target), -1.0), {}
    for k in order:
        rows, ious = row[tube == k], iou[tube == k]
        fills = (value[rows] < MIN_OVERLAP) & (ious > value[rows])
        n = int((ious[fills] >= ON_PERSON).sum())
        if n or k == keeper:
            value[rows[fills]] = ious[fills]
            parts[k] = n
    outside = np.ones(len(frames), bool)
    outside[shared] = False
    extra = frames[outside & np.isin(owner, list(parts)) & ~elsewhere]
    covered, joined = target.frames[value >= 0], float(np.maximum(value, 0).sum())
    if rule.spans and len(covered) + len(extra):
        shown = np.append(covered, extra)
        in_time = span_overlap(shown.min(), shown.max(), target.frames[0], target.frames[-1])
        joined *= float(in_time) / max(len(covered), 1)
    else:
        joined /= len(target) + len(np.unique(extra))
    if keeper is not None:
        parts = {k: n for k, n in parts.items() if k != keeper and 2 * n >= (owner == k).sum()}
    return joined, parts
