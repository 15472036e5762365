"""Predictions as the project's JSON: what `predict.py` writes of one video, or many videos in one file.

    {"labels": [...], "videos": {name: {"tubes": [{"label", "score", "frames", "boxes", "scores", "person_id"}]}}}

Frames count from 0, boxes are xyxy in pixels; "label" is a name, or an index of "labels". "scores", a score for each
frame (default: the tube's), and "person_id" may be left out. `predict.py`'s file has "video" and "tubes" in place of
"videos"; a folder of such files is read whole. A video's "width", "height" and "n_frames" are compared with the data
set's, since other frames than the annotated ones give other numbers.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.formats.cvat_writer import LABELS as CVAT_LABELS
from datasets.formats.predicted import WHERE, TubeRows
from datasets.formats.project_json import distinct
from utils.misc import InputError, did_you_mean
from utils.storage.files import read_json


def read(tubes: TubeRows) -> None:
    """Read a file, or every `.json` of a folder; InputError names the video and the tube at fault.

    Without names of classes in the options, they are those of the first file.
    """
    path = tubes.path
    files = [path]
    if path.is_dir():  # that of `predict.py --export cvat` holds the labels of the task too
        files = sorted(file for file in path.glob("*.json") if file.name != CVAT_LABELS)
    if not files:
        raise InputError(f"{path}: a folder without .json files")
    seen: dict[str, Path] = {}
    for file in files:
        labels, videos = _content(file, tubes.options.get("videos") or [])
        if file == files[0] and not (tubes.options.get("labels") or tubes.options.get("label_map")):
            tubes.options = {**tubes.options, "labels": labels}
        for name, video in videos.items():
            if seen.setdefault(name, file) != file:
                raise InputError(f"{file}: video {name!r} is in {seen[name].name} too; leave one of them in the folder")
            if not isinstance(video, dict) or not isinstance(video.get("tubes"), list):
                raise InputError(f'{file}: video {name!r}: "tubes" is not a list')
            _add(tubes, name, video, labels)


def _content(file: Path, names: list[str]) -> tuple[list, dict[str, dict]]:
    """A file's names of labels, and its videos by name; `names` are the data set's."""
    content = read_json(file, "predictions file", distinct)
    if not isinstance(content, dict) or not ("videos" in content or {"video", "tubes"} <= content.keys()):
        raise InputError(f'{file}: no predictions: neither "videos" nor "video" and "tubes"')
    labels = content.get("labels") or []
    videos = content["videos"] if "videos" in content else {_name_of(str(content["video"]), names): content}
    if not isinstance(videos, dict) or not isinstance(labels, list):
        raise InputError(f'{file}: "videos" is not a mapping or "labels" not a list')
    return labels, videos


def _add(tubes: TubeRows, name: str, video: Mapping, labels: list) -> None:
    """Add the tubes of a video, whose label indices refer to `labels`."""
    tubes.video(name)
    tubes.shape(name, video)
    for i, tube in enumerate(video["tubes"]):
        place = f"video {name!r}, tube {i}"
        try:
            label = tube["label"]
            if label is None:
                raise ValueError("label is null, but a predicted tube has an action")
            if not isinstance(label, str) and labels:
                first, n = tubes.first_label, len(labels)
                number = label - first
                if number not in range(n):
                    near = f"; if they count from {first + 1}, say first_label={first + 1}{WHERE}" * (number == n)
                    text = f"label {str(label)!r} is not among the indices of labels, {first} to {first + n - 1}"
                    raise tubes.fault(place, text + near)
                label = labels[int(number)]
            if isinstance(label, str):
                if label not in tubes.label_names:
                    near, known = did_you_mean(label, tubes.label_names), ", ".join(tubes.label_names[:30])
                    raise tubes.fault(place, f"label {label!r} is not among {known}{near}")
                label = tubes.first_label + tubes.label_names.index(label)
            frames, boxes = tube["frames"], tube["boxes"]
            scores = tube.get("scores", [tube["score"]] * len(frames))
            if not len(frames) == len(boxes) == len(scores):
                raise ValueError(f"{len(frames)} frames, {len(boxes)} boxes and {len(scores)} scores")
            rows = np.column_stack([frames, np.reshape(boxes, (len(frames), 4)), scores]).astype(np.float64)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise tubes.fault(place, reason) from None
        tubes.add(place, name, label, rows, tube["score"], tube.get("person_id"))


def _name_of(path: str, names: list[str]) -> str:
    """The data set's name of a video that `predict.py` read from `path`: the longest that the path ends with."""
    whole = [f"/{Path(path).as_posix().lstrip('/')}", f"/{Path(path).with_suffix('').as_posix().lstrip('/')}"]
    known = [name for name in names if any(text.endswith(f"/{name}") for text in whole)]
    return max(known, key=len, default=path)
