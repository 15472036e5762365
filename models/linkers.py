"""Parts of the linking rule: assignments, options beyond the published rule, and the named linkers, `LINKERS`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.box_ops import Track, paired_iou


def greedy_assignment(similarity: np.ndarray, sim_th: float) -> list[tuple[int, int]]:
    """Pairs (track, detection), the most similar first, each used at most once, of a similarity of at least `sim_th`.

    `similarity` float (t, n). Equal similarities go to the older track, and to the earlier detection.
    """
    tracks, detections = np.nonzero(similarity >= sim_th)  # NaN links nothing
    order = np.argsort(-similarity[tracks, detections], kind="stable")
    detection_of: dict[int, int] = {}
    linked = set()
    for track, detection in zip(tracks[order].tolist(), detections[order].tolist(), strict=True):
        if track not in detection_of and detection not in linked:
            detection_of[track] = detection
            linked.add(detection)
    return list(detection_of.items())


def hungarian_assignment(similarity: np.ndarray, sim_th: float) -> list[tuple[int, int]]:
    """Pairs (track, detection) of a similarity of at least `sim_th`, with the highest sum of what exceeds it: a link at
    the threshold is worth no more than a new track, so that a newcomer displaces nobody."""
    from scipy.optimize import linear_sum_assignment

    excess = similarity - sim_th
    rows, columns = linear_sum_assignment(np.where(excess >= 0, excess, 0), maximize=True)
    return [(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if excess[i, j] >= 0]


@dataclass(frozen=True)
class LinkOptions:
    """How detections are associated, besides the thresholds; the defaults are the published rule.

    Args:
        assignment: similarities (t, n) and their minimum -> pairs (track, detection).
        memory: a track is represented by the mean of its newest `memory` detections.
        duplicates: minimum (similarity, IoU) of two detections of a frame of which the weaker is dropped.
        echoes: minimum (similarity, IoU) to a linked detection with which an unmatched one starts no track.
        join: minimum similarity and maximum gap in frames of finished tracks that are joined (`join_tracks`).
        end_consecutive_frames: default of the flag of this name; None: the data set's.
    """

    assignment: Callable[[np.ndarray, float], list[tuple[int, int]]] = greedy_assignment
    memory: int = 1
    duplicates: tuple[float, float] | None = None
    echoes: tuple[float, float] | None = None
    join: tuple[float, int] | None = None
    end_consecutive_frames: int | None = None


LINKERS = {
    "published": LinkOptions(),
    "robust": LinkOptions(
        assignment=hungarian_assignment,
        memory=8,
        duplicates=(0.7, 0.5),
        echoes=(0.4, 0.2),
        join=(0.5, 100),
        end_consecutive_frames=12,
    ),
}
"""Values of `--linker`. `python -m benchmarks.link_cues` compares them, option by option."""


def distinct_detections(
    similarity: np.ndarray, boxes: np.ndarray, scores: np.ndarray, thresholds: tuple[float, float]
) -> list[int]:
    """Suppress duplicate detections of one person in a frame, as non-maximum suppression does.

    Args:
        similarity: float (n, n), of the frame's detections.
        boxes: float (n, 4), xyxy.
        scores: float (n,); of two duplicates the higher one stays.
        thresholds: minimum similarity and IoU of duplicates.

    Returns:
        Rows that stay, rising.
    """
    stays, alike = np.ones(len(boxes), bool), similarity >= thresholds[0]
    if not np.triu(alike, 1).any():  # as in most frames
        return list(range(len(boxes)))
    duplicate = alike & (paired_iou(boxes[:, None], boxes[None]) >= thresholds[1])
    for row in np.argsort(-scores, kind="stable"):
        if stays[row]:
            stays[duplicate[row]] = False
            stays[row] = True
    return np.flatnonzero(stays).tolist()


def second_detections(
    similarity: np.ndarray, boxes: np.ndarray, linked_boxes: np.ndarray, thresholds: tuple[float, float]
) -> np.ndarray:
    """Which unmatched detections are a second one of a person who was linked in the frame: bool (n,).

    `similarity` float (n, m) of the unmatched and the linked detections, whose boxes are (n, 4) and (m, 4);
    `thresholds` the minimum similarity and IoU of a second detection.
    """
    overlap = paired_iou(boxes[:, None], linked_boxes[None])
    return ((similarity >= thresholds[0]) & (overlap >= thresholds[1])).any(1)


def join_tracks(tracks: list[Track], features: np.ndarray, min_similarity: float, max_gap: int) -> list[Track]:
    """Join finished tracks that are pieces of one person: agglomerative, by the mean features of all their detections.

    The most similar pair is joined first and then represented by their common mean. Tracks that are open at the same
    time are never joined, nor those further apart than `max_gap` frames.

    Args:
        tracks: by first frame.
        features: float (n, d), the sum of each track's unit features.
        min_similarity: minimum cosine of the means.
        max_gap: frames.

    Returns:
        Tracks by first frame; a joined one has the `person_id` of its first piece.
    """
    if not tracks:
        return []
    sums, pieces = features.astype(np.float32), [[track] for track in tracks]
    first = np.array([track.frames[0] for track in tracks])
    last = np.array([track.frames[-1] for track in tracks])
    gap = np.maximum(first[:, None] - last[None], first[None] - last[:, None])
    apart, near = gap > 0, gap <= max_gap

    def similarities(row: int) -> np.ndarray:
        cosines = sums @ sums[row] / np.maximum(norms[row] * norms, 1e-12)
        return np.where(apart[row] & near[row] & exists, cosines, -np.inf)

    norms = np.linalg.norm(sums, axis=1)
    exists = np.ones(len(tracks), bool)
    similarity = np.stack([similarities(row) for row in range(len(tracks))])
    best, partner = similarity.max(1), similarity.argmax(1)
    while best.max() >= min_similarity:
        kept = int(best.argmax())
        merged = int(partner[kept])
        sums[kept] += sums[merged]
        norms[kept] = np.linalg.norm(sums[kept])
        pieces[kept] += pieces[merged]
        exists[merged] = False
        apart[kept] &= apart[merged]
        near[kept] |= near[merged]
        apart[:, kept], near[:, kept] = apart[kept], near[kept]
        similarity[merged], similarity[:, merged] = -np.inf, -np.inf
        similarity[kept] = similarity[:, kept] = similarities(kept)
        outdated = (partner == kept) | (partner == merged) | (similarity[kept] > best)
        outdated[[kept, merged]] = True
        best[outdated], partner[outdated] = similarity[outdated].max(1), similarity[outdated].argmax(1)
    joined = [_concatenate(pieces[i]) for i in np.flatnonzero(exists)]
    return sorted(joined, key=lambda track: track.person_id)


def _concatenate(pieces: list[Track]) -> Track:
    pieces = sorted(pieces, key=lambda track: track.frames[0])
    names = ("frames", "boxes", "scores", "rows")
    columns = [np.concatenate([getattr(piece, name) for piece in pieces]) for name in names]
    return Track(*columns, person_id=pieces[0].person_id)
