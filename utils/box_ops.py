"""Boxes, tubes and tracks: conversions, IoU in the plane and in space-time, and the motion categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # imported where it is used, since stages start without it

MOTION_CATEGORIES = ("small", "medium", "large")
MOTION_STRIDES = (4, 8, 16, 24, 36)  # frames
MOTION_BOUNDS = {"large": 0.49, "medium": 0.66}  # mean IoU below it


@dataclass(frozen=True)
class Tube:
    """One person (or one action of a person) through time.

    `frames` int64 (T,) strictly increasing, gaps allowed; `boxes` float32 (T, 4) xyxy in pixels of the
    original frame; `label` the action's index or -1; `score`; `person_id` the identity or -1; `frame_scores` float
    (T,) the score in each frame, None: `score`. Frames and boxes are converted; ValueError when shapes do not fit or
    frames do not increase.
    """

    frames: np.ndarray
    boxes: np.ndarray
    label: int = -1
    score: float = 1.0
    person_id: int = -1
    frame_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        _convert_frames_and_boxes(self, "tube")
        if self.frame_scores is not None and np.shape(self.frame_scores) != self.frames.shape:
            raise ValueError(f"a tube of {len(self)} frames has frame_scores of shape {np.shape(self.frame_scores)}")

    def __len__(self) -> int:
        return len(self.frames)


Tubes = Mapping[str, Sequence[Tube]]
"""The tubes of every video by its name."""


@dataclass(frozen=True)
class Track:
    """One followed person: detections of rising frames that belong together.

    `frames` int64 (T,) strictly increasing, gaps allowed; `boxes` float32 (T, 4) xyxy in pixels of the original frame;
    `scores` float32 (T,) person scores, or the action's where actions are drawn; `rows` int64 (T,) indices of the
    video's detections, or None; `labels` int64 (T,) an action per frame, or uint8 (T, C), 1 for each of a frame's
    actions, or None; `person_id` the track's number or -1; `video` its name. Arrays are converted; ValueError when
    their shapes do not fit or frames do not increase.
    """

    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    rows: np.ndarray | None = None
    labels: np.ndarray | None = None
    person_id: int = -1
    video: str = ""

    def __post_init__(self) -> None:
        _convert_frames_and_boxes(self, "track")
        columns = {"scores": np.asarray(self.scores, np.float32)}
        for name in ("rows", "labels"):
            if (value := getattr(self, name)) is not None:
                columns[name] = np.asarray(value, np.int64 if np.ndim(value) == 1 else np.uint8)
        for name, column in columns.items():
            if column.shape[: 1 if name == "labels" else None] != self.frames.shape:
                raise ValueError(f"a track of {len(self)} frames has {name} of shape {column.shape}")
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.frames)

    def tube(self) -> Tube:
        """The same as a `Tube` without a label, scored by its mean score."""
        return Tube(self.frames, self.boxes, score=float(self.scores.mean()), person_id=self.person_id)


def _convert_frames_and_boxes(tube: Tube | Track, noun: str) -> None:
    frames, boxes = np.asarray(tube.frames, np.int64), np.asarray(tube.boxes, np.float32)
    if frames.ndim != 1 or boxes.shape != (len(frames), 4):
        raise ValueError(f"a {noun} needs frames (T,) and boxes (T, 4), not {frames.shape} and {boxes.shape}")
    if (np.diff(frames) <= 0).any():
        raise ValueError(f"a {noun}'s frames must be strictly increasing")
    object.__setattr__(tube, "frames", frames)
    object.__setattr__(tube, "boxes", boxes)


def frames_and_boxes(tubes: Sequence[Tube | Track]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of all tubes or tracks, one after another: frames int64 (M,), boxes float32 (M, 4)."""
    frames = [np.zeros(0, np.int64), *(tube.frames for tube in tubes)]
    boxes = [np.zeros((0, 4), np.float32), *(tube.boxes for tube in tubes)]
    return np.concatenate(frames), np.concatenate(boxes)


def person_numbers(tubes: Sequence[Tube]) -> list[int]:
    """The person of each tube, or its place in the list where it has none: what its colour in a plot depends on."""
    return [i if tube.person_id < 0 else tube.person_id for i, tube in enumerate(tubes)]


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom."""
    from torchvision.ops import box_convert

    return box_convert(boxes, "cxcywh", "xyxy")


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom -> centre x, centre y, width, height."""
    from torchvision.ops import box_convert

    return box_convert(boxes, "xyxy", "cxcywh")


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def box_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and area of the union of every pair of xyxy boxes, (n, 4) and (m, 4) -> two (n, m) tensors.

    Reversed boxes count as empty; the IoU with a union of 0 is 0.
    """
    import torch

    overlap = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    inter = overlap.clamp(min=0).prod(-1)
    union = _area(a)[:, None] + _area(b)[None, :] - inter
    return torch.where(union > 0, inter / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0), union


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi 2019) of every pair of xyxy boxes, (n, 4) and (m, 4) -> (n, m) in [-1, 1].

    Finite for degenerate boxes: the share of the hull that neither covers is 0 where the hull is empty.
    """
    import torch

    iou, union = box_iou(a, b)
    hull = torch.maximum(a[:, None, 2:], b[None, :, 2:]) - torch.minimum(a[:, None, :2], b[None, :, :2])
    area = hull.clamp(min=0).prod(-1)
    uncovered = (area - union) / area.clamp(min=torch.finfo(area.dtype).tiny)
    return iou - torch.where(area > 0, uncovered, 0.0)


def paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of xyxy boxes that broadcast, (..., 4) and (..., 4) -> (...), float64.

    Reversed boxes count as empty; the IoU with a union of 0 is 0.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ax0, ay0, ax1, ay1 = (a[..., i] for i in range(4))
    bx0, by0, bx1, by1 = (b[..., i] for i in range(4))
    inter = np.maximum(np.minimum(ax1, bx1) - np.maximum(ax0, bx0), 0)
    inter = inter * np.maximum(np.minimum(ay1, by1) - np.maximum(ay0, by0), 0)
    area_a = np.maximum(ax1 - ax0, 0) * np.maximum(ay1 - ay0, 0)
    area_b = np.maximum(bx1 - bx0, 0) * np.maximum(by1 - by0, 0)
    union = area_a + area_b - inter
    return inter / np.where(union > 0, union, 1)


def tube_iou(a: Tube, b: Tube, label_centric: bool = False, frame_iou_set: tuple[bool, float] = (False, 0.5)) -> float:
    """Spatio-temporal (3D) IoU: sum of per-frame IoU over the frames both have / union of their frames.

    With `label_centric` only `b`'s frames count (annotations cover labelled frames alone). With
    `frame_iou_set=(True, x)` a frame's IoU above x counts as 1, which leaves the temporal overlap and
    tells bad links from bad boxes. 0 for empty tubes.
    """
    _, in_a, in_b = np.intersect1d(a.frames, b.frames, assume_unique=True, return_indices=True)
    ious = paired_iou(a.boxes[in_a], b.boxes[in_b])
    if frame_iou_set[0]:
        ious = np.where(ious > frame_iou_set[1], 1.0, ious)
    frames = len(b) if label_centric else len(a) + len(b) - len(in_a)
    return float(ious.sum() / frames) if frames else 0.0


def motion_category(tube: Tube) -> str:
    """How much a person moves between frames: "small", "medium" or "large" motion.

    For each stride of 4, 8, 16, 24 and 36 frames the tube's boxes are sampled every `stride` frames from its first one,
    and the IoU of consecutive samples exactly one stride apart is averaged (the IoU of its first and last box where
    there is no such pair). The mean over the strides below 0.49 is large motion, below 0.66 medium. ValueError where
    the tube is empty.
    """
    if not len(tube):
        raise ValueError("an empty tube has no motion category")
    age = tube.frames - tube.frames[0]
    means = []
    for stride in MOTION_STRIDES:
        sampled = np.flatnonzero(age % stride == 0)
        apart = np.flatnonzero(np.diff(age[sampled]) == stride)
        a, b = (sampled[apart], sampled[apart + 1]) if len(apart) else ([0], [-1])
        means.append(paired_iou(tube.boxes[a], tube.boxes[b]).mean())
    return next((name for name, bound in MOTION_BOUNDS.items() if np.mean(means) < bound), "small")
