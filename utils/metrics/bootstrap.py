"""Intervals of AP by a bootstrap over videos (Davison and Hinkley, 1997: basic intervals).

A resample draws as many videos as there are, with replacement. Detections are matched within their video, so matching
is done once; a video that is drawn w times counts w times, its detections one after another in the ranking.
"""

from collections.abc import Sequence

import numpy as np

from utils.metrics.average_precision import ap_of_ranks
from utils.misc import rng
from utils.video_map import Ranking

LEVEL = 0.95


def draw_resamples(n_videos: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each video is drawn in each resample, int64 (n_videos, n_resamples), a pure function of the three."""
    share = np.full(n_videos, 1 / max(n_videos, 1))
    return rng(seed).multinomial(n_videos, share, n_resamples).T


def resampled_ap(ranking: Ranking, times: np.ndarray, protocol: str) -> np.ndarray:
    """AP of each resample, float64 (B,), NaN where a resample has no ground truth; `times` as from `draw_resamples`."""
    correct, ap = np.flatnonzero(ranking.correct), []
    for drawn, n_gt in zip(times.T, (ranking.n_gt @ times).tolist(), strict=True):
        copies = drawn[ranking.video]
        ranks_of_last = copies.cumsum()[correct]  # ranks of the correct detections' last copies
        copies = copies[correct]
        false = np.repeat(ranks_of_last - copies.cumsum(), copies)  # false positives before each correct copy
        ap.append(ap_of_ranks(false + np.arange(1, len(false) + 1), n_gt, protocol))
    return np.array(ap)


def resampled_classes(rankings: Sequence[Ranking], times: np.ndarray, protocol: str) -> np.ndarray:
    """AP of each class in each resample, float64 (classes, B)."""
    return np.array([resampled_ap(ranking, times, protocol) for ranking in rankings]).reshape(-1, times.shape[1])


def interval(values: np.ndarray, point: float) -> list[float]:
    """The basic bootstrap interval of a metric, which should hold the true value in a share `LEVEL` of cases.

    AP is biased upwards where a class has little ground truth, and AP of resamples once more: their percentiles lie
    too high (the tests measure it). The basic interval reflects them at the metric's value, which takes both off.

    Args:
        values: the metric in each resample, float64 (B,).
        point: the metric itself.

    Returns:
        Both ends, NaN where the metric is defined in no resample.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return [float("nan")] * 2
    tail = (1 - LEVEL) / 2
    low, high = 2 * point - np.quantile(known, [1 - tail, tail])
    return [float(low), float(high)]
