"""How well people are followed: IDF1, identity switches, HOTA, DetA and AssA.

IDF1 after Ristani et al. (ECCV workshops 2016), identity switches after CLEAR MOT (Bernardin and Stiefelhagen,
2008), HOTA and its parts after Luiten et al. (IJCV 2021); in detail, and over several videos, as TrackEval has them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from utils.box_ops import Tube, paired_iou
from utils.metrics.tube_arrays import pack
from utils.metrics.tube_overlaps import join

ALPHAS = np.arange(0.05, 0.99, 0.05)  # the IoU thresholds that HOTA is averaged over
MATCH_IOU = 0.5  # of IDF1 and identity switches
EPS = np.finfo(np.float64).eps


class Boxes(NamedTuple):
    """n boxes by rising video, then frame: `video`, `frame`, `track` int64 (n,), `boxes` float64 (4, n). Tracks of
    different videos are different numbers."""

    video: np.ndarray
    frame: np.ndarray
    track: np.ndarray
    boxes: np.ndarray

    def at(self, rows: np.ndarray) -> "Boxes":
        return Boxes(self.video[rows], self.frame[rows], self.track[rows], self.boxes[:, rows])


class Pairs(NamedTuple):
    """k pairs of overlapping boxes of one frame, by rising frame: rows `i` of the truth and `j` of the prediction,
    their tracks `truth` and `guess`, the frame's number `moment`, all int64 (k,); `iou` float64 (k,)."""

    i: np.ndarray
    j: np.ndarray
    truth: np.ndarray
    guess: np.ndarray
    moment: np.ndarray
    iou: np.ndarray

    def at(self, which: np.ndarray) -> "Pairs":
        return Pairs(*(part[which] for part in self))


def tracking_metrics(
    pred: Mapping[str, Sequence[Tube]], gt: Mapping[str, Sequence[Tube]], label_centric: bool = True
) -> dict[str, float]:
    """`IDF1`, `IDSW` (a count), `HOTA`, `DetA` and `AssA` of all videos together; NaN, but for IDSW, without truth.

    A track is all tubes of one `person_id` of a video (its first box where two are in one frame), or one tube where
    that is -1. With `label_centric` only frames with ground truth count: in the others nobody knows who is there.
    Raises InputError where a box is not finite.
    """
    names = sorted({*pred, *gt})
    truth, guess = _boxes(gt, names), _boxes(pred, names)
    first = min(truth.frame.min(initial=0), guess.frame.min(initial=0))
    span = max(truth.frame.max(initial=0), guess.frame.max(initial=0)) - first + 1
    moment, moment_guess = (x.video * span + x.frame - first for x in (truth, guess))
    if label_centric:
        known = np.isin(moment_guess, moment)
        guess, moment_guess = guess.at(known), moment_guess[known]
    if not len(moment):
        return {"IDF1": np.nan, "IDSW": 0, "HOTA": np.nan, "DetA": np.nan, "AssA": np.nan}

    found = [np.stack(rows) for rows in join(moment, moment_guess)]
    i, j = np.concatenate([*found, np.zeros((2, 0), np.int64)], axis=1)
    iou = paired_iou(truth.boxes[:, i].T, guess.boxes[:, j].T)
    pairs = Pairs(i, j, truth.track[i], guess.track[j], moment[i], iou).at(iou > 0)
    steps = np.intersect1d(moment, moment_guess)
    return {
        "IDF1": _idf1(pairs, truth, guess),
        "IDSW": _identity_switches(pairs, steps),
        **_hota(pairs, truth, guess),
    }


def _boxes(tubes: Mapping[str, Sequence[Tube]], names: Sequence[str]) -> Boxes:
    packed = pack(tubes, names)
    person = np.array([tube.person_id for tube in packed.tubes], np.int64)
    alone = person.max(initial=0) + 1 + np.arange(len(person))
    keys = np.stack([packed.video, np.where(person >= 0, person, alone)])
    track = np.unique(keys, axis=1, return_inverse=True)[1].ravel()[packed.owner]
    video = packed.video[packed.owner]
    order = np.lexsort((track, packed.frames, video))
    both = Boxes(video, packed.frames, track, packed.corners()).at(order)
    again = (np.diff(both.frame) == 0) & (np.diff(both.track) == 0)
    return both.at(np.append(True, ~again)[: len(order)])


def _assign(score: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The pairs (indices) of the assignment of i to j with the highest sum of `score` > 0; all float or int64 (k,)."""
    rows, r = np.unique(i, return_inverse=True)
    columns, c = np.unique(j, return_inverse=True)
    if len(rows) == len(columns) == len(i):
        return np.arange(len(i))
    table, pair = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
    table[r, c], pair[r, c] = score, np.arange(len(i))
    chosen = pair[linear_sum_assignment(table, maximize=True)]
    return chosen[chosen >= 0]


def _runs(values: np.ndarray) -> Iterator[slice]:
    """The runs of equal values."""
    edges = [*np.flatnonzero(np.diff(values, prepend=values[:1] - 1)).tolist(), len(values)]
    return (slice(*edge) for edge in itertools.pairwise(edges))


def _hota(pairs: Pairs, truth: Boxes, guess: Boxes) -> dict[str, float]:
    length, length_guess = np.bincount(truth.track), np.bincount(guess.track, minlength=1)
    met, link = np.unique(np.stack([pairs.truth, pairs.guess]), axis=1, return_inverse=True)
    link = link.ravel()
    most = length[met[0]] + length_guess[met[1]]  # frames of both tracks of a link, each counted once for each
    either = np.bincount(pairs.i, pairs.iou)[pairs.i] + np.bincount(pairs.j, pairs.iou)[pairs.j] - pairs.iou
    likely = np.bincount(link, pairs.iou / either, minlength=len(most))
    score = (likely / (most - likely))[link] * pairs.iou
    crowded = (np.bincount(pairs.i)[pairs.i] > 1) | (np.bincount(pairs.j)[pairs.j] > 1)
    rest = np.flatnonzero(crowded)
    chosen = [np.flatnonzero(~crowded)]
    for run in _runs(pairs.moment[rest]):
        at = rest[run]
        chosen.append(at[_assign(score[at], pairs.i[at], pairs.j[at])])
    matched = np.concatenate(chosen)
    det, ass = np.zeros(len(ALPHAS)), np.zeros(len(ALPHAS))
    for k, alpha in enumerate(ALPHAS):
        links = np.bincount(link[matched[pairs.iou[matched] >= alpha - EPS]], minlength=len(most))
        hits = links.sum()
        det[k] = hits / (len(truth.frame) + len(guess.frame) - hits)
        ass[k] = (links * (links / (most - links))).sum() / max(1, hits)
    return {"HOTA": float(np.sqrt(det * ass).mean()), "DetA": float(det.mean()), "AssA": float(ass.mean())}


def _idf1(pairs: Pairs, truth: Boxes, guess: Boxes) -> float:
    close = pairs.at(pairs.iou >= MATCH_IOU)
    (of, to), together = np.unique(np.stack([close.truth, close.guess]), axis=1, return_counts=True)
    video = np.zeros(truth.track.max() + 1, np.int64)
    video[truth.track] = truth.video
    hits = sum(int(together[run][_assign(together[run], of[run], to[run])].sum()) for run in _runs(video[of]))
    return 2 * hits / (len(truth.frame) + len(guess.frame))


def _identity_switches(pairs: Pairs, steps: np.ndarray) -> int:
    """`steps` the moments with boxes of both kinds: a match is kept from one of them to the next where it can be."""
    close = pairs.at(pairs.iou >= MATCH_IOU - EPS)
    step = np.searchsorted(steps, close.moment)
    last: dict[int, tuple[int, int]] = {}  # track -> the track it was last matched to, and when
    switches = 0
    for run in _runs(close.moment):
        now = int(step[run.start])
        of, to = close.truth[run].tolist(), close.guess[run].tolist()
        kept = [last.get(a) == (b, now - 1) for a, b in zip(of, to, strict=True)]
        for k in _assign(close.iou[run] + 1000 * np.array(kept), close.i[run], close.j[run]).tolist():
            switches += of[k] in last and last[of[k]][0] != to[k]
            last[of[k]] = to[k], now
    return switches
