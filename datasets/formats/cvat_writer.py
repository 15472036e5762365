"""CVAT for video 1.1 with sparse key frames, which "Upload annotations" of a CVAT task takes.

The task needs a label `person` with the mutable attribute `action`: `label_definition` is what its "Raw" tab takes.
"""

import itertools
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.formats.common import AnnotationFile, RawTube, RawVideo, refuse_names_of_nothing
from datasets.formats.cvat_video import CORNERS
from datasets.formats.person_tubes import fill_between, joined_tubes, second_actions, tracks_of, tubes_of_person
from datasets.formats.sources import check_name
from utils.misc import counted
from utils.storage.files import atomic, write_json

PERSON, ACTION, NOTHING = "person", "action", "none"
EXACT = 0.005  # pixels: half of the last digit that is written
TOLERANCE = 2.0  # pixels, of predictions: what a person would not correct
LABELS = "cvat_labels.json"


def write(file: AnnotationFile, path: Path, tolerance: float = EXACT) -> list[str]:
    """Write an XML of all videos, as a project's export where there are several, or, where `path` has no suffix
    `.xml`, a folder with one XML a video.

    A box may be `tolerance` pixels from the one that CVAT interpolates.
    """
    refuse_names_of_nothing(file.labels)
    parts = {path: file.videos}
    if path.suffix != ".xml":
        for name in file.videos:
            check_name(name, path, file.path)
        parts = {path / f"{name}.xml": {name: video} for name, video in file.videos.items()}
    for part, videos in parts.items():
        document = _document(file.labels, videos, tolerance)
        ET.indent(document)
        with atomic(part) as written:
            ET.ElementTree(document).write(written, encoding="utf-8", xml_declaration=True)
    endless = sum(not video.n_frames for video in file.videos.values())
    lines = [f"{counted(endless, 'video')} without n_frames: the task ends with the last box"] * bool(endless)
    return lines + second_actions(file.videos) + joined_tubes(file.videos)


def write_predicted(result: Mapping, path: Path, own_frames: np.ndarray | None = None) -> None:
    """Write what `predict.py` has found in a video, for people to correct: `path` is the XML, and `LABELS` beside it
    the labels of the task.

    A person is a track, also where no action was found; of several actions in a frame the one of the highest score
    there counts. Key frames are as few as keep every box within `TOLERANCE`.

    Where not all frames of the video were used, `own_frames`, int64 (n_frames,), is the video's own number of each;
    boxes are interpolated between.
    """
    tubes: list[RawTube] = []
    for person in result["people"]:
        boxes = dict(zip(person["frames"], person["boxes"], strict=True))
        best: dict[int, tuple[float, str]] = {}
        for tube in result["tubes"]:
            if tube["person_id"] == person["person_id"]:
                for frame, score in zip(tube["frames"], tube["scores"], strict=True):
                    best[frame] = max(best.get(frame, (score, tube["label"])), (score, tube["label"]))
        annotated = {f: {best[f][1] if f in best else None: box} for f, box in boxes.items()}
        if own_frames is not None:
            own = own_frames.tolist()
            ends = {own[f]: own[f + 1] for f in annotated if f + 1 in annotated}
            annotated = fill_between({own[f]: actions for f, actions in annotated.items()}, ends)
        tubes += tubes_of_person(annotated, person["person_id"])
    n_frames = result["n_frames"] if own_frames is None else int(own_frames[-1]) + 1
    video = RawVideo(result["width"], result["height"], n_frames, tubes)
    write(AnnotationFile(path, {path.stem: video}, list(result["labels"])), path, TOLERANCE)
    write_json(path.with_name(LABELS), label_definition(result["labels"]))


def label_definition(labels: Sequence[str]) -> list[dict]:
    """The labels of a CVAT task that takes these files, as its "Raw" tab takes them (JSON)."""
    values = [NOTHING, *labels]
    action = {"name": ACTION, "mutable": True, "input_type": "select", "default_value": NOTHING, "values": values}
    return [{"name": PERSON, "type": "rectangle", "attributes": [action]}]


def key_frames(boxes: np.ndarray, tolerance: float) -> np.ndarray:
    """The fewest of consecutive frames from which all boxes are linearly interpolated within `tolerance`.

    Breadth-first search: two frames are joined where the slope between their boxes lies in the range that every box
    between allows.

    Args:
        boxes: (T, 4) in equal steps of time.
        tolerance: largest distance of any side, in pixels.

    Returns:
        int64 indices, rising, with the first and the last frame.
    """
    last = len(boxes) - 1
    reached_from = np.full(len(boxes), -1)
    waiting = deque([0])
    while reached_from[last] < 0 < last:
        i = waiting.popleft()
        ahead = _joined(boxes, i, tolerance)
        ahead = ahead[reached_from[ahead] < 0]
        reached_from[ahead] = i
        waiting.extend(ahead[::-1].tolist())  # the farthest first: it most often reaches the end
    path = [last]
    while path[-1] > 0:
        path.append(int(reached_from[path[-1]]))
    return np.array(path[::-1])


def _joined(boxes: np.ndarray, i: int, tolerance: float) -> np.ndarray:
    """The frames after `i` up to which straight lines from its box keep to all boxes between."""
    window = 64
    while True:
        ahead = boxes[i + 1 : i + 1 + window]
        steps = np.arange(1, len(ahead) + 1)[:, None]
        low, high = ((ahead - boxes[i] + side * (tolerance + 1e-9)) / steps for side in (-1, 1))
        low, high = np.maximum.accumulate(low), np.minimum.accumulate(high)
        slopes = (ahead - boxes[i]) / steps
        fits = np.ones(len(ahead), bool)
        fits[1:] = ((low[:-1] <= slopes[1:]) & (slopes[1:] <= high[:-1])).all(1)
        if i + 1 + window >= len(boxes) or (low[-1] > high[-1]).any():
            return i + 1 + np.flatnonzero(fits)
        window *= 4


def _document(labels: Sequence[str], videos: dict[str, RawVideo], tolerance: float) -> ET.Element:
    root = ET.Element("annotations")
    _add(root, "version", "1.1")
    meta = ET.SubElement(root, "meta")
    single = len(videos) == 1
    tasks = meta if single else ET.SubElement(ET.SubElement(meta, "project"), "tasks")
    offset, number = 0, itertools.count()
    for n, (name, video) in enumerate(videos.items()):
        size = max([video.n_frames, 1, *(int(tube.frames[-1]) + 1 for tube in video.tubes)])
        _add(tasks, "task", _task(n, name, video, size, labels))
        for track in tracks_of(video.tubes):
            element = ET.SubElement(root, "track", id=str(next(number)), label=PERSON, source="manual")
            if not single:
                element.set("task_id", str(n))
            _add_boxes(element, track, size, offset, tolerance)
        offset += size
    return root


def _add(parent: ET.Element, tag: str, content: object) -> None:
    """Add an element of a text, or of elements: a mapping from tag to content."""
    element = ET.SubElement(parent, tag)
    if isinstance(content, dict):
        for name, value in content.items():
            _add(element, name, value)
    else:
        element.text = str(content)


def _task(number: int, name: str, video: RawVideo, size: int, labels: Sequence[str]) -> dict:
    attribute = label_definition(labels)[0]["attributes"][0]
    label = {"name": PERSON, "attributes": {"attribute": {**attribute, "values": "\n".join(attribute["values"])}}}
    task = {"id": number, "name": name, "size": size, "mode": "interpolation", "overlap": 0, "start_frame": 0}
    task |= {"stop_frame": size - 1, "frame_filter": "", "labels": {"label": label}}
    if video.width and video.height:
        task["original_size"] = {"width": video.width, "height": video.height}
    return {**task, "source": f"{name.rpartition('/')[2]}.mp4"}


def _add_boxes(element: ET.Element, track: Sequence[RawTube], size: int, offset: int, tolerance: float) -> None:
    """The key frames of a track: those needed within each stretch of frames of one action, and an outside box after
    each stretch of visible frames that ends before the task does."""
    frames = np.concatenate([tube.frames for tube in track])
    order = np.argsort(frames)
    frames, boxes = frames[order], np.concatenate([tube.boxes for tube in track])[order].round(2)
    actions = np.repeat(np.arange(len(track)), [len(tube.frames) for tube in track])[order]
    breaks = np.flatnonzero(np.diff(frames) > 1) + 1
    for rows in np.split(np.arange(len(frames)), breaks):
        first, last = rows[[0, -1]]
        ends = [first, *rows[1:][np.diff(actions[rows]) != 0], last]
        keys = {first, last}
        for a, b in itertools.pairwise(ends):
            keys |= {a + k for k in key_frames(boxes[a : b + 1], tolerance)}
        for row in sorted(keys):
            _add_box(element, frames[row] + offset, boxes[row], False, track[actions[row]].label)
        if frames[last] + 1 < size:
            _add_box(element, frames[last] + 1 + offset, boxes[last], True, track[actions[last]].label)


def _add_box(element: ET.Element, frame: int, corners: np.ndarray, outside: bool, action: str | None) -> None:
    sides = {name: f"{value:.2f}" for name, value in zip(CORNERS, corners, strict=True)}
    state = {"frame": str(frame), "keyframe": "1", "outside": str(int(outside)), "occluded": "0"}
    box = ET.SubElement(element, "box", **state, **sides, z_order="0")
    ET.SubElement(box, "attribute", name=ACTION).text = action or NOTHING
