"""The metrics of action tubes by their names in tables and results files, whatever predicted the tubes.

A metric is one function from an `Evaluation` to its values, in `METRICS`. A protocol is a row of
`utils.video_map.PROTOCOLS`, or, where a benchmark's own code defines a metric otherwise, a function in `OFFICIAL`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tube
from utils.metrics import ava
from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.bootstrap import draw_resamples, interval, mean_of_classes, resampled_classes
from utils.metrics.multisports import RANGES
from utils.misc import InputError
from utils.results import cell, print_table
from utils.video_map import (
    Ranking,
    ap_of_rankings,
    calc_motion_ap,
    calc_video_map,
    frame_rankings,
    mean_ap,
    motion_rankings,
    video_rankings,
)

RESAMPLES = "resamples"
"""Key of a metric's values in every resample, which lie beside the results file, not in it."""


class Evaluation(NamedTuple):
    """What a metric compares, and how.

    pred: every video's action tubes. frame_scores: the scores of each of them in each of its frames, float (T,).
    gt: every video's ground truth. sizes: every video's width, height and number of frames, 0 where unknown.
    bootstrap: the number of resamples of videos that intervals are made of, 0: none. seed: of their draws.
    key_frames, empty_frames: of videos annotated on key frames, all of these, and those that are listed without people.
    ava_csv: of a data set in AVA's format, what `datasets.formats.ava.csv_writing` says.
    """

    pred: dict[str, list[Tube]]
    frame_scores: dict[str, list[np.ndarray]]
    gt: dict[str, list[Tube]]
    sizes: dict[str, tuple[int, int, int]]
    labels: list[str]
    thresholds: list[float]
    protocol: str = "voc"
    count_duplicates: bool = False
    bootstrap: int = 0
    seed: int = 42
    key_frames: Mapping[str, np.ndarray | None] = MappingProxyType({})
    empty_frames: Mapping[str, np.ndarray | None] = MappingProxyType({})
    ava_csv: Mapping[str, object] = MappingProxyType({})


def video_map(e: Evaluation) -> dict:
    """`v-mAP@T` and `AP@T` by class; printed as a table. With a bootstrap motion-AP too, so that results can be
    compared by motion."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol, e.count_duplicates
    if e.protocol not in PROTOCOLS:
        return ap_by_class("v-mAP", calc_video_map(*args), e)
    rankings = video_rankings(*args)
    metrics = ap_by_class("v-mAP", ap_of_rankings(rankings, e.protocol), e, rankings)
    return _merged(metrics, motion_ap(e)) if e.bootstrap and not e.count_duplicates else metrics


def frame_map(e: Evaluation) -> dict:
    """`frame-mAP@T` and `AP@T` by class; printed as a table."""
    rankings = frame_rankings(e.pred, e.gt, len(e.labels), e.thresholds, e.protocol, e.frame_scores)
    return ap_by_class("frame-mAP", ap_of_rankings(rankings, e.protocol), e, rankings)


def motion_ap(e: Evaluation) -> dict:
    """`motion-AP@T` by motion category; printed as a table."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol
    resamples = {}
    if e.protocol not in PROTOCOLS:
        ap = calc_motion_ap(*args)
    else:
        rankings = motion_rankings(*args)
        ap = {c: np.where(_left_out(e), np.nan, ap_of_rankings(rows, e.protocol)) for c, rows in rankings.items()}
        resamples = _resamples("motion-AP", rankings, e)
    means = {category: [mean_ap(row) for row in ap[category]] for category in MOTION_CATEGORIES}
    metrics: dict = {
        f"motion-AP@{threshold:g}": {category: means[category][i] for category in MOTION_CATEGORIES}
        for i, threshold in enumerate(e.thresholds)
    }
    intervals = _intervals(resamples, metrics)
    names = {category: [f"motion-AP@{t:g}/{category}" for t in e.thresholds] for category in MOTION_CATEGORIES}
    print_thresholds("motion-AP", e.thresholds, means, names, intervals)
    return metrics | _kept(resamples, intervals)


def ava_map(e: Evaluation) -> dict:
    """`frame-mAP@T` and `AP@T` by class, by AVA's rules (`utils.metrics.ava`); printed as a table."""
    more = e.key_frames if e.protocol == "ava-2019" else e.empty_frames
    ap = ava.tubes_ap(e.pred, e.frame_scores, e.gt, more, len(e.labels), e.thresholds)
    return ap_by_class("frame-mAP", ap, e)


METRICS: dict[str, Callable[[Evaluation], dict]] = {
    "v-mAP": video_map,
    "motion-AP": motion_ap,
    "frame-mAP": frame_map,
}
OFFICIAL: dict[tuple[str, str], Callable[[Evaluation], dict]] = {
    ("published", "v-mAP"): video_map,
    ("published", "motion-AP"): motion_ap,
    ("ava", "frame-mAP"): ava_map,
    ("ava-2019", "frame-mAP"): ava_map,
}
"""(protocol, metric) -> the metric by that benchmark's own rules, where these are more than a row of `PROTOCOLS`."""
PROTOCOL_NAMES = tuple(dict.fromkeys([*PROTOCOLS, *(protocol for protocol, _ in OFFICIAL)]))


def measure(metric: str, e: Evaluation) -> dict:
    """The values of a metric by their names in the results file; prints them as tables.

    Raises:
        InputError: the protocol does not define this metric, or a bootstrap has one video alone.
    """
    if e.bootstrap and len({*e.pred, *e.gt}) < 2:
        raise InputError("--bootstrap: draws videos, and there is one alone; intervals need several")
    if (e.protocol, metric) in OFFICIAL:
        return OFFICIAL[e.protocol, metric](e)
    if e.protocol not in PROTOCOLS:
        known = ", ".join(metric for protocol, metric in OFFICIAL if protocol == e.protocol)
        raise InputError(f"--protocol {e.protocol}: has no {metric}; it has {known}")
    return METRICS[metric](e)


def ap_by_class(
    metric: str, ap: np.ndarray, e: Evaluation, rankings: Sequence[Sequence[Ranking]] | None = None
) -> dict:
    """The mean and the AP of every class by their names in the results file; printed as a table.

    Args:
        metric: the mean's name.
        ap: float64 (thresholds, classes).
        e: what was evaluated.
        rankings: what `ap` was computed from, which a bootstrap needs.
    """
    metrics: dict = {}
    ap = np.where(_left_out(e), np.nan, ap)
    left_out = [label for label, out in zip(e.labels, _left_out(e), strict=True) if out]
    for threshold, row in zip(e.thresholds, ap, strict=True):
        metrics[f"{metric}@{threshold:g}"] = mean_ap(row)
        metrics[f"AP@{threshold:g}"] = dict(zip(e.labels, row, strict=True))
    by_class = dict(zip(e.labels, ap.T, strict=True))
    ranges = {}
    for name, levels in RANGES.items() if e.protocol == "multisports" else ():
        rows = [i for i, threshold in enumerate(e.thresholds) if np.isclose(threshold, levels).any()]
        if len(rows) == len(levels):
            metrics[f"{metric}@{name}"] = mean_ap(ap[rows].mean(0))
            ranges[f"{metric}@{name}"] = [f"{metric}@{e.thresholds[i]:g}" for i in rows]
    metrics["without_gt"] = [label for label, row in by_class.items() if np.isnan(row).all() and label not in left_out]
    shown = {label: row for label, row in by_class.items() if not np.isnan(row).all()}
    resamples = _resamples(metric, {"": rankings or []}, e)
    resamples |= {name: np.mean([resamples[part] for part in parts], 0) for name, parts in ranges.items() if resamples}
    intervals = _intervals(resamples, metrics)
    for name in ranges:
        print(f"{name}: {_shown(metrics[name], name, intervals)}")
    names = {label: [f"AP@{t:g}/{label}" for t in e.thresholds] for label in shown}
    names[metric] = [f"{metric}@{t:g}" for t in e.thresholds]
    print_thresholds("AP", e.thresholds, shown | {metric: [mean_ap(row) for row in ap]}, names, intervals)
    if left_out:
        print(f"left out, not evaluated by this protocol: {', '.join(left_out)}")
    if metrics["without_gt"]:
        print(f"left out, without ground truth: {', '.join(metrics['without_gt'])}")
    return metrics | _kept(resamples, intervals)


def _left_out(e: Evaluation) -> np.ndarray:
    """Which labels the protocol does not evaluate, bool (num_classes,)."""
    return np.isin(e.labels, list(PROTOCOLS[e.protocol].left_out) if e.protocol in PROTOCOLS else [])


def _resamples(
    metric: str, rankings: Mapping[str, Sequence[Sequence[Ranking]]], e: Evaluation
) -> dict[str, np.ndarray]:
    """Values of a metric in every resample, float64 (B,), by their names: `v-mAP@0.5`, `AP@0.5/walk`,
    `motion-AP@0.5/small`. `rankings` by category; with category "" by class too."""
    values: dict[str, np.ndarray] = {}
    if not e.bootstrap:
        return values
    times = draw_resamples(len({*e.pred, *e.gt}), e.bootstrap, e.seed)
    for category, rows in rankings.items():
        for threshold, row in zip(e.thresholds, rows, strict=True):
            ap = resampled_classes(row, times, e.protocol)
            ap[_left_out(e)] = np.nan
            values[f"{metric}@{threshold:g}" + f"/{category}" * bool(category)] = mean_of_classes(ap)
            if not category:
                values |= {f"AP@{threshold:g}/{label}": of for label, of in zip(e.labels, ap, strict=True)}
    return values


def _intervals(resamples: Mapping[str, np.ndarray], metrics: Mapping) -> dict[str, list[float]]:
    """The intervals, within 0 and 1, of the metrics that were resampled, by the names of the resamples."""
    intervals = {}
    for name, values in resamples.items():
        metric, _, part = name.partition("/")
        point = metrics[metric][part] if part else metrics[metric]
        low, high = interval(values, point)
        intervals[name] = [max(low, 0.0), min(high, max(point, 1.0))]
    return intervals


def _kept(resamples: dict[str, np.ndarray], intervals: Mapping[str, list[float]]) -> dict:
    """What the results keep of a bootstrap: `intervals`, with the keys of the metrics, and all values."""
    nested: dict = {}
    for name, bounds in intervals.items():
        metric, _, part = name.partition("/")
        if part:
            nested.setdefault(metric, {})[part] = bounds
        else:
            nested[metric] = bounds
    return {"intervals": nested, RESAMPLES: resamples} if resamples else {}


def _merged(a: dict, b: dict) -> dict:
    """Two results, whose intervals and resamples are joined."""
    return a | b | {key: a.get(key, {}) | b.get(key, {}) for key in ("intervals", RESAMPLES)}


def print_thresholds(
    title: str,
    levels: list[float],
    rows: Mapping,
    names: Mapping[str, Sequence[str]] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """A table of rows with a value for each threshold, and with its interval where `intervals` has its name."""
    if intervals:
        rows = {
            row: [_shown(*pair, intervals) for pair in zip(values, names[row], strict=True)]
            for row, values in rows.items()
        }
    print_table([title, *(f"@{level:g}" for level in levels)], [[name, *values] for name, values in rows.items()])


def _shown(value: float, name: str, intervals: Mapping[str, Sequence[float]]) -> str:
    """A metric, with its interval where `intervals` has its name."""
    return cell(value) + (f" [{', '.join(map(cell, intervals[name]))}]" if name in intervals else "")
