"""The plots of the evaluations (`--plot`): metrics of all videos, and one video in detail."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from utils.box_ops import Track, Tube, Tubes, frames_and_boxes, motion_category
from utils.plot_utils import (
    plot_features,
    plot_motion_recall,
    plot_precision_recall,
    plot_predictions,
    plot_similarity,
    plot_tubes,
)
from utils.video_map import video_rankings

CLIP_FRAMES = 8  # frames of the clip whose features are compared with each other
FEATURE_FRAMES = 60  # frames whose features are plotted as points
SHEET_FRAMES = 8  # frames of a contact sheet
PEOPLE = 3  # in the video in detail: more are hard to tell apart in a plot
CUES = {"feature": "person features (query matching)", "iou": "IoU of boxes"}

Match = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Frames (M,) and boxes (M, 4) of detections, frames (G,) and boxes (G, 4) of the ground truth, both by frame -> the
ground-truth box that each detection is matched to, -1 for none: int64 (M,)."""


def recall_plots(folder: Path, recalls: Mapping[float, Mapping[str, Mapping[str, float]]], gt: Tubes) -> list[Path]:
    """Recall of tracks by motion category; returns the files' paths, as the other functions here.

    `recalls`: 3D IoU -> link cue -> motion category -> recall.
    """
    counts = Counter(motion_category(tube) for tubes in gt.values() for tube in tubes)
    paths = []
    for level, by_cue in recalls.items():
        paths.append(folder / f"motion_recall@{level:g}.png")
        by_name = {CUES.get(cue, cue): recall for cue, recall in by_cue.items()}
        plot_motion_recall(paths[-1], by_name, counts, f"Recall of tracks at 3D IoU {level:g}, by motion")
    return paths


def feature_plots(
    folder: Path, video: str, tracks: Sequence[Track], features: np.ndarray, gt: Sequence[Tube], match: Match
) -> list[Path]:
    """The person features of one video: similarity within a clip, and principal axes.

    `features`: float32 (M, d), of the tracks' detections, one track after another.
    """
    ids, frames, features = features_by_person(tracks, features, gt, match)
    clip, cloud = (np.isin(frames, _evenly(frames, n)) for n in (CLIP_FRAMES, FEATURE_FRAMES))
    paths = [folder / "similarity.png", folder / "features.png"]
    plot_similarity(paths[0], features[clip], ids[clip], frames[clip], f"Similarity of person features, {video}")
    plot_features(paths[1], features[cloud], ids[cloud], frames[cloud], f"Person features across frames, {video}")
    return paths


def features_by_person(
    tracks: Sequence[Track], features: np.ndarray, gt: Sequence[Tube], match: Match
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ground-truth person of each detection, -1 for nobody, int64 (M,); its frame, int64 (M,), rising; its feature,
    float32 (M, d). Arguments as in `feature_plots`."""
    (frames, boxes), (gt_frames, gt_boxes) = frames_and_boxes(tracks), frames_and_boxes(gt)
    order = np.argsort(frames, kind="stable")
    people = np.repeat(np.array([tube.person_id for tube in gt], np.int64), [len(tube) for tube in gt])
    # simultaneous actions of a person are one box; sorted by frame
    _, first = np.unique(np.stack([gt_frames, people]), axis=1, return_index=True)
    matched = match(frames[order], boxes[order], gt_frames[first], gt_boxes[first])
    ids = np.where(matched >= 0, np.append(people[first], -1)[matched], -1)
    return ids, frames[order], features[order]


def precision_recall_plots(
    folder: Path, pred: Tubes, gt: Tubes, labels: Sequence[str], thresholds: Sequence[float], protocol: str
) -> list[Path]:
    """Precision and recall of the action tubes of all videos, at each 3D IoU threshold."""
    paths, rankings = [], video_rankings(pred, gt, len(labels), thresholds, protocol)
    for threshold, classes in zip(thresholds, rankings, strict=True):
        correct, n_gt = [r.correct for r in classes], [int(r.n_gt.sum()) for r in classes]
        paths.append(folder / f"precision_recall@{threshold:g}.png")
        title = f"Precision and recall of action tubes at 3D IoU {threshold:g}"
        plot_precision_recall(paths[-1], correct, n_gt, labels, protocol, title)
    return paths


def tube_plots(
    folder: Path,
    video: str,
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    labels: Sequence[str],
    frames: Iterable[np.ndarray],
) -> list[Path]:
    """The tubes of one video in space and time, and on a few of its frames, uint8 RGB (H, W, 3)."""
    numbers = _evenly(frames_and_boxes([*gt, *pred])[0], SHEET_FRAMES).tolist() or [0]
    images = [frame for number, frame in enumerate(islice(frames, numbers[-1] + 1)) if number in numbers]
    paths = [folder / "tubes.png", folder / "frames.png"]
    plot_tubes(paths[0], pred, gt, labels, images[0].shape[1::-1], f"{video} in space and time")
    plot_predictions(paths[1], images, numbers[: len(images)], pred, gt, labels, video)
    return paths


def detailed_video(gt: Tubes) -> str:
    """The video in detail: the first by name among those with most people, up to `PEOPLE`."""
    return max(sorted(gt), key=lambda name: min(len({tube.person_id for tube in gt[name]}), PEOPLE))


def _evenly(frames: np.ndarray, n: int) -> np.ndarray:
    """Up to `n` of the frames, evenly over them, int64 (k,) rising."""
    distinct = np.unique(frames)
    indices = np.linspace(0, max(len(distinct) - 1, 0), min(n, len(distinct)))
    return distinct[indices.round().astype(np.int64)]
