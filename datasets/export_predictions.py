"""Predictions out, in the formats that public tools read; never as pickles.

What a format cannot hold is refused with the reason; `datasets.predictions` reads all of these back.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.formats.sources import check_csv_name, check_name
from datasets.predictions import FORMATS, predictions_json
from utils.box_ops import Tube
from utils.metrics.evaluation import Evaluation
from utils.misc import InputError
from utils.storage.files import atomic, write_json, write_text

FRAME_METRIC = "frame-mAP"
OF_FRAMES = {
    "act": "tubes of the ACT detector are pickles, which this project does not write",
    "multisports": "tubes of MultiSports are pickles, which this project does not write",
    "ava": "AVA's csv has no tubes",
}
"""Formats that are written for frame-mAP alone, and why."""


def export_json(folder: Path, e: Evaluation) -> Path:
    """The project's own JSON."""
    path = folder / "predictions.json"
    write_json(path, predictions_json(e.labels, e.pred, e.sizes))
    return path


def export_frame_detections(folder: Path, e: Evaluation) -> Path:
    """ACT's and MultiSports' frame detections as `.npy`: float64 (N, 8), videos by their number in the subset."""
    names = {name: i for i, name in enumerate(e.subset)}
    rows = [
        np.column_stack([np.full(len(frames), names[name]), frames + 1, np.full(len(frames), label), scores, boxes])
        for name, label, frames, boxes, scores in _tubes(e)
    ]
    path = folder / "frame_detections.npy"
    with atomic(path) as part, part.open("wb") as file:
        np.save(file, np.concatenate([np.zeros((0, 8)), *rows]), allow_pickle=False)
    return path


def export_ava(folder: Path, e: Evaluation) -> Path:
    """AVA's csv: a row for each box, as shares of the frame, at a key frame's second, else `start` + frame / `rate`."""
    start, rate = (e.ava_csv.get(key, FORMATS["ava_csv"].defaults[key]) for key in ("start", "rate"))
    key = e.ava_csv.get("key", lambda name, frame: (name, start + frame / rate))
    ids = {name: number for number, name in e.ava_csv.get("label_map", {}).items()}
    lines = []
    for name, label, frames, boxes, scores in _tubes(e):
        width, height, _ = e.sizes[name]
        if not (width and height):
            raise InputError(f"--export ava: the width and height of video {name!r} are not known")
        check_csv_name(name, "--export ava")
        shares = boxes / [width, height, width, height]
        for frame, share, score in zip(frames.tolist(), shares.tolist(), scores.tolist(), strict=True):
            row = f"{','.join(map(repr, share))},{ids.get(e.labels[label], label + 1)},{score!r}"
            source, second = key(name, frame)
            second = f"{int(second):04d}" if second == int(second) else repr(second)  # as AVA's files have them
            lines.append(f"{source},{second},{row}\n")
    write_text(folder / "ava.csv", "".join(lines))
    return folder / "ava.csv"


def export_mot(folder: Path, e: Evaluation) -> Path:
    """MOT: `<video>.txt`, a track for each tube; columns 7 and 8 are the frame's score and the class from 1."""
    for name in e.pred:
        check_name(name, folder / "mot", "--export mot")
    for name in e.pred:
        lines = []
        for track, (_, label, frames, boxes, scores) in enumerate(_tubes(e, [name]), 1):
            rows = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores]).tolist()
            for frame, row in zip(frames + 1, rows, strict=True):
                lines.append(f"{frame},{track},{','.join(map(repr, row))},{label + 1},-1,-1\n")
        write_text(folder / "mot" / f"{name}.txt", "".join(lines))
    return folder / "mot"


EXPORTS: dict[str, Callable[[Path, Evaluation], Path]] = {
    "json": export_json,
    "act": export_frame_detections,
    "multisports": export_frame_detections,
    "ava": export_ava,
    "mot": export_mot,
}


def check_export(format: str | None, metric: str) -> None:
    """InputError where a format cannot hold what the metric compares."""
    if format in OF_FRAMES and metric != FRAME_METRIC:
        text = f"only goes with --metric {FRAME_METRIC}: {OF_FRAMES[format]}; use json"
        raise InputError(f"--export {format}: {text}")


def export(folder: Path, e: Evaluation, formats: Iterable[str], metric: str) -> list[Path]:
    """Write the predictions that `metric` compared into `folder`; returns the paths.

    MOT has no score of a tube, which is read back as the mean of its frames': for a metric of tubes, frames whose mean
    is another have the tube's.
    """
    by_tube = e
    if metric != FRAME_METRIC:
        by_tube = e._replace(pred={name: list(map(_scored_by_mean, tubes)) for name, tubes in e.pred.items()})
    return [EXPORTS[format](folder, by_tube if format == "mot" else e) for format in formats]


def _scored_by_mean(tube: Tube) -> Tube:
    """A tube whose frames' scores have its score as their mean: its own, else its score in each frame."""
    if np.mean(tube.frame_scores, dtype=np.float64) == tube.score:
        return tube
    return replace(tube, frame_scores=np.full(len(tube), float(tube.score)))


def _tubes(
    e: Evaluation, names: Iterable[str] | None = None
) -> Iterable[tuple[str, int, np.ndarray, np.ndarray, np.ndarray]]:
    """Video, label, frames, boxes float64 (T, 4) and scores float64 (T,) of the tubes of these videos (None: all)."""
    for name in e.pred if names is None else names:
        for tube in e.pred[name]:
            yield name, tube.label, tube.frames, tube.boxes.astype(np.float64), tube.frame_scores.astype(np.float64)
