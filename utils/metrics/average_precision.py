"""Average precision of ranked detections, and the protocols that differ in it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def area_under_envelope(precision: np.ndarray, correct: np.ndarray, n_gt: int) -> float:
    """Area under the precision envelope at every recall, as PASCAL VOC since 2010."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[correct].sum() / n_gt)


def area_of_trapezoids(precision: np.ndarray, correct: np.ndarray, n_gt: int) -> float:
    """Area of trapezoids under the raw curve, which begins at precision 1."""
    previous = np.append(1.0, precision[:-1])
    return float((precision + previous)[correct].sum() / 2 / n_gt)


def resampled_envelope(weights: np.ndarray, false: np.ndarray) -> np.ndarray:
    """`area_under_envelope` times the number of ground truths where detections count several times.

    Args:
        weights: (k, B), how often each of the k correct detections counts in each of B resamples, by falling score.
        false: (k, B), how many false positives stand before each.

    Returns:
        float64 (B,).
    """
    correct = weights.cumsum(0)
    precision = correct / np.maximum(correct + false, 1)  # after a detection's last copy, where it is highest
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return (weights * envelope).sum(0)


def resampled_trapezoids(weights: np.ndarray, false: np.ndarray) -> np.ndarray:
    """`area_of_trapezoids` likewise; a detection's copies stand one after another."""
    correct = weights.cumsum(0)
    before = correct - weights + false  # detections before the first copy
    after = before + weights
    harmonic = np.append(0.0, (1 / np.arange(1.0, after.max(initial=0) + 1)).cumsum())
    # the sum over i = 1..w of (t + i) / (n + i) is w - (n - t) (H(n + w) - H(n))
    at_copies = weights - false * (harmonic[after] - harmonic[before])
    first = np.where(before > 0, (correct - weights) / np.maximum(before, 1), 1.0)
    last = correct / np.maximum(after, 1)
    return np.where(weights > 0, at_copies + (first - last) / 2, 0.0).sum(0)


class Protocol(NamedTuple):
    """How AP is computed.

    area: the area under the curve, from the precision after each detection, float64 (n,), whether each is correct, bool
    (n,), and the number of ground truths. resampled: the same for many resamples at once, as `resampled_envelope`.
    inclusive: x1 and y1 of a box are its last pixels, so that it is one pixel wider and higher than their difference.
    spans: see `utils.metrics.overlaps.tube_ious`. taken_too: a detection takes the ground truth that it overlaps most
    of all, and is a false positive where that one is taken. left_out: labels that are not in the mean.
    """

    area: Callable[[np.ndarray, np.ndarray, int], float]
    resampled: Callable[[np.ndarray, np.ndarray], np.ndarray]
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
    "voc": Protocol(area_under_envelope, resampled_envelope),
    # the evaluation of the ACT detector (Kalogeiton et al., ICCV 2017), which the field's tables come from
    "act": Protocol(area_of_trapezoids, resampled_trapezoids, inclusive=True),
    # the evaluation of MultiSports since 2022 (Li et al., ICCV 2021)
    "multisports": Protocol(
        area_under_envelope, resampled_envelope, spans=True, taken_too=True, left_out=frozenset(NOT_EVALUATED)
    ),
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
    """AP of one class by one of `PROTOCOLS`, NaN without ground truth; arguments as in `precision_recall`."""
    if not n_gt:
        return float("nan")
    return PROTOCOLS[protocol].area(precision_recall(correct, n_gt)[0], correct, n_gt)
