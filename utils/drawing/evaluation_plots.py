"""The pictures that the evaluations draw under `--plot`: of all videos in figures, of one of them in detail."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from utils.box_ops import Tube, motion_categories
from utils.plot_utils import (
    plot_features,
    plot_motion_recall,
    plot_precision_recall,
    plot_predictions,
    plot_similarity,
    plot_tubes,
)
from utils.storage.tracks import TrackStore
from utils.video_map import sorted_matches

CLIP_FRAMES = 8  # frames of the clip whose features are compared with each other
FEATURE_FRAMES = 60  # frames whose features are drawn as points
SHEET_FRAMES = 8  # frames of a contact sheet
PEOPLE = 3  # in the video that is shown: more are hard to tell apart in a picture
CUES = {"feature": "person features (query matching)", "iou": "IoU of boxes"}

Tubes = Mapping[str, Sequence[Tube]]
Frames = Callable[[str], Iterable[np.ndarray]]
"""A video's name -> its frames in order, uint8 RGB (H, W, 3)."""
Match = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Frames (M,) and boxes (M, 4), annotated frames (G,) and boxes (G, 4), both by frame -> the annotated box that each of
the former stands for, -1 for none: int64 (M,)."""


def linked_figures(
    folder: Path,
    linked: TrackStore,
    gt: Tubes,
    labels: Sequence[str],
    frames_of: Frames,
    match: Match,
    recalls: Mapping[float, Mapping[str, Mapping[str, float]]],
    shown: str | None = None,
) -> list[Path]:
    """The pictures of `eval_qmm.py`, under `folder`; their paths.

    `recalls`: 3D IoU -> link cue -> recall by motion category. `shown`: the video in detail (None: `shown_video`).
    """
    counts = Counter(motion_categories([tube for tubes in gt.values() for tube in tubes]))
    paths = []
    for level, by_cue in recalls.items():
        paths.append(folder / f"motion_recall@{level:g}.png")
        named = {CUES[cue]: recall for cue, recall in by_cue.items()}
        plot_motion_recall(paths[-1], named, counts, f"Recall of people at 3D IoU {level:g}, by motion")
    tubes = linked.tubes()
    name = shown or shown_video({name: gt[name] for name in tubes if name in gt})
    ids, frames, features = _features(linked, name, gt[name], match)
    clip, cloud = (np.isin(frames, _spread(frames, n)) for n in (CLIP_FRAMES, FEATURE_FRAMES))
    paths += [folder / "similarity.png", folder / "features.png"]
    plot_similarity(paths[-2], features[clip], ids[clip], frames[clip], f"Similarity of person features, {name}")
    plot_features(paths[-1], features[cloud], ids[cloud], frames[cloud], f"Person features across frames, {name}")
    return paths + _video_figures(folder, name, tubes[name], gt[name], labels, frames_of)


def action_figures(
    folder: Path,
    pred: Tubes,
    gt: Tubes,
    labels: Sequence[str],
    levels: Sequence[float],
    protocol: str,
    frames_of: Frames,
    shown: str | None = None,
) -> list[Path]:
    """The pictures of `eval_map.py`, under `folder`; their paths. Curves are of action tubes, at each of `levels`;
    `shown` as in `linked_figures`."""
    paths = []
    for level in levels:
        correct, n_gt = sorted_matches(pred, gt, len(labels), level, protocol)
        paths.append(folder / f"precision_recall@{level:g}.png")
        title = f"Precision and recall of action tubes at 3D IoU {level:g}"
        plot_precision_recall(paths[-1], correct, n_gt, labels, protocol, title)
    name = shown or shown_video({name: gt[name] for name in pred if name in gt})
    return paths + _video_figures(folder, name, pred[name], gt[name], labels, frames_of)


def shown_video(gt: Tubes) -> str:
    """The video shown where none is asked for: the first by name of those with most people, of whom `PEOPLE` count."""
    return max(sorted(gt), key=lambda name: min(len({tube.person_id for tube in gt[name]}), PEOPLE))


def _video_figures(
    folder: Path, name: str, pred: Sequence[Tube], gt: Sequence[Tube], labels: Sequence[str], frames_of: Frames
) -> list[Path]:
    """Tubes of one video in space and time, and on a few of its frames."""
    numbers = _spread(np.concatenate([np.zeros(0, np.int64), *(tube.frames for tube in [*gt, *pred])]), SHEET_FRAMES)
    wanted = numbers.tolist() or [0]
    frames = islice(frames_of(name), wanted[-1] + 1)
    held = {number: frame for number, frame in enumerate(frames) if number in wanted}
    size = next(iter(held.values())).shape[1::-1]
    paths = [folder / "tubes.png", folder / "frames.png"]
    plot_tubes(paths[0], pred, gt, labels, size, f"{name} in space and time")
    plot_predictions(paths[1], list(held.values()), list(held), pred, gt, labels, name)
    return paths


def _features(
    linked: TrackStore, name: str, gt: Sequence[Tube], match: Match
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each linked query of a video: who it is by the annotation int64 (M,), -1 for nobody, its frame int64 (M,) and
    its feature float32 (M, d); by frame."""
    order = np.argsort(linked.read(name, "frames"), kind="stable")
    frames, boxes, features = (linked.read(name, column)[order] for column in ("frames", "boxes", "features"))
    where = np.concatenate([np.zeros((0, 2), np.int64), *(_places(tube) for tube in gt)])
    there = np.concatenate([np.zeros((0, 4), np.float32), *(tube.boxes for tube in gt)])
    where, first = np.unique(where, axis=0, return_index=True)  # a person's simultaneous actions are one box
    found = match(frames, boxes, where[:, 0], there[first])
    return np.where(found >= 0, np.append(where[:, 1], -1)[found], -1), frames, features


def _places(tube: Tube) -> np.ndarray:
    return np.stack([tube.frames, np.full(len(tube), tube.person_id)], 1)


def _spread(frames: np.ndarray, n: int) -> np.ndarray:
    """Up to `n` of the frames, evenly over them, int64 (k,) rising."""
    distinct = np.unique(frames)
    places = np.linspace(0, max(len(distinct) - 1, 0), min(n, len(distinct)))
    return distinct[places.round().astype(np.int64)]
