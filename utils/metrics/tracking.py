"""Tracking metrics: IDF1, identity switches, HOTA, DetA and AssA.

IDF1 after Ristani et al. (ECCV workshops 2016), identity switches after CLEAR MOT (Bernardin and Stiefelhagen, 2008),
HOTA and its parts after Luiten et al. (IJCV 2021); details and the sum over videos as in TrackEval.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import Tube, Tubes, frames_and_boxes
from utils.metrics.matching import video_box_pairs
from utils.metrics.overlaps import by_content, check_tubes

ALPHAS = np.arange(0.05, 0.99, 0.05)  # the IoU thresholds that HOTA is averaged over
MATCH_IOU = 0.5  # of IDF1 and identity switches
EPS = np.finfo(np.float64).eps


class BoxPairs(NamedTuple):
    """The k overlapping (ground truth, track) boxes of one video's frames, by rising frame.

    frame, gt, track: int64 (k,), the frame and the two people's numbers; gt_box, track_box: int64 (k,), the two boxes'
    numbers in the video; iou: float64 (k,).
    """

    frame: np.ndarray
    gt: np.ndarray
    track: np.ndarray
    gt_box: np.ndarray
    track_box: np.ndarray
    iou: np.ndarray

    def where(self, keep: np.ndarray) -> "BoxPairs":
        """The pairs that a mask or an index selects."""
        return BoxPairs(*(column[keep] for column in self))


def tracking_metrics(pred: Tubes, gt: Tubes, label_centric: bool = True) -> dict[str, float]:
    """Tracking metrics of all videos together.

    Args:
        pred, gt: all tubes of one `person_id` are one track (where two are in one frame, the box of the one that begins
            first); a tube without one (-1) is a track of its own.
        label_centric: only frames with ground truth count.

    Returns:
        `IDF1`, `IDSW` (identity switches, a count), `HOTA`, `DetA` and `AssA`; all but `IDSW` NaN without ground truth.

    Raises:
        InputError: a box or score is not finite.
    """
    check_tubes(pred, gt)
    return metrics_of_counts(sum(tracking_counts(pred, gt, label_centric).values(), np.zeros(4 + 2 * len(ALPHAS))))


def tracking_counts(pred: Tubes, gt: Tubes, label_centric: bool = True) -> dict[str, np.ndarray]:
    """What `metrics_of_counts` needs of each video, float64 (42,); of several videos their sum. Arguments as in
    `tracking_metrics`."""
    counts = {}
    for video, people, tracks, pairs in _overlapping(pred, gt, label_centric):
        n_gt, n_pred = (sum(map(len, side)) for side in (people, tracks))
        single = [n_gt, n_pred, _identity_hits(pairs), len(_switches(people, tracks, pairs))]
        counts[video] = np.concatenate([single, *_hota_counts(people, tracks, pairs)])
    return counts


def identity_switches(pred: Tubes, gt: Tubes, label_centric: bool = True) -> dict[str, list[tuple[int, int, int, int]]]:
    """Where `IDSW` counts: every video's (frame, person, track before, track from then on); arguments as in
    `tracking_metrics`."""
    return {
        video: [
            (frame, people[person].person_id, tracks[before].person_id, tracks[track].person_id)
            for frame, person, before, track in _switches(people, tracks, pairs)
        ]
        for video, people, tracks, pairs in _overlapping(pred, gt, label_centric)
    }


def metrics_of_counts(counts: np.ndarray) -> dict[str, float]:
    """The metrics of `tracking_metrics` out of the sum of `tracking_counts` over videos."""
    (n_gt, n_pred, id_hits, switches), (hits, association) = counts[:4], counts[4:].reshape(2, -1)
    if not n_gt:
        return {"IDF1": np.nan, "IDSW": 0, "HOTA": np.nan, "DetA": np.nan, "AssA": np.nan}
    detection = hits / (n_gt + n_pred - hits)
    association = association / np.maximum(hits, 1)
    means = {"HOTA": np.sqrt(detection * association), "DetA": detection, "AssA": association}
    return {"IDF1": float(2 * id_hits / (n_gt + n_pred)), "IDSW": int(switches)} | {
        name: float(value.mean()) for name, value in means.items()
    }


def _overlapping(pred: Tubes, gt: Tubes, label_centric: bool) -> Iterator[tuple[str, list[Tube], list[Tube], BoxPairs]]:
    """Each video's name, people and tracks, one tube for each, and their boxes that overlap."""
    for video in sorted({*pred, *gt}):  # sums of floats depend on their order
        people = _tracks(gt.get(video, ()))
        gt_frames, _ = frames_and_boxes(people)
        tracks = _tracks(pred.get(video, ()), gt_frames if label_centric else None)
        i, j, iou = video_box_pairs(tracks, people)
        owner, gt_owner = (np.repeat(np.arange(len(side)), [len(tube) for tube in side]) for side in (tracks, people))
        pairs = BoxPairs(gt_frames[j], gt_owner[j], owner[i], j, i, iou)
        yield video, people, tracks, pairs.where(np.argsort(pairs.frame, kind="stable"))


def _tracks(tubes: Sequence[Tube], within: np.ndarray | None = None) -> list[Tube]:
    """One tube for each person, with its boxes in the frames `within` (None: in all), if there are any."""
    by_person: dict[int, list[Tube]] = {}
    for i, tube in enumerate(sorted(filter(len, tubes), key=by_content)):
        by_person.setdefault(tube.person_id if tube.person_id >= 0 else -1 - i, []).append(tube)
    tracks = []
    for parts in by_person.values():
        frames, boxes = frames_and_boxes(parts)
        frames, first = np.unique(frames, return_index=True)
        keep = slice(None) if within is None else np.isin(frames, within)
        tracks.append(Tube(frames[keep], boxes[first[keep]], person_id=parts[0].person_id))
    return sorted(filter(len, tracks), key=by_content)  # equal assignments depend on this order


def _assign(gt: np.ndarray, track: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Hungarian assignment with the highest sum of scores: the chosen ones of k pairs, as indices.

    `gt`, `track`: int64 (k,), the two numbers of each possible pair; `score`: (k,), above 0.
    """
    if len(gt) < 2:
        return np.arange(len(gt))

    from scipy.optimize import linear_sum_assignment

    rows, i = np.unique(gt, return_inverse=True)
    columns, j = np.unique(track, return_inverse=True)
    if len(rows) == len(columns) == len(gt):  # nothing to choose
        return np.arange(len(gt))
    scores, pair = np.zeros((len(rows), len(columns))), np.full((len(rows), len(columns)), -1)
    scores[i, j], pair[i, j] = score, np.arange(len(gt))
    chosen = pair[linear_sum_assignment(scores, maximize=True)]
    return chosen[chosen >= 0]


def _by_frame(frames: np.ndarray) -> list[np.ndarray]:
    """The indices of each frame's pairs; `frames` int64 (k,) rising."""
    return np.split(np.arange(len(frames)), np.flatnonzero(np.diff(frames)) + 1) if len(frames) else []


def _hota_counts(people: Sequence[Tube], tracks: Sequence[Tube], pairs: BoxPairs) -> tuple[np.ndarray, np.ndarray]:
    """True positives and the sum of their association scores at each of `ALPHAS`, of one video: float64 (19,) each.

    One assignment in each frame serves all thresholds: it prefers people and tracks that overlap over the whole video.
    """
    links = pairs.gt, pairs.track
    lengths = np.add.outer([len(tube) for tube in people], [len(tube) for tube in tracks]).astype(float)
    iou_of_boxes = np.bincount(pairs.gt_box, pairs.iou)[pairs.gt_box]
    iou_of_boxes += np.bincount(pairs.track_box, pairs.iou)[pairs.track_box]
    together = np.zeros_like(lengths)
    np.add.at(together, links, pairs.iou / (iou_of_boxes - pairs.iou))
    score = (together / np.maximum(lengths - together, EPS))[links] * pairs.iou
    matched = [rows[_assign(pairs.gt[rows], pairs.track[rows], score[rows])] for rows in _by_frame(pairs.frame)]
    pairs = pairs.where(np.concatenate([np.zeros(0, np.int64), *matched]))
    hits, association = np.zeros((2, len(ALPHAS)))
    for k, alpha in enumerate(ALPHAS):
        links = np.zeros_like(lengths)
        close = pairs.where(pairs.iou >= alpha - EPS)
        np.add.at(links, (close.gt, close.track), 1)
        hits[k] = links.sum()
        association[k] = (links * links / np.maximum(lengths - links, 1)).sum()
    return hits, association


def _identity_hits(pairs: BoxPairs) -> int:
    """Frames in which each person meets the one track that is assigned to them for the whole video (IDTP)."""
    close = pairs.where(pairs.iou >= MATCH_IOU)
    (gt, track), frames = np.unique(np.stack([close.gt, close.track]), axis=1, return_counts=True)
    return int(frames[_assign(gt, track, frames)].sum())


def _switches(people: Sequence[Tube], tracks: Sequence[Tube], pairs: BoxPairs) -> list[tuple[int, int, int, int]]:
    """Whenever a person is matched to another track than before: frame, person, that track, the new one.

    A match is kept from one frame with people and tracks to the next such frame while its IoU suffices.
    """
    frames = np.intersect1d(frames_and_boxes(people)[0], frames_and_boxes(tracks)[0])
    close = pairs.where(pairs.iou >= MATCH_IOU - EPS)
    step = np.searchsorted(frames, close.frame)
    last: dict[int, tuple[int, int]] = {}  # person -> the track last matched, and in which step
    switches = []
    for rows in _by_frame(close.frame):
        k = int(step[rows[0]])
        people, tracks = close.gt[rows].tolist(), close.track[rows].tolist()
        kept = np.array([last.get(person) == (track, k - 1) for person, track in zip(people, tracks, strict=True)])
        for pair in _assign(close.gt[rows], close.track[rows], close.iou[rows] + 1000 * kept).tolist():
            person, track = people[pair], tracks[pair]
            if person in last and last[person][0] != track:
                switches.append((int(close.frame[rows[0]]), person, last[person][0], track))
            last[person] = track, k
    return switches
