"""The metrics of action tubes by their names in tables and results files, whatever predicted the tubes.

A metric is one function from an `Evaluation` to its values, in `METRICS`. A protocol is a row of
`utils.video_map.PROTOCOLS`, or, where a benchmark's own code defines a metric otherwise, a function in `OFFICIAL`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tube
from utils.metrics.multisports import RANGES
from utils.misc import InputError
from utils.results import print_table
from utils.video_map import PROTOCOLS, calc_frame_map, calc_motion_ap, calc_video_map, mean_ap


class Evaluation(NamedTuple):
    """What a metric compares, and how.

    pred: every video's action tubes. frame_scores: the scores of each of them in each of its frames, float (T,).
    gt: every video's ground truth. sizes: every video's width, height and number of frames, 0 where unknown.
    """

    pred: dict[str, list[Tube]]
    frame_scores: dict[str, list[np.ndarray]]
    gt: dict[str, list[Tube]]
    sizes: dict[str, tuple[int, int, int]]
    labels: list[str]
    thresholds: list[float]
    protocol: str = "voc"
    count_duplicates: bool = False


def video_map(e: Evaluation) -> dict:
    """`v-mAP@T` and `AP@T` by class; printed as a table."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol, e.count_duplicates
    return ap_by_class("v-mAP", calc_video_map(*args), e)


def frame_map(e: Evaluation) -> dict:
    """`frame-mAP@T` and `AP@T` by class; printed as a table."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol, e.frame_scores
    return ap_by_class("frame-mAP", calc_frame_map(*args), e)


def motion_ap(e: Evaluation) -> dict:
    """`motion-AP@T` by motion category; printed as a table."""
    ap = calc_motion_ap(e.pred, e.gt, len(e.labels), e.thresholds, e.protocol)
    means = {category: [mean_ap(row) for row in ap[category]] for category in MOTION_CATEGORIES}
    print_thresholds("motion-AP", e.thresholds, means)
    return {
        f"motion-AP@{threshold:g}": {category: means[category][i] for category in MOTION_CATEGORIES}
        for i, threshold in enumerate(e.thresholds)
    }


METRICS: dict[str, Callable[[Evaluation], dict]] = {
    "v-mAP": video_map,
    "motion-AP": motion_ap,
    "frame-mAP": frame_map,
}
OFFICIAL: dict[tuple[str, str], Callable[[Evaluation], dict]] = {
    ("published", "v-mAP"): video_map,
    ("published", "motion-AP"): motion_ap,
}
"""(protocol, metric) -> the metric by that benchmark's own rules, where these are more than a row of `PROTOCOLS`."""
PROTOCOL_NAMES = tuple(dict.fromkeys([*PROTOCOLS, *(protocol for protocol, _ in OFFICIAL)]))


def measure(metric: str, e: Evaluation) -> dict:
    """The values of a metric by their names in the results file; prints them as tables.

    Raises:
        InputError: the protocol does not define this metric.
    """
    if (e.protocol, metric) in OFFICIAL:
        return OFFICIAL[e.protocol, metric](e)
    if e.protocol not in PROTOCOLS:
        known = ", ".join(metric for protocol, metric in OFFICIAL if protocol == e.protocol)
        raise InputError(f"--protocol {e.protocol}: has no {metric}; it has {known}")
    return METRICS[metric](e)


def ap_by_class(metric: str, ap: np.ndarray, e: Evaluation) -> dict:
    """The mean and the AP of every class, `ap` float64 (thresholds, classes), by their names in the results file."""
    metrics: dict = {}
    left_out = PROTOCOLS[e.protocol].left_out & set(e.labels) if e.protocol in PROTOCOLS else frozenset()
    ap = np.where(np.isin(e.labels, list(left_out)), np.nan, ap)
    for threshold, row in zip(e.thresholds, ap, strict=True):
        metrics[f"{metric}@{threshold:g}"] = mean_ap(row)
        metrics[f"AP@{threshold:g}"] = dict(zip(e.labels, row, strict=True))
    by_class = dict(zip(e.labels, ap.T, strict=True))
    for name, levels in RANGES.items() if e.protocol == "multisports" else ():
        rows = [row for threshold, row in zip(e.thresholds, ap, strict=True) if np.isclose(threshold, levels).any()]
        if len(rows) == len(levels):
            metrics[f"{metric}@{name}"] = mean_ap(np.mean(rows, 0))
            print(f"{metric}@{name}: {metrics[f'{metric}@{name}']:.4f}")
    metrics["without_gt"] = [label for label, row in by_class.items() if np.isnan(row).all() and label not in left_out]
    shown = {label: row for label, row in by_class.items() if not np.isnan(row).all()}
    print_thresholds("AP", e.thresholds, shown | {metric: [mean_ap(row) for row in ap]})
    if left_out:
        print(f"left out, not evaluated by this protocol: {', '.join(sorted(left_out))}")
    if metrics["without_gt"]:
        print(f"left out, without ground truth: {', '.join(metrics['without_gt'])}")
    return metrics


def print_thresholds(title: str, levels: list[float], rows: Mapping) -> None:
    """A table of rows with a value for each threshold."""
    print_table([title, *(f"@{level:g}" for level in levels)], [[name, *values] for name, values in rows.items()])
