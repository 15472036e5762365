"""Causes of error: what each kind of mistake costs in v-mAP and frame-mAP.

After TIDE (Bolya et al., ECCV 2020), carried over to tubes: every false positive and every missed ground truth gets one
cause, and a cause costs what the mAP would gain if it alone were mended. docs/protocol.md defines the causes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube
from utils.metrics.average_precision import average_precision
from utils.metrics.broken_links import FAINT, broken_links
from utils.metrics.evaluation import Evaluation
from utils.metrics.matching import Candidates, candidates, matching
from utils.metrics.overlaps import span_overlap
from utils.results import print_table
from utils.video_map import mean_ap

CAUSES = ("class", "box", "time", "link", "duplicate", "both", "background", "missed")
CLASS, BOX, TIME, LINK, DUPLICATE, BOTH, BACKGROUND, MISSED = range(len(CAUSES))
NO_ERROR = -1
WORST = 10  # videos that are named
LOOKED_AT = 200  # videos with most errors, among which these are looked for


class Causes(NamedTuple):
    """The cause of each of P detections and G ground truths, `NO_ERROR` where there is none: int64 (P,) and (G,).

    matched: int64 (P,), the ground truth that a detection is matched to, -1 for a false positive. target: int64 (P,),
    the one that mending would match a false positive to, -1 for none. joined: float64 (G,), of ground truth that
    mending the association alone would match the score that it would have, else -inf.
    """

    of_pred: np.ndarray
    of_gt: np.ndarray
    matched: np.ndarray
    target: np.ndarray
    joined: np.ndarray


def errors(metric: str, e: Evaluation) -> dict:
    """What each cause costs at every threshold, for `v-mAP` or `frame-mAP`.

    Returns:
        `metric@T` -> "mAP"; "causes": cause -> "gain" of mAP if it alone were mended and "count"; "all": the mAP with
        every cause mended; "worst_videos": those whose errors cost most; "list": every error of tubes.
        For frame-mAP also "act": AP and the five kinds of error of the ACT detector's evaluation, which add up to 1.

    The protocol is one of `PROTOCOLS`.
    """
    boxes, summaries = metric == "frame-mAP", {}
    for threshold in e.thresholds:
        c, matched = match_all(e, threshold, e.protocol, boxes)
        causes = find_causes(c, matched, threshold, boxes)
        more = {"act": act_errors(e, threshold)} if boxes else {"list": _list(c, causes, e.labels)}
        summaries[f"{metric}@{threshold:g}"] = _summary(c, causes, e) | more
    return summaries


def print_errors(summaries: Mapping[str, dict]) -> None:
    """What `errors` returned as tables."""
    for name, summary in summaries.items():
        rows = [[cause, f"+{row['gain']:.4f}", row["count"]] for cause, row in summary["causes"].items()]
        print_table([f"{name} {summary['mAP']:.4f}", "gain if mended", "errors"], rows)
        if "act" in summary:
            print("kinds of the ACT detector: " + ", ".join(f"{kind} {v:.4f}" for kind, v in summary["act"].items()))
        worst = ", ".join(f"{row['video']} (+{row['cost']:.4f})" for row in summary["worst_videos"])
        print(f"videos whose errors cost most: {worst or 'none'}")


def match_all(e: Evaluation, threshold: float, protocol: str, boxes: bool) -> tuple[Candidates, np.ndarray]:
    """The candidates of any class with an IoU of at least `FAINT` (or the threshold, where that is lower), and the
    ground truth of its class that each detection is matched to, -1 for none: int64 (P,)."""
    least = min(FAINT, threshold)
    c = candidates(e.pred, e.gt, len(e.labels), least, protocol, boxes, e.frame_scores, any_class=True)
    c = c.pairs(c.gt.label[c.j] >= 0)  # people without an action are no ground truth
    return c, matching(c.pairs(c.pred.label[c.i] == c.gt.label[c.j]), threshold)


def find_causes(c: Candidates, matched: np.ndarray, threshold: float, boxes: bool) -> Causes:
    """The first cause that holds of each false positive, and the cause of each miss; see docs/protocol.md.

    Args:
        c, matched: as of `match_all`.
        boxes: they are boxes, which have no association, not tubes.
    """
    wrong = matched < 0
    missed = c.gt.label >= 0
    missed[matched[~wrong]] = False
    same_class = c.pred.label[c.i] == c.gt.label[c.j]
    (same, target), (other, other_target) = (_nearest(c, pairs, missed) for pairs in (same_class, ~same_class))
    joined, piece_of = np.full(len(c.gt.label), -np.inf), np.full(len(wrong), -1)
    loose, wrong_frame = np.full(len(wrong), BOX), np.zeros(len(wrong), bool)
    if boxes:
        in_frame, _, in_video = _annotated(c)
        wrong_frame = in_video & ~in_frame
    else:
        joined, piece_of = broken_links(c, matched, threshold)
        for i in np.flatnonzero(wrong & (same >= FAINT) & (same < threshold)).tolist():
            in_time = _time_iou(c.pred.tubes[i].tube, c.gt.tubes[target[i]].tube, c.rule.spans)
            loose[i] = BOX if same[i] / in_time <= in_time else TIME  # the IoU is their product
    rules = {
        NO_ERROR: ~wrong,
        DUPLICATE: same >= threshold,
        CLASS: other >= threshold,
        LINK: piece_of >= 0,
        BOX: same >= FAINT,
        TIME: wrong_frame,
        BOTH: other >= FAINT,
    }
    cause = np.select(list(rules.values()), [loose if name == BOX else name for name in rules], BACKGROUND)
    target = np.select([cause == CLASS, cause == LINK, wrong], [other_target, piece_of, target], -1)
    of_gt = np.where(missed, MISSED, NO_ERROR)
    mendable = np.flatnonzero(np.isin(cause, (CLASS, BOX, TIME)) & (target >= 0))
    mendable = mendable[missed[target[mendable]]]
    mendable = mendable[np.argsort(c.pred.score[mendable], kind="stable")]
    of_gt[target[mendable]] = cause[mendable]  # the last one written has the best score
    joined = np.where(missed, joined, -np.inf)
    of_gt[joined > -np.inf] = LINK
    return Causes(cause, of_gt, matched, target, joined)


def _nearest(c: Candidates, pairs: np.ndarray, missed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest IoU of each detection among some pairs, float64 (P,), 0 without any, and its ground truth, or -1.

    Of equals one that is `missed`, bool (G,), comes first, then the order of the pairs decides, as in `matching`.
    """
    best, target = np.zeros(len(c.pred.label)), np.full(len(c.pred.label), -1)
    p, g, iou = c.i[pairs], c.j[pairs], c.iou[pairs]
    order = np.lexsort((~missed[g], -iou, p))  # stable
    order = order[np.append(True, np.diff(p[order]) > 0)[: len(order)]]  # the first of each detection
    best[p[order]], target[p[order]] = iou[order], g[order]
    return best, target


def _time_iou(a: Tube, b: Tube, spans: bool) -> float:
    """Common frames / frames of either or, with `spans`, the same of the spans from first to last frame."""
    if spans:
        return float(span_overlap(*a.frames[[0, -1]], *b.frames[[0, -1]]))
    common = len(np.intersect1d(a.frames, b.frames, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _annotated(c: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether there is ground truth of a box's class in its frame, of any class in its frame, and of its class in its
    video: three times bool (P,)."""
    known = c.gt.where(c.gt.label >= 0)
    frames, n = np.unique(known.frame), c.num_classes
    frame, gt_frame = np.searchsorted(frames, c.pred.frame), np.searchsorted(frames, known.frame)
    annotated = np.append(frames, -1)[frame] == c.pred.frame
    in_frame = annotated & np.isin(frame * n + c.pred.label, gt_frame * n + known.label)
    in_video = np.isin(c.pred.video * n + c.pred.label, known.video * n + known.label)
    return in_frame, annotated, in_video


def _summary(c: Candidates, causes: Causes, e: Evaluation) -> dict:
    """What `errors` returns of one threshold, of tubes and of boxes."""
    ap = mended_ap(c, causes, (), e)
    base = mean_ap(ap)
    counts = np.bincount(causes.of_pred[causes.of_pred >= 0], minlength=len(CAUSES))
    counts[MISSED] = (causes.of_gt == MISSED).sum()
    gains = [mean_ap(mended_ap(c, causes, (cause,), e)) - base for cause in range(len(CAUSES))]
    rows = {name: {"gain": gain, "count": int(n)} for name, gain, n in zip(CAUSES, gains, counts, strict=True)}
    everything = mean_ap(mended_ap(c, causes, range(len(CAUSES)), e))
    return {"mAP": base, "causes": rows, "all": everything, "worst_videos": _worst(c, causes, e, ap)}


def mended_ap(c: Candidates, causes: Causes, mended: Sequence[int], e: Evaluation) -> np.ndarray:
    """AP of each class, float64 (num_classes,), with some causes mended; NaN of those that are not in the mean.

    A false positive of such a cause is gone. A ground truth that it would match is found by it, with the best of their
    scores; one that is missed is taken off.
    """
    found, scores = _mended(c, causes, mended)
    kept = np.append(~np.isin(causes.of_pred, mended), np.ones(len(found), bool))
    off = (causes.of_gt == MISSED) & (MISSED in mended)
    correct = np.append(causes.matched >= 0, np.ones(len(found), bool))
    n_gt = np.bincount(c.gt.label[c.gt.label >= 0], minlength=c.num_classes)
    n_left = n_gt - np.bincount(c.gt.label[off], minlength=c.num_classes)
    rows, ap = _by_class(c, found, scores), np.full(c.num_classes, np.nan)
    for label in np.flatnonzero((n_gt > 0) & ~np.isin(e.labels, list(c.rule.left_out))).tolist():
        own = rows[label]
        ap[label] = _ap_of(correct[own[kept[own]]], int(n_left[label]), e.protocol)
    return ap


def _ap_of(correct: np.ndarray, n_gt: int, protocol: str) -> float:
    """`average_precision`; a class without any ground truth left is perfect if it has no detection."""
    return average_precision(correct, n_gt, protocol) if n_gt else float(not len(correct))


def _mended(c: Candidates, causes: Causes, mended: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The ground truths that would be found with some causes mended, int64 (k,), and with which score, float64 (k,)."""
    scores = causes.joined.copy() if LINK in mended else np.full(len(c.gt.label), -np.inf)
    fixes = np.isin(causes.of_pred, [cause for cause in mended if cause in (CLASS, BOX, TIME)]) & (causes.target >= 0)
    fixes[fixes] = causes.of_gt[causes.target[fixes]] != NO_ERROR
    np.maximum.at(scores, causes.target[fixes], c.pred.score[fixes])
    found = np.flatnonzero(scores > -np.inf)
    return found, scores[found]


def _by_class(c: Candidates, found: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    """Of each class the detections and what mending finds (`_mended`), by falling score: the detection's number, or
    P + the place in `found`."""
    rows = np.append(c.ranked, len(c.ranked) + np.arange(len(found)))
    label, score = (np.append(*pair)[rows] for pair in ((c.pred.label, c.gt.label[found]), (c.pred.score, scores)))
    order = np.lexsort((-score, label))
    return np.split(rows[order], np.searchsorted(label[order], np.arange(c.num_classes)))[1:]


def _class_rows(
    c: Candidates, causes: Causes, found: np.ndarray, scores: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each class's rows (`_by_class`) the video, whether it is correct, and whether it is a detection, not found by
    mending."""
    n, k = len(c.ranked), len(found)
    video = np.append(c.pred.video, c.gt.video[found])
    correct = np.append(causes.matched >= 0, np.ones(k, bool))
    return [(video[rows], correct[rows], rows < n) for rows in _by_class(c, found, scores)]


def _worst(c: Candidates, causes: Causes, e: Evaluation, ap: np.ndarray) -> list[dict]:
    """The videos whose errors cost most: "cost" is what the mAP would gain if all errors of this video were mended.

    `ap`, float64 (num_classes,), is that with nothing mended.
    """
    counts = np.zeros((len(c.names), len(CAUSES)), np.int64)
    wrong, missed = causes.of_pred != NO_ERROR, causes.of_gt == MISSED
    np.add.at(counts, (c.pred.video[wrong], causes.of_pred[wrong]), 1)
    np.add.at(counts, (c.gt.video[missed], MISSED), 1)
    found, scores = _mended(c, causes, range(len(CAUSES)))
    videos, classes = [], _class_rows(c, causes, found, scores)
    n_gt = np.bincount(c.gt.label[c.gt.label >= 0], minlength=c.num_classes)
    for video in np.argsort(-counts.sum(1), kind="stable")[:LOOKED_AT].tolist():
        by_cause = {name: int(count) for name, count in zip(CAUSES, counts[video], strict=True) if count}
        if by_cause:
            off = c.gt.label[missed & (c.gt.video == video)]
            labels = [c.pred.label[wrong & (c.pred.video == video)], c.gt.label[found[c.gt.video[found] == video]], off]
            mended, n_left = ap.copy(), n_gt - np.bincount(off, minlength=c.num_classes)
            for label in np.unique(np.concatenate(labels)).tolist():  # the AP of all other classes stays
                if not np.isnan(ap[label]):
                    of_video, correct, predicted = classes[label]
                    kept = np.where(of_video == video, correct, predicted)
                    mended[label] = _ap_of(correct[kept], int(n_left[label]), e.protocol)
            about = {"video": c.names[video], "cost": float(np.nan_to_num(mean_ap(mended) - mean_ap(ap)))}
            videos.append({**about, "errors": sum(by_cause.values()), "causes": by_cause})
    return sorted(videos, key=lambda row: -round(row["cost"], 9))[:WORST]  # equal costs: most errors first


def _list(c: Candidates, causes: Causes, labels: Sequence[str]) -> list[dict]:
    """Every error of tubes: its video, cause, kind, label, place among the video's tubes, first and last frame."""
    rows = []
    sides = (("false positive", causes.of_pred, c.pred.tubes), ("miss", causes.of_gt, c.gt.tubes))
    for kind, cause, tubes in sides:
        for i in np.flatnonzero(cause >= 0).tolist():
            video, place, tube = tubes[i]
            about = {"video": c.names[video], "cause": CAUSES[cause[i]], "kind": kind, "tube": place}
            rows.append({**about, "label": labels[tube.label], "frames": tube.frames[[0, -1]].tolist()})
    return rows


def act_errors(e: Evaluation, threshold: float) -> dict[str, float]:
    """AP and the five kinds of frame-level error of the ACT detector (Kalogeiton et al., ICCV 2017), means of classes.

    E_L: the frame has ground truth of the class, and the box is not matched to it (duplicates too); E_C: it has other
    classes alone, and the box overlaps one by the threshold; E_T: it has none, but the video has the class; E_E: all
    else; E_M: never found. Each is the area under its share of the detections over recall; together with AP they are 1.
    """
    c, matched = match_all(e, threshold, "act", boxes=True)
    wrong = matched < 0
    other, _ = _nearest(c, c.pred.label[c.i] != c.gt.label[c.j], c.gt.label >= 0)
    in_frame, annotated, in_video = _annotated(c)
    kinds = {
        "AP": ~wrong,
        "E_L": wrong & in_frame,
        "E_C": wrong & ~in_frame & annotated & (other >= threshold),
        "E_T": wrong & ~annotated & in_video,
    }
    kinds["E_E"] = ~np.any(list(kinds.values()), axis=0)
    totals: dict[str, list[float]] = {name: [] for name in (*kinds, "E_M")}
    for label in range(len(e.labels)):
        n_gt = int((c.gt.label == label).sum())
        own = c.ranked[c.pred.label[c.ranked] == label]
        correct = ~wrong[own]
        for name, kind in kinds.items() if n_gt else ():
            share = kind[own].cumsum() / np.arange(1, len(own) + 1)
            before = np.append(float(name == "AP"), share[:-1])
            totals[name].append(float((share + before)[correct].sum() / 2 / n_gt))
        if n_gt:
            totals["E_M"].append(1 - correct.sum() / n_gt)
    return {name: float(np.mean(values)) if values else float("nan") for name, values in totals.items()}
