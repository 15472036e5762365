"""The IoU of all pairs at once against one pair at a time, where people are many and frames are missing."""

import numpy as np
import pytest

from utils.box_ops import Tube, tube_iou
from utils.metrics.tube_arrays import pack
from utils.metrics.tube_overlaps import CHUNK_PAIRS, box_overlaps, join, overlaps


def crowd(seed: int, n: int, step: int = 1) -> list[Tube]:
    """People in one video, some with gaps, on frames that are `step` apart."""
    rs = np.random.RandomState(seed)
    tubes = []
    for _ in range(n):
        frames = rs.randint(40) + np.arange(rs.randint(1, 80))
        frames = frames[(rs.rand(len(frames)) < rs.choice([0.3, 0.8, 1.0])) | (frames == frames[0])]
        corner = rs.uniform(0, 80, 2) + rs.normal(0, rs.choice([0.3, 3]), (len(frames), 2)).cumsum(0)
        boxes = np.concatenate([corner, corner + rs.uniform(20, 90, 2)], 1)
        tubes.append(Tube(frames * step, boxes, int(rs.randint(2))))
    return tubes


@pytest.mark.parametrize("step", [1, 30, 10**9])
@pytest.mark.parametrize("options", [(False, None), (True, None), (True, 0.4), (False, 0.1)])
def test_all_pairs_are_those_of_tube_iou(options, step):
    label_centric, frame_iou = options
    tubes = crowd(0, 70, step), crowd(1, 60, step)
    a, b = (pack({"v": side}, ["v"]) for side in tubes)
    assert len(a) * len(b) * 10 > 4 * (len(a.frames) + len(b.frames))  # enough for hulls to rule pairs out
    exact = np.array(
        [[tube_iou(x, y, label_centric, (frame_iou is not None, frame_iou or 0)) for y in tubes[1]] for x in tubes[0]]
    )
    for same_label in (False, True):
        for threshold in (1e-9, 0.1, 0.5):
            i, j, iou = overlaps(a, b, same_label, threshold, label_centric, frame_iou)
            wanted = (exact >= threshold) & ((a.label[:, None] == b.label) | (not same_label))
            np.testing.assert_array_equal(np.stack([i, j]), np.nonzero(wanted))
            np.testing.assert_allclose(iou, exact[wanted], atol=1e-12)
            assert len(iou) > 20 or threshold == 0.5


def test_all_boxes_of_a_frame_meet():
    a, b = (pack({"v": crowd(seed, 9), "w": crowd(seed + 5, 9)}, ["v", "w"]) for seed in (0, 1))
    i, j, iou = box_overlaps(a, b, False, 0.3)
    expected = {
        (x, y)
        for x in range(len(a.frames))
        for y in range(len(b.frames))
        if (a.video[a.owner[x]], a.frames[x]) == (b.video[b.owner[y]], b.frames[y])
        and tube_iou(Tube([0], a.boxes[[x]]), Tube([0], b.boxes[[y]])) >= 0.3
    }
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected
    assert len(expected) == len(i) > 50 and iou.min() >= 0.3


def test_join_in_chunks():
    a, b = np.zeros(1500, np.int64), np.zeros(1000, np.int64)
    chunks = list(join(a, b))
    assert len(chunks) == 2 and max(len(i) for i, _ in chunks) < CHUNK_PAIRS + 1000
    i, j = np.concatenate(chunks, axis=1)
    np.testing.assert_array_equal(i * 1000 + j, np.arange(1_500_000))
