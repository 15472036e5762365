"""Causes of error: what each kind of mistake costs in v-mAP and frame-mAP.

After TIDE (Bolya et al., ECCV 2020), carried over to tubes: every false positive and every missed ground truth gets one
cause, and a cause costs what the mAP would gain if it alone were mended. docs/protocol.md defines the causes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.metrics.average_precision import PROTOCOLS, average_precision
from utils.metrics.bootstrap import mean_of_classes, resampled_classes
from utils.metrics.broken_links import FAINT, broken_links
from utils.metrics.evaluation import Evaluation
from utils.metrics.overlaps import box_pairs, span_overlap, tube_pairs
from utils.results import print_table
from utils.video_map import Ranking, frame_candidates, matching, mean_ap, tube_candidates

CAUSES = ("class", "box", "time", "link", "duplicate", "both", "background", "missed")
CLASS, BOX, TIME, LINK, DUPLICATE, BOTH, BACKGROUND, MISSED = range(len(CAUSES))
NO_ERROR = -1
WORST = 10  # videos that are named
LOOKED_AT = 200  # videos with most errors, among which these are looked for


class Units(NamedTuple):
    """The P detections and G ground truths of all videos, tubes or boxes, and what overlaps.

    names: of the videos, sorted. label, video, frame, tube, gt_*: int64 (P,) and (G,), `tube` which of its video's
    tubes, `frame` -1 of tubes. score, rank: (P,), place among its class by falling score. taken: int64 (P,), the ground
    truth that a detection is matched to, -1 for a false positive. p, g, iou: the pairs of a detection and a ground
    truth, of any class, with an IoU of at least `FAINT`, or the threshold where that is lower.
    """

    names: list[str]
    label: np.ndarray
    video: np.ndarray
    frame: np.ndarray
    tube: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    taken: np.ndarray
    gt_label: np.ndarray
    gt_video: np.ndarray
    gt_frame: np.ndarray
    gt_tube: np.ndarray
    p: np.ndarray
    g: np.ndarray
    iou: np.ndarray


class Causes(NamedTuple):
    """The cause of each detection and each ground truth, `NO_ERROR` where there is none: int64 (P,) and (G,).

    target: int64 (P,), the ground truth that mending would match a false positive to, -1 for none. linked: the
    ground truths that mending the association alone would match, -> the best score of the tubes that are its pieces.
    """

    of_pred: np.ndarray
    of_gt: np.ndarray
    target: np.ndarray
    linked: dict[int, float]


def errors(metric: str, e: Evaluation) -> dict:
    """What each cause costs at every threshold, for `v-mAP` or `frame-mAP`.

    Returns:
        `metric@T` -> "mAP"; "causes": cause -> "gain" of mAP if it alone were mended and "count"; "all": the mAP with
        every cause mended; "worst_videos": those whose errors cost most; "list": every error of tubes.
        For frame-mAP also "act": AP and the five kinds of error of the ACT detector's evaluation, which add up to 1.

    The protocol is one of `PROTOCOLS`.
    """
    summaries = {}
    for threshold in e.thresholds:
        units = collect(metric, e, threshold, e.protocol)
        causes = frame_causes(units, threshold) if metric == "frame-mAP" else tube_causes(units, e, threshold)
        summaries[f"{metric}@{threshold:g}"] = _summary(units, causes, e, metric)
        if metric == "frame-mAP":
            summaries[f"{metric}@{threshold:g}"]["act"] = act_errors(e, threshold)
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


def collect(metric: str, e: Evaluation, threshold: float, protocol: str) -> Units:
    """Detections and ground truth of all classes together, matched as the protocol does."""
    boxes, rule, faint = metric == "frame-mAP", PROTOCOLS[protocol], min(FAINT, threshold)
    names = sorted({*e.pred, *e.gt})
    sides, counts = [], []
    for tubes_of in (e.pred, e.gt):
        rows = [(place, i, tube) for place, name in enumerate(names) for i, tube in enumerate(tubes_of.get(name, ()))]
        times = np.array([len(tube) if boxes else 1 for _, _, tube in rows], np.int64)
        columns = [
            np.array(c, np.int64)
            for c in ([t.label if len(t) else -1 for *_, t in rows], [v for v, *_ in rows], [i for _, i, _ in rows])
        ]
        label, video, tube = (np.repeat(column, times) for column in columns)
        frames = [t.frames for *_, t in rows] if boxes else [np.full(len(rows), -1)]
        sides.append((label, video, np.concatenate([np.zeros(0, np.int64), *frames]), tube))
        counts.append(np.bincount(video, minlength=len(names)))
    starts = [np.append(0, np.cumsum(count)) for count in counts]
    n = len(sides[0][0])
    score, rank, taken = np.zeros(n), np.zeros(n, np.int64), np.full(n, -1)
    args = e.pred, e.gt, len(e.labels), threshold, protocol
    for c in frame_candidates(*args, e.frame_scores) if boxes else tube_candidates(*args):
        own, targets = starts[0][c.video] + c.row, starts[1][c.gt_video] + c.gt_row
        matched = matching(protocol)(c, threshold)
        score[own], rank[own] = c.scores, np.arange(len(own))
        taken[own] = np.where(matched >= 0, np.append(targets, -1)[matched], -1)
    pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for place, name in enumerate(names):
        own, targets = ([i for i, t in enumerate(side.get(name, ())) if len(t)] for side in (e.pred, e.gt))
        if own and targets:
            tubes = [e.pred[name][i] for i in own], [e.gt[name][j] for j in targets]
            if boxes:
                i, j, iou = box_pairs(*tubes, faint, rule.inclusive)
            else:
                i, j, iou = tube_pairs(*tubes, faint, rule.inclusive, rule.spans)
                i, j = np.array(own)[i], np.array(targets)[j]
            pairs.append((starts[0][place] + i, starts[1][place] + j, iou))
    p, g, iou = (np.concatenate(part) for part in zip(*pairs, strict=True))
    known = sides[1][0][g] >= 0  # people without an action are no ground truth
    return Units(names, *sides[0], score, rank, taken, *sides[1], p[known], g[known], iou[known])


def tube_causes(units: Units, e: Evaluation, threshold: float) -> Causes:
    """Causes of v-mAP, see docs/protocol.md."""
    wrong, same, other, target, other_target = _nearest(units)
    first_p, first_g = (np.searchsorted(v, np.arange(len(units.names))) for v in (units.video, units.gt_video))
    linked, pieces = broken_links(e, threshold, units.names, first_p, first_g, units.taken, units.score)
    cause = np.full(len(wrong), NO_ERROR)
    faint = wrong & (same >= FAINT)
    for i in np.flatnonzero(faint & (same < threshold)).tolist():
        name = units.names[units.video[i]]
        tube, gt = e.pred[name][units.tube[i]], e.gt[name][units.gt_tube[target[i]]]
        common = len(np.intersect1d(tube.frames, gt.frames, assume_unique=True))
        in_time = common / (len(tube) + len(gt) - common)
        if PROTOCOLS[e.protocol].spans:
            in_time = float(span_overlap(tube.frames[:1], tube.frames[-1:], *gt.frames[[0, -1]].tolist())[0])
        cause[i] = BOX if same[i] / in_time <= in_time else TIME  # the IoU is their product
    cause[wrong & (same < FAINT)] = BACKGROUND
    cause[wrong & (same < FAINT) & (other >= FAINT)] = BOTH
    for i, g in pieces.items():
        if wrong[i]:
            cause[i], target[i] = LINK, g
    cause[wrong & (other >= threshold)] = CLASS
    cause[wrong & (same >= threshold)] = DUPLICATE
    target = np.where(cause == CLASS, other_target, target)
    return _with_misses(units, cause, target, linked)


def frame_causes(units: Units, threshold: float) -> Causes:
    """Causes of frame-mAP, see docs/protocol.md; a single frame has no association."""
    wrong, same, other, target, other_target = _nearest(units)
    in_frame, in_video = _same_class(units)
    cause = np.where(wrong, BACKGROUND, NO_ERROR)
    cause[wrong & in_video & ~in_frame] = TIME
    cause[wrong & (other >= FAINT) & ~(in_video & ~in_frame)] = BOTH
    cause[wrong & (same >= FAINT)] = BOX
    cause[wrong & (other >= threshold)] = CLASS
    cause[wrong & (same >= threshold)] = DUPLICATE
    return _with_misses(units, cause, np.where(cause == CLASS, other_target, target), {})


def _nearest(units: Units) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which detections are wrong, bool (P,); the best IoU of each with ground truth of its class and of another class,
    0 where they overlap none; the ground truths that these are with, -1 for none."""
    sides = []
    agrees = units.label[units.p] == units.gt_label[units.g]
    for part in (agrees, ~agrees):
        best, target = np.zeros(len(units.label)), np.full(len(units.label), -1)
        p, g, iou = units.p[part], units.g[part], units.iou[part]
        order = np.argsort(iou, kind="stable")
        best[p[order]], target[p[order]] = iou[order], g[order]  # the last one written is the best
        sides.append((best, target))
    (same, target), (other, other_target) = sides
    return (units.taken < 0) & (units.label >= 0), same, other, target, other_target


def _with_misses(units: Units, cause: np.ndarray, target: np.ndarray, linked: dict[int, float]) -> Causes:
    """The same with the causes of the missed ground truths: that of the best detection that mending would match."""
    missed = units.gt_label >= 0
    missed[units.taken[units.taken >= 0]] = False
    of_gt = np.where(missed, MISSED, NO_ERROR)
    mendable = np.flatnonzero(np.isin(cause, (CLASS, BOX, TIME)) & (target >= 0))
    for i in mendable[np.argsort(units.score[mendable], kind="stable")].tolist():
        if missed[target[i]]:
            of_gt[target[i]] = cause[i]
    linked = {g: score for g, score in linked.items() if missed[g]}
    of_gt[list(linked)] = LINK
    return Causes(cause, of_gt, np.where(cause >= 0, target, -1), linked)


def _same_class(units: Units) -> tuple[np.ndarray, np.ndarray]:
    """Whether there is ground truth of a detection's class in its frame, and in its video: bool (P,) twice."""
    frames = np.unique(np.concatenate([units.frame, units.gt_frame]), return_inverse=True)[1]
    split = np.split(frames, [len(units.frame)])
    n_frames, n_labels = frames.max(initial=0) + 1, max(units.label.max(initial=0), units.gt_label.max(initial=0)) + 2
    own, gt = ((v * n_labels + label) for v, label in ((units.video, units.label), (units.gt_video, units.gt_label)))
    return np.isin(own * n_frames + split[0], gt * n_frames + split[1]), np.isin(own, gt)


def _summary(units: Units, causes: Causes, e: Evaluation, metric: str) -> dict:
    """What `errors` returns of one threshold."""
    n, protocol = len(e.labels), e.protocol
    ap = mended_ap(units, causes, (), n, protocol)
    left_out = np.isin(e.labels, list(PROTOCOLS[protocol].left_out))
    ap[left_out] = np.nan
    base = mean_ap(ap)
    counts = np.bincount(causes.of_pred[causes.of_pred >= 0], minlength=len(CAUSES))
    counts[MISSED] = (causes.of_gt == MISSED).sum()
    rows = {}
    for cause, name in enumerate(CAUSES):
        mended = np.where(left_out, np.nan, mended_ap(units, causes, (cause,), n, protocol))
        rows[name] = {"gain": mean_ap(mended) - base, "count": int(counts[cause])}
    everything = np.where(left_out, np.nan, mended_ap(units, causes, range(len(CAUSES)), n, protocol))
    summary = {"mAP": base, "causes": rows, "all": mean_ap(everything), "worst_videos": _worst(units, causes, e, base)}
    return summary | ({} if metric == "frame-mAP" else {"list": _list(units, causes, e)})


def mended_ap(units: Units, causes: Causes, mended: Sequence[int], n_labels: int, protocol: str) -> np.ndarray:
    """AP of every class with some causes mended, float64 (n_labels,), NaN where a class has no ground truth.

    A false positive of such a cause is gone. A ground truth that it would match is found by it, with the best of their
    scores; one that is missed is taken off. A class without any ground truth left is perfect if it has no detection.
    """
    gone = np.isin(causes.of_pred, list(mended)) & (causes.of_pred != NO_ERROR)
    best = _mended_scores(units, causes, mended)
    taken_off = (causes.of_gt == MISSED) & (MISSED in mended)
    extra = np.array(list(best), np.int64)
    extra_scores = np.array(list(best.values()))
    ap = np.full(n_labels, np.nan)
    keep = np.flatnonzero(~gone)
    keep = keep[np.lexsort((units.rank[keep], units.label[keep]))]
    bounds = np.searchsorted(units.label[keep], np.arange(n_labels + 1))
    for label in range(n_labels):
        own, added = keep[bounds[label] : bounds[label + 1]], units.gt_label[extra] == label
        gts = units.gt_label == label
        n_gt = int((gts & ~taken_off).sum())
        scores = np.concatenate([units.score[own], extra_scores[added]])
        correct = np.concatenate([units.taken[own] >= 0, np.ones(added.sum(), bool)])
        if gts.any():
            correct = correct[np.argsort(-scores, kind="stable")]
            ap[label] = average_precision(correct, n_gt, protocol) if n_gt else float(not len(correct))
    return ap


def _mended_scores(units: Units, causes: Causes, mended: Sequence[int]) -> dict[int, float]:
    """The ground truths that would be found with some causes mended -> with which score."""
    best = dict(causes.linked) if LINK in mended else {}
    fixes = np.isin(causes.of_pred, [c for c in mended if c in (CLASS, BOX, TIME)]) & (causes.target >= 0)
    free = np.append(causes.of_gt != NO_ERROR, False)
    for i in np.flatnonzero(fixes & free[causes.target]).tolist():
        g = int(causes.target[i])
        best[g] = max(best.get(g, -np.inf), float(units.score[i]))
    return best


def _worst(units: Units, causes: Causes, e: Evaluation, base: float) -> list[dict]:
    """The videos whose errors cost most: "cost" is what the mAP would gain if all errors of this video were mended."""
    n = len(units.names)
    counts = np.zeros((n, len(CAUSES)), np.int64)
    wrong, missed = causes.of_pred != NO_ERROR, causes.of_gt == MISSED
    np.add.at(counts, (units.video[wrong], causes.of_pred[wrong]), 1)
    np.add.at(counts, (units.gt_video[missed], MISSED), 1)
    looked_at = np.argsort(-counts.sum(1), kind="stable")[:LOOKED_AT]
    # A mended video loses its false positives and its missed ground truth, and gains what mending finds. As for a
    # bootstrap these are "videos" that count or not: 0 to n - 1 what it loses, n to 2n - 1 what it gains, 2n the rest.
    mended = np.zeros((n, len(looked_at)), np.int64)
    mended[looked_at, np.arange(len(looked_at))] = 1
    times = np.concatenate([1 - mended, mended, np.ones((1, len(looked_at)), np.int64)])
    best = _mended_scores(units, causes, range(len(CAUSES)))
    recovered = np.array(list(best), np.int64)
    rankings = []
    for label, name in enumerate(e.labels):
        own, added = np.flatnonzero(units.label == label), recovered[units.gt_label[recovered] == label]
        own = own[np.argsort(units.rank[own])]
        right = np.append(units.taken[own] >= 0, np.ones(len(added), bool))
        place = np.append(np.where(wrong[own], units.video[own], 2 * n), n + units.gt_video[added])
        order = np.argsort(-np.append(units.score[own], [best[g] for g in added.tolist()]), kind="stable")
        gts = (units.gt_label == label) & (name not in PROTOCOLS[e.protocol].left_out)
        n_gt = np.bincount(np.where(missed, units.gt_video, 2 * n)[gts], minlength=2 * n + 1)
        rankings.append(Ranking(right[order], place[order], n_gt))
    cost = np.nan_to_num(mean_of_classes(resampled_classes(rankings, times, e.protocol)) - base)
    rows = []
    for column in np.argsort(-cost, kind="stable")[:WORST].tolist():
        of_video = counts[looked_at[column]]
        by_cause = {name: int(count) for name, count in zip(CAUSES, of_video, strict=True) if count}
        if by_cause:
            about = {"video": units.names[looked_at[column]], "cost": float(cost[column])}
            rows.append({**about, "errors": int(of_video.sum()), "causes": by_cause})
    return rows


def _list(units: Units, causes: Causes, e: Evaluation) -> list[dict]:
    """Every error of tubes: its video, cause, kind, label, place among the video's tubes, first and last frame."""
    rows = []
    sides = (
        ("false positive", causes.of_pred, units.video, units.tube, e.pred),
        ("miss", causes.of_gt, units.gt_video, units.gt_tube, e.gt),
    )
    for kind, cause, video, index, tubes_of in sides:
        for i in np.flatnonzero(cause >= 0).tolist():
            name, place = units.names[video[i]], int(index[i])
            tube = tubes_of[name][place]
            frames = [int(tube.frames[0]), int(tube.frames[-1])] if len(tube) else []
            about = {"video": name, "cause": CAUSES[cause[i]], "kind": kind, "tube": place}
            rows.append({**about, "label": e.labels[tube.label], "frames": frames})
    return rows


def act_errors(e: Evaluation, threshold: float) -> dict[str, float]:
    """AP and the five kinds of frame-level error of the ACT detector (Kalogeiton et al., ICCV 2017), means of classes.

    E_L: the frame has ground truth of the class, and the box is not matched to it (duplicates too); E_C: it has other
    classes alone, and the box overlaps one by the threshold; E_T: it has none, but the video has the class; E_E: all
    else; E_M: never found. Each is the area under its share of the detections over recall; together with AP they are 1.
    """
    units = collect("frame-mAP", e, threshold, "act")
    wrong, _, other, _, _ = _nearest(units)
    in_frame, in_video = _same_class(units)
    gt_frames, frames = ((v << 41) + f for v, f in ((units.gt_video, units.gt_frame), (units.video, units.frame)))
    annotated = np.isin(frames, gt_frames[units.gt_label >= 0])
    kinds = {
        "AP": ~wrong,
        "E_L": wrong & in_frame,
        "E_C": wrong & ~in_frame & annotated & (other >= threshold),
        "E_T": wrong & ~annotated & in_video,
    }
    kinds["E_E"] = ~np.any(list(kinds.values()), axis=0)
    totals: dict[str, list[float]] = {name: [] for name in (*kinds, "E_M")}
    for label in range(len(e.labels)):
        n_gt = int((units.gt_label == label).sum())
        own = np.flatnonzero(units.label == label)
        own = own[np.argsort(units.rank[own])]
        correct = ~wrong[own]
        for name, kind in kinds.items() if n_gt else ():
            share = kind[own].cumsum() / np.arange(1, len(own) + 1)
            before = np.append(float(name == "AP"), share[:-1])
            totals[name].append(float((share + before)[correct].sum() / 2 / n_gt))
        if n_gt:
            totals["E_M"].append(1 - correct.sum() / n_gt)
    return {name: float(np.mean(values)) if values else float("nan") for name, values in totals.items()}
