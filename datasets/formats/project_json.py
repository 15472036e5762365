"""The project's own format: one JSON file, described in docs/own_data.md.

    {"labels": [...], "videos": {name: {"width", "height", "n_frames", "tubes": [{"label", "person_id", "frames",
    "boxes"}]}}}

Frames count from 0, boxes are xyxy in pixels. "label" is a name, an index of "labels", or null for a person without
action; "labels", "width", "height", "n_frames" and "person_id" may be left out.
"""

import json
from collections import Counter
from pathlib import Path

from datasets.formats.common import AnnotationFile, RawTube, RawVideo, box_array, whole_number, whole_numbers
from utils.misc import InputError, counted, did_you_mean
from utils.storage.files import read_json, shorten, write_text

KEYS = {
    "file": ("labels", "videos"),
    "video": ("width", "height", "n_frames", "tubes"),
    "tube": ("label", "person_id", "frames", "boxes"),
}


def read(path: Path) -> AnnotationFile:
    """Read a JSON annotation; InputError names the video and the tube at fault."""
    content = read_json(path, "annotation file", distinct)
    _require(isinstance(content, dict) and isinstance(content.get("videos"), dict), path, '"videos" is not a mapping')
    labels = content.get("labels") or []
    names = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    _require(names, path, '"labels" is not a list of names')
    videos = {}
    for name, video in content["videos"].items():
        where = f"{path}: video {name!r}"
        _require(isinstance(video, dict), where, "not a mapping")
        _require(isinstance(video.get("tubes"), list), where, '"tubes" is not a list')
        try:
            size = [whole_number(video.get(key) or 0, key) for key in ("width", "height", "n_frames")]
            tubes = []
            for i, tube in enumerate(video["tubes"]):
                where = f"{path}: video {name!r}, tube {i}"
                _require(isinstance(tube, dict), where, "not a mapping")
                tubes.append(_tube(tube))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{where}: {reason}") from None
        videos[name] = RawVideo(*size, tubes)
    tubes = (tube for video in content["videos"].values() for tube in video["tubes"])
    notes = []
    for noun, parts in (("file", [content]), ("video", content["videos"].values()), ("tube", tubes)):
        for key, n in Counter(key for part in parts for key in part if key not in KEYS[noun]).items():
            notes.append(f"{path}: {key!r} of {counted(n, noun)} is not read{did_you_mean(key, KEYS[noun])}")
    return AnnotationFile(path, videos, [label.strip() for label in labels], notes=notes)


def _require(condition: bool, where: object, text: str) -> None:
    if not condition:
        raise InputError(f"{where}: {text}; docs/own_data.md shows the format")


def _tube(tube: dict) -> RawTube:
    frames, boxes = whole_numbers(tube["frames"]), box_array(tube["boxes"])
    if len(frames) != len(boxes):
        raise ValueError(f"{len(frames)} frames, but {len(boxes)} boxes")
    label, person = tube["label"], tube.get("person_id")
    if label is not None:
        label = label.strip() if isinstance(label, str) else whole_number(label, "label")
    return RawTube(frames, boxes, label, None if person is None else whole_number(person, "person_id"))


def distinct(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object; ValueError when a key stands there twice, of which Python would keep the last one only."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{key!r} is there twice")
    return content


def write(file: AnnotationFile, path: Path) -> list[str]:
    """Write an annotation: tubes with person ids, and names or None as labels. Nothing is lost."""
    videos = {}
    for name, video in file.videos.items():
        size = {key: getattr(video, key) for key in ("width", "height", "n_frames") if getattr(video, key)}
        tubes = [
            {"label": t.label, "person_id": t.person_id, "frames": t.frames.tolist(),
             "boxes": shorten(t.boxes).tolist()} for t in video.tubes
        ]  # fmt: skip
        videos[name] = {**size, "tubes": tubes}
    write_text(path, json.dumps({"labels": file.labels, "videos": videos}, allow_nan=False, ensure_ascii=False))
    return []
