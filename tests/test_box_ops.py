"""Boxes and tubes against slower obvious versions and their properties."""

from collections import Counter

import numpy as np
import pytest
import torch

from tests.tube_cases import jhmdb21_case, random_case
from utils.box_ops import (
    Track,
    Tube,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    frames_and_boxes,
    generalized_box_iou,
    motion_category,
    paired_iou,
    tube_iou,
)


def obvious_iou(a, b) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def obvious_tube_iou(a: Tube, b: Tube, label_centric=False, frame_iou_set=(False, 0.5)) -> float:
    of_a = dict(zip(a.frames.tolist(), a.boxes.tolist(), strict=True))
    of_b = dict(zip(b.frames.tolist(), b.boxes.tolist(), strict=True))
    total = 0.0
    for frame in of_a.keys() & of_b.keys():
        iou = obvious_iou(of_a[frame], of_b[frame])
        total += 1.0 if frame_iou_set[0] and iou > frame_iou_set[1] else iou
    frames = of_b.keys() if label_centric else of_a.keys() | of_b.keys()
    return total / len(frames)


def random_boxes(seed: int, n: int) -> np.ndarray:
    corner, size = np.random.RandomState(seed).uniform(0, [[[50.0]], [[40.0]]], (2, n, 2))
    return np.concatenate([corner, corner + size], 1)


def some_tubes(seed: int) -> list[Tube]:
    return [tube for side in random_case(seed) for tubes in side.values() for tube in tubes]


def test_conversion_there_and_back():
    boxes = torch.tensor([[10.0, 20, 30, 60], [5, 5, 5, 5]])
    assert box_xyxy_to_cxcywh(boxes)[0].tolist() == [20, 40, 20, 40]
    many = torch.tensor(random_boxes(0, 60)).reshape(3, 20, 4)
    torch.testing.assert_close(box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(many)), many)


@pytest.mark.parametrize("seed", [0, 1])
def test_iou_of_all_pairs(seed):
    a, b = random_boxes(seed, 7), random_boxes(seed + 10, 9)
    iou, union = box_iou(torch.tensor(a), torch.tensor(b))
    expected = np.array([[obvious_iou(x, y) for y in b] for x in a])
    np.testing.assert_allclose(iou, expected, atol=1e-12)
    np.testing.assert_allclose(paired_iou(a[:, None], b[None]), expected, atol=1e-12)
    inter = expected * union.numpy()
    areas = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)
    np.testing.assert_allclose(union, areas - inter, atol=1e-9)


def test_generalized_iou_by_hand():
    a = torch.tensor([[0.0, 0, 2, 2]])
    b = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [4, 0, 6, 2], [0, 0, 1, 1]])
    expected = torch.tensor([[1, 1 / 7 - 2 / 9, -4 / 12, 1 / 4]])
    torch.testing.assert_close(generalized_box_iou(a, b), expected)


def test_degenerate_boxes_are_finite_with_finite_gradients():
    boxes = torch.tensor(
        [[0.0, 0, 0, 0], [1, 1, 1, 5], [3, 3, 1, 1], [0, 0, 4, 4], [1e-30, 0, 2e-30, 1e-30], [0, 0, 1e9, 1e9]]
    )
    a, b = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    iou, giou = box_iou(a, b)[0], generalized_box_iou(a, b)
    assert iou.isfinite().all() and giou.isfinite().all()
    assert ((giou >= -1) & (giou <= 1)).all()
    assert iou[0, 0] == 0 and iou[3, 3] == 1
    (iou.sum() + giou.sum()).backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()
    assert np.isfinite(paired_iou(boxes[:, None].numpy(), boxes[None].numpy())).all()


@pytest.mark.parametrize("options", [{}, {"label_centric": True}, {"frame_iou_set": (True, 0.4)}])
def test_tube_iou_is_the_obvious_sum(options):
    tubes = some_tubes(3)
    pairs = [(a, b) for a in tubes[:30] for b in tubes]
    expected = [obvious_tube_iou(a, b, **options) for a, b in pairs]
    assert sum(value > 0 for value in expected) > 200
    np.testing.assert_allclose([tube_iou(a, b, **options) for a, b in pairs], expected, atol=1e-12)


def test_a_track_converts_refuses_and_becomes_a_tube():
    track = Track([2, 5], np.zeros((2, 4)), [0.5, 1.0], rows=[7, 9], person_id=3, video="v")
    assert (track.frames.dtype, track.boxes.dtype, track.scores.dtype) == (np.int64, np.float32, np.float32)
    assert track.rows.dtype == np.int64 and track.labels is None and len(track) == 2
    tube = track.tube()
    assert tube.frames.tolist() == [2, 5] and tube.score == 0.75 and (tube.person_id, tube.label) == (3, -1)
    for columns in (
        {"frames": [5, 2]},
        {"boxes": np.zeros((1, 4))},
        {"scores": [0.5]},
        {"rows": [7]},
        {"labels": [1, 2, 3]},
    ):
        with pytest.raises(ValueError, match="track"):
            Track(**{"frames": [2, 5], "boxes": np.zeros((2, 4)), "scores": [0.5, 1.0]} | columns)


def test_tube_converts_and_refuses():
    tube = Tube([1, 3], [[0, 0, 1, 1], [0, 0, 2, 2]])
    assert (tube.frames.dtype, tube.boxes.dtype, len(tube)) == (np.int64, np.float32, 2)
    for frames, boxes in (
        [[2, 1], np.zeros((2, 4))],
        [[1, 1], np.zeros((2, 4))],
        [[1], np.zeros((2, 4))],
        [[1], [[0, 0, 1]]],
    ):
        with pytest.raises(ValueError, match="tube"):
            Tube(frames, boxes)
    with pytest.raises(AttributeError):
        tube.label = 3


def obvious_motion(tube: Tube) -> str:
    box = dict(zip(tube.frames.tolist(), tube.boxes.tolist(), strict=True))
    first, last = tube.frames[[0, -1]].tolist()
    means = []
    for stride in (4, 8, 16, 24, 36):
        ious = [
            obvious_iou(box[f], box[f + stride])
            for f in range(first, last + 1, stride)
            if {f, f + stride} <= box.keys()
        ]
        means.append(np.mean(ious) if ious else obvious_iou(box[first], box[last]))
    overlap = np.mean(means)
    return "large" if overlap < 0.49 else "medium" if overlap < 0.66 else "small"


@pytest.mark.parametrize("seed", range(4))
def test_motion_is_the_obvious_mean(seed):
    tubes = some_tubes(seed)
    expected = [obvious_motion(tube) for tube in tubes]
    assert len(set(expected)) == 3
    assert list(map(motion_category, tubes)) == expected


def test_motion_of_a_single_frame_and_of_none():
    assert motion_category(Tube([7], [[0, 0, 5, 5]])) == "small"
    with pytest.raises(ValueError, match="empty"):
        motion_category(Tube([], np.zeros((0, 4))))


def test_motion_of_the_jhmdb21_test_videos(fixtures):
    gt = jhmdb21_case(fixtures)[1]
    counts = Counter(motion_category(tube) for tubes in gt.values() for tube in tubes)
    assert counts == {"small": 195, "medium": 41, "large": 32}


def test_boxes_of_tubes_one_after_another() -> None:
    a, b = Tube([3, 5], [[0, 0, 1, 1], [2, 2, 3, 3]]), Tube([4], [[5, 5, 6, 6]])
    frames, boxes = frames_and_boxes([a, b])
    assert frames.tolist() == [3, 5, 4] and np.array_equal(boxes, np.concatenate([a.boxes, b.boxes]))
    assert [part.shape for part in frames_and_boxes([])] == [(0,), (0, 4)]
