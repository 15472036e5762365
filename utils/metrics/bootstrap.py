"""Intervals of AP by a bootstrap over videos (Davison and Hinkley, 1997: basic intervals).

A resample draws as many videos as there are, with replacement. Detections are matched within their video, so matching
is done once; a video that is drawn w times counts w times, its detections one after another in the ranking.
"""

import numpy as np

from utils.metrics.average_precision import PROTOCOLS
from utils.misc import rng
from utils.video_map import Ranking

LEVEL = 0.95
BLOCK = 2**22  # numbers of an array that are computed at a time


def draw_resamples(n_videos: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each video is drawn in each resample, int64 (n_videos, n_resamples), a pure function of the three."""
    share = np.full(n_videos, 1 / max(n_videos, 1))
    return rng(seed).multinomial(n_videos, share, n_resamples).T


def resampled_ap(ranking: Ranking, times: np.ndarray, protocol: str) -> np.ndarray:
    """AP of each resample, float64 (B,), NaN where a resample has no ground truth; `times` as from `draw_resamples`."""
    import scipy.sparse  # takes a moment, which `--help` does without

    n_gt = ranking.n_gt @ times
    rows = np.flatnonzero(ranking.correct)
    # the false positives that stand between two correct detections, as a matrix (correct, videos)
    wrong = np.flatnonzero(~ranking.correct)
    group = np.searchsorted(rows, wrong)
    wrong, group = wrong[group < len(rows)], group[group < len(rows)]
    cells = np.ones(len(wrong), np.int64), (group, ranking.video[wrong])
    false = scipy.sparse.csr_matrix(cells, (len(rows), len(times)))
    area = np.zeros(times.shape[1])
    step = max(1, BLOCK // max(len(rows), 1))
    for first in range(0, times.shape[1], step):
        part = np.ascontiguousarray(times[:, first : first + step])
        weights = part[ranking.video[rows]]
        area[first : first + step] = PROTOCOLS[protocol].resampled(weights, (false @ part).cumsum(0))
    return np.where(n_gt > 0, area / np.maximum(n_gt, 1), np.nan)


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
