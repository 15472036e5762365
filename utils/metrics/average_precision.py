"""Average precision of ranked detections, and the protocols that differ in it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def area_under_envelope(ranks: np.ndarray, n_gt: int) -> float:
    """Area under the precision envelope at every recall, as PASCAL VOC since 2010."""
    precision = np.arange(1, len(ranks) + 1) / ranks
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope.sum() / n_gt)


def area_of_trapezoids(ranks: np.ndarray, n_gt: int) -> float:
    """Area of trapezoids under the raw curve, which begins at precision 1."""
    hits = np.arange(1, len(ranks) + 1)
    previous = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
    return float((hits / ranks + previous).sum() / 2 / n_gt)


class Protocol(NamedTuple):
    """How AP is computed.

    area: the area under the curve, from the ranks of the correct detections among all by falling score, int64 (k,) from
    1, and the number of ground truths. inclusive: x1 and y1 of a box are its last pixels, so that it is one pixel
    wider and higher than their difference. spans: see `utils.metrics.overlaps.tube_ious`. taken_too: a detection takes
    the ground truth that it overlaps most of all, and is a false positive where that one is taken. left_out: labels
    that are not in the mean.
    """

    area: Callable[[np.ndarray, int], float]
    inclusive: bool = False
    spans: bool = False
    taken_too: bool = False
    left_out: frozenset[str] = frozenset()


NOT_EVALUATED = (
    "aerobic kick jump",
    "aerobic off axis jump",
    "aerobic butterfly jump",
    "aerobic balance turn",
    "basketball save",
    "basketball jump ball",
)
"""The labels of MultiSports that are not in its mean."""

PROTOCOLS = {
    "voc": Protocol(area_under_envelope),
    # the evaluation of the ACT detector (Kalogeiton et al., ICCV 2017), which the field's tables come from
    "act": Protocol(area_of_trapezoids, inclusive=True),
    # the evaluation of MultiSports since 2022 (Li et al., ICCV 2021)
    "multisports": Protocol(area_under_envelope, spans=True, taken_too=True, left_out=frozenset(NOT_EVALUATED)),
}


def precision_recall(correct: np.ndarray, n_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each detection, float64 (n,) each.

    Args:
        correct: bool (n,), whether each detection is correct, by falling score.
        n_gt: number of ground truths, above 0.
    """
    hits = np.asarray(correct, bool).cumsum()
    return hits / np.arange(1, len(hits) + 1), hits / n_gt


def average_precision(correct: np.ndarray, n_gt: int, protocol: str = "voc") -> float:
    """AP of one class, NaN without ground truth.

    Args:
        correct: bool (n,), whether each detection is correct, by falling score.
        n_gt: number of ground truths.
        protocol: one of `PROTOCOLS`.
    """
    return ap_of_ranks(np.flatnonzero(correct) + 1, n_gt, protocol)


def ap_of_ranks(ranks: np.ndarray, n_gt: int, protocol: str) -> float:
    """The same from the ranks of the correct detections, int64 (k,) from 1."""
    return PROTOCOLS[protocol].area(ranks, n_gt) if n_gt else float("nan")
