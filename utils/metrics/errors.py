"""Causes of error: what each kind of mistake costs in v-mAP and frame-mAP.

After TIDE (Bolya et al., ECCV 2020), carried over to tubes: every false positive and every missed ground truth gets one
cause, and a cause costs what the mAP would gain if it alone were mended. docs/protocol.md defines the causes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube
from utils.metrics.average_precision import PROTOCOLS, average_precision
from utils.metrics.broken_links import MIN_OVERLAP, broken_links
from utils.metrics.evaluation import Evaluation
from utils.metrics.matching import Candidates, candidates, matching
from utils.metrics.overlaps import span_overlap
from utils.results import print_table
from utils.video_map import ap_of_rankings, by_class, mean_ap

CAUSES = ("class", "box", "time", "link", "duplicate", "both", "background", "missed")
CLASS, BOX, TIME, LINK, DUPLICATE, BOTH, BACKGROUND, MISSED = range(len(CAUSES))
NO_ERROR = -1
N_WORST = 10  # videos that are named
N_EXAMINED = 200  # videos with most errors, among which these are looked for


class Causes(NamedTuple):
    """The cause of each of P detections and G ground truths, `NO_ERROR` where there is none: int64 (P,) and (G,).

    matched: int64 (P,), the ground truth that a detection is matched to, -1 for a false positive. target: int64 (P,),
    the one that a false positive would be matched to without its error, -1 for none. joined: float64 (G,), the score
    with which a better association alone would match a missed ground truth, -inf where it would not.
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
        every cause mended; "videos_with_errors": their number; "worst_videos": those whose errors cost most, among the
        `N_EXAMINED` with most errors; "list": every error of tubes.
        For frame-mAP also "act": AP and the five kinds of error of the ACT detector's evaluation, which add up to 1.

    The protocol is one of `PROTOCOLS`.
    """
    boxes, summaries = metric == "frame-mAP", {}
    every = _overlapping(e, e.thresholds, e.protocol, boxes)
    for threshold in e.thresholds:
        c, matched = match_all(every, threshold)
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
        among = f", of the {N_EXAMINED} with most errors" * (summary["videos_with_errors"] > N_EXAMINED)
        print(f"videos whose errors cost most{among}: {worst or 'none'}")


def _overlapping(e: Evaluation, thresholds: Sequence[float], protocol: str, boxes: bool) -> Candidates:
    """The candidates of any class with an IoU of at least `MIN_OVERLAP` (or the lowest threshold); people without an
    action are no ground truth."""
    min_iou = min(MIN_OVERLAP, *thresholds)
    c = candidates(e.pred, e.gt, len(e.labels), min_iou, protocol, boxes, any_class=True)
    return c.with_pairs(c.gt.label[c.j] >= 0)


def match_all(c: Candidates, threshold: float) -> tuple[Candidates, np.ndarray]:
    """The candidates with an IoU of at least `MIN_OVERLAP` (or a lower threshold), and the ground truth of its class
    that each detection is matched to, -1 for none: int64 (P,)."""
    c = c.with_pairs(c.iou >= min(MIN_OVERLAP, threshold))
    return c, matching(c.with_pairs(c.pred.label[c.i] == c.gt.label[c.j]), threshold)


def find_causes(c: Candidates, matched: np.ndarray, threshold: float, boxes: bool) -> Causes:
    """The first cause that holds of each false positive, and the cause of each miss; see docs/protocol.md.

    `c` and `matched` are from `match_all`; `boxes`, unlike tubes, have no association.
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
        for i in np.flatnonzero(wrong & (same >= MIN_OVERLAP) & (same < threshold)).tolist():
            in_time = _time_iou(c.pred.tubes[i].tube, c.gt.tubes[target[i]].tube, c.rule.spans)
            loose[i] = BOX if same[i] / in_time <= in_time else TIME  # the IoU is their product
    rules = {
        NO_ERROR: ~wrong,
        DUPLICATE: same >= threshold,
        CLASS: other >= threshold,
        LINK: piece_of >= 0,
        BOX: same >= MIN_OVERLAP,
        TIME: wrong_frame,
        BOTH: other >= MIN_OVERLAP,
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
    ap = ap_of_rankings([by_class(c, causes.matched >= 0)], e.protocol)[0]
    ap[np.isin(e.labels, list(PROTOCOLS[e.protocol].left_out))] = np.nan
    base, everywhere = mean_ap(ap), np.ones(len(c.names), bool)
    mended_ap = mending(c, causes, range(len(CAUSES)), ap, e.protocol)
    wrong, missed = causes.of_pred != NO_ERROR, causes.of_gt == MISSED
    counts = np.zeros((len(c.names), len(CAUSES)), np.int64)
    np.add.at(counts, (c.pred.video[wrong], causes.of_pred[wrong]), 1)
    np.add.at(counts, (c.gt.video[missed], MISSED), 1)
    each = [mending(c, causes, [cause], ap, e.protocol)(everywhere) for cause in range(len(CAUSES))]
    gains = [mean_ap(mended) - base for mended in each]
    rows = {name: {"gain": gain, "count": int(n)} for name, gain, n in zip(CAUSES, gains, counts.sum(0), strict=True)}
    return {
        "mAP": base,
        "causes": rows,
        "all": mean_ap(mended_ap(everywhere)),
        "videos_with_errors": int(counts.any(1).sum()),
        "worst_videos": _worst(c.names, counts, mended_ap, base),
    }


def mending(
    c: Candidates, causes: Causes, mended: Sequence[int], ap: np.ndarray, protocol: str
) -> Callable[[np.ndarray], np.ndarray]:
    """AP with the causes `mended` mended in some of the videos; `ap`, float64 (classes,), is that with nothing mended.

    A false positive of such a cause is gone. A ground truth that such false positives would match is matched, with the
    best of their scores; with the cause "missed", a missed one is taken off.

    Returns:
        A function of the videos in which they are mended, bool (videos,), that gives the AP of each class, NaN where
        `ap` is. A class without any ground truth left is perfect if it has no detection.
    """
    scores = causes.joined.copy() if LINK in mended else np.full(len(c.gt.label), -np.inf)
    fixes = np.isin(causes.of_pred, [cause for cause in mended if cause in (CLASS, BOX, TIME)]) & (causes.target >= 0)
    fixes[fixes] = causes.of_gt[causes.target[fixes]] != NO_ERROR
    np.maximum.at(scores, causes.target[fixes], c.pred.score[fixes])
    mends = np.flatnonzero(scores > -np.inf)  # ground truth that is matched once the causes are mended

    # of each detection, and of each that mending finds, before and after: 1 correct, 0 a false positive, -1 absent
    correct = (causes.matched >= 0).astype(np.int8)
    before = np.append(correct, np.full(len(mends), -1, np.int8))
    after = np.append(np.where(np.isin(causes.of_pred, mended), -1, correct), np.ones(len(mends), np.int8))
    video, label = np.append(c.pred.video, c.gt.video[mends]), np.append(c.pred.label, c.gt.label[mends])
    ranked = np.append(c.ranked, len(c.ranked) + np.arange(len(mends)))
    ranked = ranked[np.lexsort((-np.append(c.pred.score, scores[mends])[ranked], label[ranked]))]
    of_classes = np.split(ranked, np.searchsorted(label[ranked], np.arange(c.num_classes)))[1:]
    known, missed = c.gt.label >= 0, (causes.of_gt == MISSED) & (MISSED in mended)
    n_gt, off = np.zeros((2, c.num_classes, len(c.names)), np.int64)
    np.add.at(n_gt, (c.gt.label[known], c.gt.video[known]), 1)
    np.add.at(off, (c.gt.label[missed], c.gt.video[missed]), 1)
    changed = off > 0  # bool (classes, videos)
    changed[label[before != after], video[before != after]] = True

    def mended_ap(videos: np.ndarray) -> np.ndarray:
        values = ap.copy()
        for k in np.flatnonzero(changed[:, videos].any(1) & ~np.isnan(ap)):
            own = of_classes[k]
            state = np.where(videos[video[own]], after[own], before[own])
            correct, n = state[state >= 0] == 1, int((n_gt[k] - off[k] * videos).sum())
            values[k] = average_precision(correct, n, protocol) if n else float(not len(correct))
        return values

    return mended_ap


def _worst(names: Sequence[str], counts: np.ndarray, mended_ap: Callable, base: float) -> list[dict]:
    """The videos whose errors cost most: "cost" is what the mAP would gain if all errors of this video were mended.

    `counts`: int64 (videos, causes). `mended_ap`: of `mending` every cause. `base`: the mAP with nothing mended.
    """
    videos = []
    for video in np.argsort(-counts.sum(1), kind="stable")[:N_EXAMINED].tolist():
        if not counts[video].any():
            break
        cost = mean_ap(mended_ap(np.arange(len(names)) == video)) - base
        by_cause = {name: int(count) for name, count in zip(CAUSES, counts[video], strict=True) if count}
        about = {"video": names[video], "cost": float(np.nan_to_num(cost))}
        videos.append({**about, "errors": int(counts[video].sum()), "causes": by_cause})
    return sorted(videos, key=lambda row: -round(row["cost"], 9))[:N_WORST]  # equal costs: most errors first


def _list(c: Candidates, causes: Causes, labels: Sequence[str]) -> list[dict]:
    """Every error of tubes: its video, cause, kind, label, index among the video's tubes, first and last frame."""
    rows = []
    sides = (("false positive", causes.of_pred, c.pred.tubes), ("miss", causes.of_gt, c.gt.tubes))
    for kind, cause, tubes in sides:
        for i in np.flatnonzero(cause >= 0).tolist():
            video, index, tube = tubes[i]
            about = {"video": c.names[video], "cause": CAUSES[cause[i]], "kind": kind, "tube": index}
            rows.append({**about, "label": labels[tube.label], "frames": tube.frames[[0, -1]].tolist()})
    return rows


def act_errors(e: Evaluation, threshold: float) -> dict[str, float]:
    """AP and the five kinds of frame-level error of the ACT detector (Kalogeiton et al., ICCV 2017), means of classes.

    E_L: the frame has ground truth of the class, and the box is not matched to it (duplicates too); E_C: it has other
    classes alone, and the box overlaps one by the threshold; E_T: it has none, but the video has the class; E_E: all
    else; E_M: never found. Each is the area under its share of the detections over recall; together with AP they are 1.
    """
    c, matched = match_all(_overlapping(e, [threshold], "act", boxes=True), threshold)
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
