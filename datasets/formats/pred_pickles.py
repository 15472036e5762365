"""Predictions as pickles of NumPy arrays: frames count from 1, classes from 0, boxes are xyxy in pixels."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.formats.predicted import TubeRows
from utils.misc import InputError
from utils.safe_pickle import read_pickle

TUBES = "_tubes.pkl"


@functools.lru_cache(maxsize=1)
def content_of(path: Path) -> object:
    """A pickle's content, kept until `content_of.cache_clear()`, as recognising a format reads it too."""
    return read_pickle(path, "file of predictions")


def kind_of(path: Path) -> str | None:
    """The format of a pickle or `.npy`, None where it is none of these."""
    content = _npy(path) if path.suffix == ".npy" else content_of(path)
    if isinstance(content, np.ndarray):
        return "frame_detections"
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(value, Mapping) for value in content.values()):
        return "retinanet"
    first = next((item for items in content.values() if isinstance(items, list) for item in items), None)
    return {2: "act_tubes", 3: "multisports"}.get(len(first)) if isinstance(first, tuple | list) else None


def read_act_tubes(tubes: TubeRows) -> None:
    """ACT and MOC: a folder of `<video>_tubes.pkl`, {label: [(float32 (T, 6), score of the tube)]}.

    A row is a frame, x1, y1, x2, y2 and the frame's score. Tubes are as linked: not suppressed (`nms3dt` there).
    """
    files = [tubes.path] if tubes.path.is_file() else sorted(tubes.path.rglob(f"*{TUBES}"))
    if not files:
        tubelets = next((file.name for file in sorted(tubes.path.rglob("*.pkl"))), None)
        other = f"; {tubelets} are tubelets, which the code has yet to link" if tubelets else ""
        raise tubes.fault("", f"no *{TUBES} here{other}")
    for file in files:
        name = file.name if file == tubes.path else file.relative_to(tubes.path).as_posix()
        tubes.video(name.removesuffix(TUBES))
        for label, pairs in read_pickle(file, "file of predictions").items():
            for rows, score in pairs:
                tubes.add(name, name.removesuffix(TUBES), label, rows, score)


def read_multisports(tubes: TubeRows) -> None:
    """MultiSports' `video_detections.pkl`: {label: [(video, score of the tube, (T, 6))]}."""
    for label, triples in content_of(tubes.path).items():
        for i, (video, score, rows) in enumerate(triples):
            tubes.add(f"label {label}, tube {i}", video, label, rows, score)


def read_frame_detections(tubes: TubeRows) -> None:
    """MultiSports' and ACT's frame detections, a pickle or `.npy` of an array (N, 8).

    A row is the index of the video in the list of test videos, a frame, a label, a score, x1, y1, x2, y2.
    """
    videos = [tubes.video(name) for name in tubes.need("videos")]
    rows = np.asarray(_npy(tubes.path) if tubes.path.suffix == ".npy" else content_of(tubes.path))
    if rows.ndim != 2 or rows.shape[1] != 8 or rows.dtype.kind not in "iuf":
        raise tubes.fault("", f"an array of shape {rows.shape}, not (N, 8): video, frame, label, score, box")
    rows = rows.astype(np.float64)
    bad = ~((rows[:, 0] >= 0) & (rows[:, 0] < len(videos)))
    if bad.any():
        row = int(bad.argmax())
        raise tubes.fault(f"row {row}", f"video {rows[row, 0]:g}, but the list has {len(videos)}")
    tubes.add_boxes("row", range(len(rows)), rows[:, 0].astype(np.int64), rows[:, 2], rows[:, [1, 4, 5, 6, 7, 3]])


def read_retinanet(tubes: TubeRows) -> None:
    """3D-RetinaNet's and ROAD's `tubes_*.pkl`: {label type: {video: [{label_id, scores, boxes, score, frames}]}}.

    Boxes are pixels of `picture`, 682 x 512 there.
    """
    content = content_of(tubes.path)
    kind = tubes.options.get("label_type") or (next(iter(content)) if len(content) == 1 else "action")
    if kind not in content:
        raise tubes.fault("", f"no label type {kind!r}; the file has: {', '.join(map(str, content))}")
    for video, of_video in content[kind].items():
        tubes.video(video)
        for i, tube in enumerate(of_video):
            place = f"video {video!r}, tube {i}"
            try:
                frames, boxes, scores = (np.asarray(tube[key]) for key in ("frames", "boxes", "scores"))
                rows = np.column_stack([frames, boxes, scores])
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise tubes.fault(place, f"{type(error).__name__}: {error}"[:300]) from None
            tubes.add(place, video, tube.get("label_id"), rows, tube.get("score"))


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a readable NumPy file ({error})"[:300]) from None
