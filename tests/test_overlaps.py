"""Overlaps of all tubes and boxes of a video at once against one pair at a time, with gaps."""

import numpy as np
import pytest

from tests.test_box_ops import obvious_iou
from utils.box_ops import Tube, tube_iou
from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.matching import VideoTube, box_pairs, boxes_as_instances, numbered_tubes, tube_pairs
from utils.metrics.overlaps import tube_ious


def numbered(tubes: list[Tube]) -> list[VideoTube]:
    return numbered_tubes({"v": tubes}, ["v"])


def all_tube_pairs(pred: list[Tube], gt: list[Tube], min_iou: float) -> tuple:
    return tube_pairs(numbered(pred), numbered(gt), min_iou, PROTOCOLS["voc"], any_class=True)


def all_box_pairs(pred: list[Tube], gt: list[Tube], min_iou: float, inclusive: bool = False) -> tuple:
    sides = (boxes_as_instances(numbered(tubes), inclusive=inclusive) for tubes in (pred, gt))
    return box_pairs(*sides, min_iou, any_class=True)


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
    pred, gt = crowd(0, 40, step), crowd(1, 30, step)
    exact = np.array(
        [[tube_iou(p, g, label_centric, (frame_iou is not None, frame_iou or 0)) for g in gt] for p in pred]
    )
    np.testing.assert_allclose(tube_ious(pred, gt, label_centric, frame_iou), exact, atol=1e-12)
    assert (exact > 0).mean() > 0.3
    i, j, iou = all_tube_pairs(pred, gt, 0.1)
    exact = np.array([[tube_iou(p, g) for g in gt] for p in pred])
    np.testing.assert_array_equal(np.stack([i, j]), np.nonzero(exact >= 0.1))
    np.testing.assert_allclose(iou, exact[i, j], atol=1e-12)


def test_without_tubes_there_are_no_pairs():
    (tube,) = crowd(0, 1)
    for pred, gt in (([], [tube]), ([tube], []), ([], [])):
        assert tube_ious(pred, gt).shape == (len(pred), len(gt))
        assert [len(part) for pairs in (all_tube_pairs, all_box_pairs) for part in pairs(pred, gt, 0.1)] == [0] * 6


@pytest.mark.parametrize("inclusive", [False, True])
def test_all_boxes_of_a_frame_are_compared(inclusive):
    pred, gt = crowd(0, 9), crowd(1, 9)
    boxes = [
        [
            (int(frame), np.add(box, [0, 0, inclusive, inclusive]))
            for t in side
            for frame, box in zip(t.frames, t.boxes, strict=True)
        ]
        for side in (pred, gt)
    ]
    expected = {
        (i, j): obvious_iou(a, b)
        for i, (frame, a) in enumerate(boxes[0])
        for j, (other, b) in enumerate(boxes[1])
        if frame == other and obvious_iou(a, b) >= 0.3
    }
    i, j, iou = all_box_pairs(pred, gt, 0.3, inclusive)
    assert dict(zip(zip(i.tolist(), j.tolist(), strict=True), iou, strict=True)) == pytest.approx(expected)
    assert len(i) == len(expected) > 50
