"""The metrics of action tubes by their names in tables and results files, whatever predicted the tubes.

A metric is one function from an `Evaluation` to its values, in `METRICS`. A protocol is a row of
`utils.metrics.average_precision.PROTOCOLS` or, where a benchmark's own code defines metrics otherwise, of `OFFICIAL`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube
from utils.metrics import ava
from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.bootstrap import draw_resamples, interval, resampled_ap
from utils.metrics.matching import candidates
from utils.metrics.multisports import RANGES
from utils.misc import InputError
from utils.results import cell, flat, print_table
from utils.video_map import (
    Ranking,
    ap_of_rankings,
    calc_motion_ap,
    calc_video_map,
    mean_ap,
    motion_rankings,
    rankings_at,
    video_rankings,
)

RESAMPLES = "resamples"
"""Key of a metric's values in every resample, which lie beside the results file, not in it."""


class Evaluation(NamedTuple):
    """What a metric compares, and how.

    pred: every video's action tubes. gt: every video's ground truth. sizes: every video's width, height and number of
    frames, 0 where unknown.
    bootstrap: the number of resamples of videos that intervals are made of, 0: none. seed: of their draws.
    key_frames, empty_frames: of videos annotated on key frames, all of these, and those that are listed without people.
    subset: the names of its videos, with those that are left out.
    ava_csv: of a data set in AVA's format, what `datasets.formats.ava.csv_writing` says.
    """

    pred: dict[str, list[Tube]]
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
    subset: Sequence[str] = ()
    ava_csv: Mapping[str, object] = MappingProxyType({})


def video_map(e: Evaluation) -> dict:
    """`v-mAP@T` and `AP@T` by class; printed as a table. With a bootstrap motion-AP too, so that results can be
    compared by motion."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol, e.count_duplicates
    if e.protocol not in PROTOCOLS:
        return ap_by_class("v-mAP", calc_video_map(*args), e)
    metrics = ap_by_class("v-mAP", _sampled_ap(video_rankings(*args), e), e)
    if not e.bootstrap or e.count_duplicates:
        return metrics
    motion = motion_ap(e)
    return metrics | motion | {key: metrics[key] | motion[key] for key in ("intervals", RESAMPLES)}


def frame_map(e: Evaluation) -> dict:
    """`frame-mAP@T` and `AP@T` by class; printed as a table. By `utils.metrics.ava` for the protocols `ava`."""
    if e.protocol not in PROTOCOLS:
        more = e.key_frames if e.protocol == "ava-2019" else e.empty_frames
        ap = ava.tubes_ap(e.pred, e.gt, more, len(e.labels), e.thresholds)
        return ap_by_class("frame-mAP", ap, e)
    c = candidates(e.pred, e.gt, len(e.labels), min(e.thresholds), e.protocol, boxes=True)
    return ap_by_class("frame-mAP", _sampled_ap(rankings_at(c, e.thresholds), e), e)


def motion_ap(e: Evaluation) -> dict:
    """`motion-AP@T` by motion category; printed as a table."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol
    if e.protocol in PROTOCOLS:
        by_category = {category: _sampled_ap(rankings, e) for category, rankings in motion_rankings(*args).items()}
    else:
        by_category = {category: ap[..., None] for category, ap in calc_motion_ap(*args).items()}
    means = {category: [mean_ap(row) for row in ap] for category, ap in by_category.items()}
    _print_thresholds("motion-AP", e, means)
    values = {
        f"motion-AP@{threshold:g}": {category: rows[i] for category, rows in means.items()}
        for i, threshold in enumerate(e.thresholds)
    }
    return _results(values)


METRICS: dict[str, Callable[[Evaluation], dict]] = {
    "v-mAP": video_map,
    "motion-AP": motion_ap,
    "frame-mAP": frame_map,
}
OFFICIAL = {"published": ("v-mAP", "motion-AP"), "ava": ("frame-mAP",), "ava-2019": ("frame-mAP",)}
"""Protocol that is more than a row of `PROTOCOLS` -> the metrics that it defines. A new one also needs a branch in
`frame_map`, `calc_video_map` or `calc_motion_ap`, whichever it defines."""
PROTOCOL_NAMES = (*PROTOCOLS, *OFFICIAL)


def check_metric(metric: str, protocol: str) -> None:
    """InputError where the protocol does not define this metric."""
    known = OFFICIAL.get(protocol, METRICS)
    if metric not in known:
        raise InputError(f"--protocol {protocol}: has no {metric}; it has {', '.join(known)} (--metric)")


def measure(metric: str, e: Evaluation) -> dict:
    """The values of a metric by their names in the results file; prints them as tables.

    Raises:
        InputError: the protocol does not define this metric, or a bootstrap has one video alone.
    """
    if e.bootstrap and len({*e.pred, *e.gt}) < 2:
        raise InputError("--bootstrap: draws videos, and there is one alone; intervals need several")
    check_metric(metric, e.protocol)
    return METRICS[metric](e)


def ap_by_class(metric: str, ap: np.ndarray, e: Evaluation) -> dict:
    """The mean, by the name `metric`, and the AP of every class by their names in the results file; printed as a table.

    `ap`: float64 (thresholds, classes), or with resamples (thresholds, classes, 1 + B), the first the AP itself.
    """
    ap = ap.reshape(*ap.shape[:2], -1)
    means = [mean_ap(row) for row in ap]
    values: dict = {}
    for threshold, mean, row in zip(e.thresholds, means, ap, strict=True):
        values[f"{metric}@{threshold:g}"] = mean
        values[f"AP@{threshold:g}"] = dict(zip(e.labels, row, strict=True))
    for name, indices in _ranges(e).items():
        values[f"{metric}@{name}"] = mean_ap(ap[indices].mean(0))
        print(f"{metric}@{name}: {_shown(values[f'{metric}@{name}'])}")
    by_class = dict(zip(e.labels, ap.swapaxes(0, 1), strict=True))
    known = {label: rows for label, rows in by_class.items() if not np.isnan(rows[:, 0]).all()}
    _print_thresholds("AP", e, known | {metric: means})
    not_evaluated = PROTOCOLS[e.protocol].left_out if e.protocol in PROTOCOLS else ()
    left_out = [label for label in e.labels if label in not_evaluated]
    without_gt = [label for label in e.labels if label not in known and label not in left_out]
    if left_out:
        print(f"left out, not evaluated by this protocol: {', '.join(left_out)}")
    if without_gt:
        print(f"left out, without ground truth: {', '.join(without_gt)}")
    return _results(values) | {"without_gt": without_gt}


def _sampled_ap(rankings: Sequence[Sequence[Ranking]], e: Evaluation) -> np.ndarray:
    """AP, and AP in each of the B resamples of the videos, float64 (thresholds, classes, 1 + B); NaN where the protocol
    does not evaluate a class."""
    ap = ap_of_rankings(rankings, e.protocol)[..., None]
    if e.bootstrap:
        times = draw_resamples(len({*e.pred, *e.gt}), e.bootstrap, e.seed)
        resamples = [[resampled_ap(ranking, times, e.protocol) for ranking in row] for row in rankings]
        ap = np.concatenate([ap, resamples], -1)
    ap[:, np.isin(e.labels, list(PROTOCOLS[e.protocol].left_out))] = np.nan
    return ap


def _ranges(e: Evaluation) -> dict[str, list[int]]:
    """The ranges of thresholds over which MultiSports takes means -> the thresholds' indices, where all were asked."""
    ranges = {}
    for name, levels in RANGES.items() if e.protocol == "multisports" else ():
        indices = [i for i, threshold in enumerate(e.thresholds) if np.isclose(threshold, levels).any()]
        if len(indices) == len(levels):
            ranges[name] = indices
    return ranges


def _interval(value: np.ndarray) -> list[float]:
    """The interval, within 0 and 1 (or the metric itself, if above), of a metric and its resamples (1 + B,)."""
    low, high = interval(value[1:], value[0])
    return [max(low, 0.0), min(high, max(value[0], 1.0))]


def _results(values: Mapping) -> dict:
    """Metrics as the results keep them; with resamples also `intervals`, with the keys of the metrics, and `RESAMPLES`.

    `values`: of each metric, by class or motion of each part, itself and its resamples, float64 (1 + B,).
    """
    metrics = _of_each(values, lambda value: value[0])
    resamples = dict(flat(_of_each(values, lambda value: value[1:])))
    if not any(map(len, resamples.values())):
        return metrics
    return metrics | {"intervals": _of_each(values, _interval), RESAMPLES: resamples}


def _of_each(values: Mapping, what: Callable) -> dict:
    """`what` of every value of a mapping, and of those of the mappings in it."""
    return {name: _of_each(v, what) if isinstance(v, Mapping) else what(v) for name, v in values.items()}


def _print_thresholds(title: str, e: Evaluation, rows: Mapping[str, Sequence[np.ndarray]]) -> None:
    """A table; `rows`: what a row is called -> its value at each threshold, with its resamples."""
    cells = [[row, *map(_shown, values)] for row, values in rows.items()]
    print_table([title, *(f"@{threshold:g}" for threshold in e.thresholds)], cells)


def _shown(value: np.ndarray) -> str:
    """A metric, with its interval where it was resampled."""
    return cell(value[0]) + (f" [{', '.join(map(cell, _interval(value)))}]" if len(value) > 1 else "")
