"""Detections that are assigned again once the next frame is linked."""

import dataclasses
import itertools
from unittest.mock import patch

import numpy as np
import pytest

from benchmarks.linking import wandering_people
from models.linkers import LINKERS, LinkedFrame, LinkOptions, reassigned
from models.tube import Linker
from utils.box_ops import Track, paired_iou


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def linked_frame(random: np.random.Generator, frame: int) -> LinkedFrame:
    n = int(random.integers(1, 4))
    corners = random.uniform(0, 20, (n, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 30, (n, 2))], 1)
    tracks = random.permutation(4)[:n]
    return LinkedFrame(frame, tracks, np.arange(n), boxes, unit(random.normal(size=(n, 3))))


def test_reassigned_is_the_best_of_all_assignments() -> None:
    random, moved = np.random.default_rng(0), 0
    for _ in range(200):
        before, now, after = (linked_frame(random, frame) for frame in range(3))
        tracks = sorted({*before.tracks.tolist(), *now.tracks.tolist(), *after.tracks.tolist()})

        def score(track: int, i: int, now=now, near=(before, after)) -> float:
            pairs = [(x, k) for x in near for k in np.flatnonzero(x.tracks == track)]
            mean = unit(sum((x.representations[k] for x, k in pairs), np.zeros(3)))
            return mean @ now.representations[i] + 0.5 * sum(paired_iou(x.boxes[k], now.boxes[i]) for x, k in pairs) / 2

        def total(assignment: tuple[int, ...], score=score) -> float:
            return sum(score(track, i) for i, track in enumerate(assignment))

        best = max(itertools.permutations(tracks, len(now.tracks)), key=total)
        given = tuple(now.tracks.tolist())
        expected = best if total(best) > total(given) + 0.3 else given
        got = reassigned(before, now, after, lambda sums, x: unit(sums) @ x.T, 0.5, 0.3)
        assert len({*got.tolist()}) == len(got) and total(tuple(got.tolist())) == pytest.approx(total(expected))
        moved += expected != given
    assert 20 < moved < 180


def link_rows(frames: np.ndarray, boxes: np.ndarray, features: np.ndarray, options: LinkOptions) -> list[list[int]]:
    linker = Linker(0.3, 8, options=options)
    linker.extend(frames, boxes, np.ones(len(frames)), features.astype(np.float32))
    return [track.rows.tolist() for track in linker.finish()]


def test_a_switch_of_one_frame_is_undone_where_features_and_boxes_ask_for_it() -> None:
    a, b = np.eye(2)
    frames, boxes = np.repeat(np.arange(5), 2), np.tile([[0.0, 0, 10, 20], [40, 0, 50, 20]], (5, 1))
    features = np.tile([a, b], (5, 1))
    features[4:6] = 0.45 * a + 0.55 * b, 0.55 * a + 0.45 * b  # frame 2: each is a little more like the other
    switched, right = [[0, 2, 5, 6, 8], [1, 3, 4, 7, 9]], [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert link_rows(frames, boxes, features, LinkOptions()) == switched
    options = LinkOptions(reassign=(0.5, 0.1))
    assert link_rows(frames, boxes, features, options) == right
    features[4:6] = b, a  # they did change places
    boxes[4:6] = boxes[[5, 4]]
    assert link_rows(frames, boxes, features, options) == switched
    apart = np.repeat([0, 1, 2, 4, 5], 2)  # no frame 3: nothing is known of the next one
    features[4:6] = 0.45 * a + 0.55 * b, 0.55 * a + 0.45 * b
    boxes[4:6] = boxes[:2]
    assert link_rows(apart, boxes, features, options) == switched


def test_who_stands_still_keeps_the_track_although_somebody_who_left_was_more_alike() -> None:
    a, b = np.eye(2)
    frames = np.array([0, 0, 1, 1, 2, 3, 4])
    left, right = [0.0, 0, 10, 20], [40.0, 0, 50, 20]
    boxes = np.array([left, right, left, right, left, left, left])
    features = np.array([a, b, a, b, 0.49 * a + 0.51 * b, a, a])
    assert link_rows(frames, boxes, features, LinkOptions()) == [[0, 2, 5, 6], [1, 3, 4]]
    assert link_rows(frames, boxes, features, LinkOptions(reassign=(0.5, 0.1))) == [[0, 2, 4, 5, 6], [1, 3]]
    alone = np.array([True, False, True, False, True, True, True])  # a track that loses all its detections is none
    features[4] = -a
    rows = link_rows(frames[alone], boxes[alone], features[alone], LinkOptions(reassign=(1.5, 0.1)))
    assert rows == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("seed", range(3))
def test_reassigned_tracks_hold_each_detection_once_however_frames_come(seed: int) -> None:
    frames, scores, boxes, features = wandering_people(60, 5, 8, 0.2, seed)[:4]
    options = dataclasses.replace(LINKERS["robust"], reassign=(0.5, 0.0))
    sums = []

    def joined(tracks: list[Track], features: np.ndarray, *_: object) -> list[Track]:
        sums.append(features)
        return tracks

    results, drawn = [], []
    for block in (len(frames), 1):
        linker = Linker(0.2, 4, options=options)
        for first in range(0, int(frames[-1]) + 1, block):
            rows = slice(*np.searchsorted(frames, [first, first + block]))
            linker.extend(frames[rows], boxes[rows], scores[rows], features[rows])
        drawn.append([track.rows.tolist() for track in linker.tracks_since(0)])
        with patch("models.tube.join_tracks", joined):
            results.append(linker.finish())
    assert [t.rows.tolist() for t in results[0]] == [t.rows.tolist() for t in results[1]]
    assert drawn[0] == drawn[1] != [t.rows.tolist() for t in results[0]]
    rows = np.concatenate([track.rows for track in results[0]])
    assert len(np.unique(rows)) == len(rows) and sorted(rows) == sorted(itertools.chain(*drawn[0]))
    for track, total in zip(results[0], sums[0], strict=True):
        assert (np.diff(track.frames) > 0).all()
        assert (track.frames == frames[track.rows]).all() and (track.boxes == boxes[track.rows]).all()
        np.testing.assert_allclose(total, unit(features[track.rows]).sum(0), atol=1e-5)
