"""CVAT for video 1.1: the XML of a task, a job or a project, the zip around it, or a folder of such.

Frames are those of the source video, from 0. Between two key frames the corners move linearly, also towards an outside
one; the attributes of a key frame hold until the next. After its last key frame a track that is not outside stays where
it is until the end of the task. Files in which each visible box is followed by a box of the next frame, or is its
track's last (JAAD's, which end tracks without `outside`), are taken as they stand.
"""

import io
import itertools
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from datasets.formats.common import MAX_FRAMES, NO_ACTION, AnnotationFile, RawVideo
from datasets.formats.person_tubes import tubes_of_person
from utils.misc import InputError

MAX_XML = 2**30  # bytes
CORNERS = ("xtl", "ytl", "xbr", "ybr")


class Task(NamedTuple):
    """A task or job of the export: its video, and the source video's frames that it shows.

    `first` and `last` (inclusive) count from `offset` in the file, which is 0 but for the later tasks of a project.
    """

    name: str
    width: int
    height: int
    first: int
    last: int
    step: int
    offset: int = 0


class Track(NamedTuple):
    """A track of boxes: its task's id, frames rising int64 (T,), corners float64 (T, 4), whether it is shown, and
    attributes."""

    place: str
    label: str
    task: str
    frames: np.ndarray
    corners: np.ndarray
    outside: np.ndarray
    attributes: list[dict[str, str]]
    rotations: Sequence[float]


def read(
    path: Path,
    *,
    action_attribute: str | None = None,
    person_labels: Sequence[str] | None = None,
    no_action: Sequence[str] = NO_ACTION,
    video: str | None = None,
    fill: bool = False,
) -> AnnotationFile:
    """Read one export, or all `.xml` and `.zip` files of a folder; the action is an attribute or the track's label.

    Where a task shows every n-th frame of its video, `fill` interpolates the frames between, too.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".xml", ".zip"))
    if not files:
        raise InputError(f"{path}: a folder without .xml and .zip files; export 'CVAT for video 1.1' into it")
    videos: dict[str, RawVideo] = {}
    labels: dict[str, None] = {}
    for file in files:
        tasks, declared, tracks = _read_export(file)
        # whether each visible box is followed by the track's box of the next frame, or is the track's last
        as_listed = all((np.diff(t.frames)[~t.outside[:-1]] == tasks[t.task].step).all() for t in tracks)
        if person_labels is not None:
            tracks = [track for track in tracks if track.label in person_labels]
        known = [name for attributes in declared.values() for name in attributes]
        known += [name for track in tracks for name in track.attributes[-1]]
        if action_attribute is not None and action_attribute not in known:
            existing = ", ".join(dict.fromkeys(known)) or "none"
            raise InputError(f"{file}: no attribute {action_attribute!r}; the labels have: {existing}")
        of_people = {k: v for k, v in declared.items() if person_labels is None or k in person_labels}
        named = [v for values in of_people.values() for v in values.get(action_attribute, [])]
        labels |= dict.fromkeys(v for v in (named if action_attribute else of_people) if v and v not in no_action)
        if video is not None and len(tasks) > 1:
            raise InputError(f"{file}: video {video!r} cannot be the name of {len(tasks)} tasks")
        for key, task in tasks.items():
            name = video or task.name
            if name in videos:
                raise InputError(f"{file}: video {name!r} is there twice; leave one export of it in {path}")
            tubes = []
            for person, track in enumerate(tracks):
                if track.task == key:
                    _check_track(file, track, task)
                    annotated = _boxes_by_frame(track, task, as_listed, fill, action_attribute, no_action)
                    tubes += tubes_of_person(annotated, person, track.place)
            videos[name] = RawVideo(task.width, task.height, 0, tubes)
    labels |= dict.fromkeys(t.label for v in videos.values() for t in v.tubes if t.label is not None)
    return AnnotationFile(path, videos, list(labels))


def _read_export(path: Path) -> tuple[dict[str, Task], dict[str, dict[str, list[str]]], list[Track]]:
    """Tasks by id, declared attributes by label (name -> values), and tracks of an XML."""
    try:
        root = ET.fromstring(_xml_text(path))
    except ET.ParseError as error:
        line, column = error.position
        ends = error.code in (3, 5, 20)  # no element found, unclosed token, unclosed CDATA section
        reason = "it ends in the middle" if ends else str(error).split(":")[0]
        raise InputError(f"{path}: not XML that can be read: {reason} (line {line}, column {column})") from None
    if root.find("image") is not None:
        text = "this is 'CVAT for images', whose boxes belong to nobody; export 'CVAT for video 1.1'"
        raise InputError(f"{path}: {text}")
    meta = root.find("meta")
    tasks, declared = ({}, {}) if meta is None else (_tasks(meta), _declared(meta))
    elements = (element for element in root.iterfind("track") if element.find("box") is not None)  # no polygons
    tracks = [_track(path, element, number, tasks) for number, element in enumerate(elements)]
    if not tasks:
        raise InputError(f"{path}: no <meta> with a task, a job or a project: not an export of CVAT")
    return tasks, declared, tracks


def _xml_text(path: Path) -> str:
    """The XML's text; InputError, before anything is parsed, where it is not UTF-8, too large, or has a document type
    or entities."""
    data = path.read_bytes()
    if data[:2] == b"PK":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [info for info in archive.infolist() if PurePosixPath(info.filename).suffix == ".xml"]
                if len(members) != 1:
                    raise InputError(f"{path}: holds {len(members)} XML files, not the one of a CVAT export")
                if members[0].file_size > MAX_XML:
                    raise InputError(f"{path}: larger than an export can be")
                data = archive.read(members[0])
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError) as error:
            raise InputError(f"{path}: not a zip that can be read ({error})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text, as exports of CVAT are") from None
    for mark in ("<!DOCTYPE", "<!ENTITY"):
        if mark in text:
            raise InputError(f"{path}: has a {mark[2:].lower()}, which no export of CVAT has; refused unread")
    return text


def _tasks(meta: ET.Element) -> dict[str, Task]:
    """The tasks of a project by id, or the one task or job under the key ''."""
    if meta.find("project") is None:
        abouts = [about for about in (meta.find("task"), meta.find("job")) if about is not None]
        return {"": _task(abouts[0], meta)} if abouts else {}
    tasks, before = {}, {}
    for element in meta.iterfind("project/tasks/task"):
        subset, task = element.findtext("subset"), _task(element, element)
        tasks[element.findtext("id")] = task._replace(offset=before.get(subset, 0))
        before[subset] = before.get(subset, 0) + task.first + task.step * int(element.findtext("size", 0))
    return tasks


def _task(about: ET.Element, meta: ET.Element) -> Task:
    """A task from its element; older exports have its size and source beside it."""
    source = about.findtext("source") or meta.findtext("source", "")
    name = about.findtext("name", "").strip()
    stem = PurePosixPath(source.strip().replace("\\", "/")).stem or name or f"job_{about.findtext('id')}"
    step = re.search(r"step\s*=\s*(\d+)", about.findtext("frame_filter", ""))  # as CVAT itself reads it
    step = max(int(step[1]), 1) if step else 1
    first = int(about.findtext("start_frame", 0))
    last = int(about.findtext("stop_frame", first + step * (int(about.findtext("size", 1)) - 1)))
    size = meta.find(".//original_size")
    width, height = (0, 0) if size is None else (int(size.findtext(side)) for side in ("width", "height"))
    if not 0 <= first <= last < MAX_FRAMES:
        raise ValueError(f"a task of the frames {first} to {last}")
    return Task(name if name.endswith(f"/{stem}") else stem, width, height, first, last, step)


def _declared(meta: ET.Element) -> dict[str, dict[str, list[str]]]:
    """Attributes of each label: name -> values. Old exports have one line each, `~select=action:stand,walk`."""
    declared: dict[str, dict[str, list[str]]] = {}
    for label in meta.iter("label"):
        if label.find("parent") is not None or label.find("name") is None:  # points of a skeleton
            continue
        attributes = declared.setdefault(label.findtext("name").strip(), {})
        for attribute in label.iterfind("attributes/attribute"):
            if (name := attribute.findtext("name")) is not None:
                values = attribute.findtext("values", "").split("\n")
            else:
                name, _, text = (attribute.text or "").partition("=")[2].partition(":")
                values = text.split(",")
            attributes[name.strip()] = [value.strip() for value in values]
    return declared


def _track(path: Path, element: ET.Element, number: int, tasks: Mapping[str, Task]) -> Track:
    place = at = f"track {element.get('id', number)}"
    task = element.get("task_id", "") if "" not in tasks else ""
    if task not in tasks:
        raise InputError(f"{path}: {place}: task {task!r} is not in the export's <meta>")
    rows = []
    try:
        for box in element.iterfind("box"):
            at = f"{place}, frame {box.get('frame')}"
            corners = [float(box.attrib[name]) for name in CORNERS]
            attributes = {a.get("name", ""): (a.text or "").strip() for a in box.iterfind("attribute")}
            frame, rotation = int(box.attrib["frame"]) - tasks[task].offset, float(box.get("rotation", 0))
            rows.append((frame, corners, box.get("outside") == "1", attributes, rotation))
    except (KeyError, ValueError) as error:
        text = f"a box without {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: {at}: {text}") from None
    rows.sort(key=lambda row: row[0])
    frames, corners, outside, attributes, rotations = zip(*rows, strict=True)
    merged = list(itertools.accumulate(attributes, lambda before, own: {**before, **own}))
    label = element.get("label", "").strip()
    return Track(place, label, task, np.array(frames), np.array(corners), np.array(outside), merged, rotations)


def _check_track(path: Path, track: Track, task: Task) -> None:
    """InputError for what a track of a person cannot have."""
    twice = track.frames[1:][np.diff(track.frames) == 0]
    if len(twice):
        raise InputError(f"{path}: {track.place}: frame {twice[0]} twice")
    for frame, rotation in zip(track.frames, track.rotations, strict=True):
        if rotation % 360:
            place = f"{path}: {track.place}, frame {frame}"
            raise InputError(f"{place}: a rotated box ({rotation:g} degrees) is not supported")
    shown = track.frames[~track.outside]
    beyond = shown[(shown < task.first) | (shown > task.last)]
    if len(beyond):
        place = f"{path}: {track.place}, frame {beyond[0]}"
        raise InputError(f"{place}: the task has the frames {task.first} to {task.last}")


def _boxes_by_frame(
    track: Track, task: Task, as_listed: bool, fill: bool, action_attribute: str | None, no_action: Sequence[str]
) -> dict[int, dict[str | None, np.ndarray]]:
    """Frame -> action -> box of every frame in which the track is visible (`tubes_of_person`)."""
    ends = np.append(track.frames[1:], task.last + 1)
    if as_listed:  # a box that is not followed by another shown one is the last
        ends = np.where(np.append(track.outside[1:], True), track.frames + 1, ends)
    step, spans = 1 if fill else task.step, zip(track.frames, ends, track.outside, strict=True)
    stretches = [np.arange(first, end, step) for first, end, outside in spans if not outside]
    frames = np.concatenate([np.zeros(0, np.int64), *stretches])
    boxes = np.stack([np.interp(frames, track.frames, side) for side in track.corners.T], 1)
    key_frames = np.searchsorted(track.frames, frames, "right") - 1
    annotated = {}
    for frame, box, key in zip(frames.tolist(), boxes, key_frames.tolist(), strict=True):
        action = track.attributes[key].get(action_attribute, "") if action_attribute else track.label
        annotated[frame] = {None if not action or action in no_action else action: box}
    return annotated
