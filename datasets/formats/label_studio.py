"""Label Studio's video regions: the exports JSON and JSON-MIN, and a bare `result`, as of a prediction.

A region is a person. A key frame that is `enabled` shows it from there to the next key frame, linearly, and after the
last one to the end (`framesCount`); one that is not shows it in that frame, and not after it. Boxes are shares of the
frame in percent. Frames count from 1 at the editor's `frameRate`, which is 24 unless somebody has set it, whatever
the video has: a frame is the video's at second (frame - 1) / frameRate.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np

from datasets.formats.common import MAX_FRAMES, NO_ACTION, AnnotationFile, RawVideo, whole_number
from datasets.formats.options import needed
from datasets.formats.person_tubes import tubes_of_person
from datasets.formats.sources import Clock, clock_of, size_of, video_name
from utils.misc import InputError
from utils.storage.files import read_json

DEFAULT_RATE = 24  # frames a second of the editor
SAME_MOMENT = 1.5  # frames: times may be rounded, or count from frame 1


def read(
    path: Path,
    *,
    width: int | None = None,
    height: int | None = None,
    sizes: Mapping[str, Sequence[float]] | None = None,
    fps: float | None = None,
    video: str | None = None,
    annotation_ids: Sequence[int] | None = None,
    no_action: Sequence[str] = NO_ACTION,
    videos: str | None = None,
) -> AnnotationFile:
    """Read an export; a task that nobody has annotated is left out. `fps` is the videos' own."""
    content = read_json(path, "annotation file")
    video = video and video_name(video)
    read_videos: dict[str, RawVideo] = {}
    for id, name, regions in _tasks(path, content, video, annotation_ids):
        size, clock = size_of(name, sizes, width, height, videos), clock_of(name, fps, videos)
        if size is None:
            raise needed(path, f"the size of video {name!r} is not in the file", "width", "height", "sizes", "videos")
        if name in read_videos:
            raise InputError(f"{path}: task {id}: video {name!r} is there twice")
        tubes = []
        for person, (region, value) in enumerate(regions.items()):
            where = f"{path}: task {id}, region {region}"
            named = (str(label).strip() for label in value.get("labels") or [])
            labels = [label for label in named if label and label not in no_action] or [None]
            boxes = _boxes_by_frame(where, name, size, value, clock)
            annotated = {frame: dict.fromkeys(labels, box) for frame, box in boxes.items()}
            tubes += tubes_of_person(annotated, person, f"region {region}")
        read_videos[name] = RawVideo(whole_number(size[0]), whole_number(size[1]), 0, tubes)
    labels = dict.fromkeys(t.label for v in read_videos.values() for t in v.tubes if t.label is not None)
    return AnnotationFile(path, read_videos, list(labels))


def _tasks(path: Path, content: object, video: str | None, annotation_ids: Sequence[int] | None) -> Iterator[tuple]:
    """Of any of the three forms the annotated tasks: id (for messages), video, and values of regions by their ids."""
    if isinstance(content, dict) and "result" in content:
        content = content["result"]
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise InputError(f"{path}: not an export of Label Studio: neither a list of tasks nor of regions")
    if content and all("value" in item for item in content):
        if video is None:
            raise needed(path, "regions without a task", "video")
        yield 1, video, _regions(content)
        return
    if video is not None and len(content) > 1:
        raise InputError(f"{path}: video {video!r} cannot be the name of {len(content)} tasks")
    for number, task in enumerate(content, 1):
        id = task.get("id", number)
        name = video or _video_name(task.get("data", task))
        if not name:
            raise needed(path, f"task {id}: its data name no video", "video")
        if "data" not in task:  # JSON-MIN
            values = [v for value in task.values() if isinstance(value, list) for v in value]
            values = [v for v in values if isinstance(v, dict) and "sequence" in v]
            yield id, name, {str(i): value for i, value in enumerate(values, 1)}
            continue
        annotations = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
        if annotation_ids is not None:
            annotations = [a for a in annotations if a.get("id") in annotation_ids]
        if len(annotations) > 1:
            ids = " and ".join(str(a.get("id")) for a in annotations)
            ask = f"task {id}: two annotations ({ids})" if len(annotations) == 2 else f"task {id}: annotations {ids}"
            raise needed(path, f"{ask}; say which, or keep one", "annotation_ids")
        for annotation in annotations:
            yield id, name, _regions(annotation.get("result", []))


def _regions(result: Sequence[Mapping]) -> dict[str, Mapping]:
    """Values of the regions that are boxes over time, by their ids; ranges of time belong to nobody.

    A region that has choices, a text or a rating is there again with each of these, without its labels.
    """
    values: dict[str, dict] = {}
    for number, region in enumerate(result, 1):
        if "sequence" in region.get("value", {}):
            values.setdefault(str(region.get("id", number)), {}).update(region["value"])
    return values


def _video_name(data: Mapping) -> str:
    """The name, without folder and suffix, of the video that a task's data name; empty where they name none."""
    texts = [value for value in data.values() if isinstance(value, str)]
    url = data.get("video") or next((t for t in texts if PurePosixPath(t.partition("?d=")[2] or t).suffix), "")
    location = url.partition("?d=")[2] or url.partition("?")[0]  # `?d=`: files that are served from a folder
    return video_name(unquote(str(location)))


def _boxes_by_frame(
    where: str, video: str, size: tuple[float, float], value: Mapping, clock: Clock | None
) -> dict[int, np.ndarray]:
    """Frame of the video -> box, xyxy in pixels, of every frame in which a region is visible."""
    keys = sorted(value["sequence"], key=lambda key: key["frame"])
    at = []
    for key in keys:
        frame = whole_number(key["frame"], f"{where}: frame")
        if frame < 1:
            raise InputError(f"{where}: frame {frame}, but frames count from 1")
        if at and frame == at[-1]:
            raise InputError(f"{where}: frame {frame} twice")
        if key.get("rotation"):
            raise InputError(f"{where}, frame {frame}: a rotated box ({key['rotation']:g} degrees) is not supported")
        at.append(frame)
    at.append(max(value.get("framesCount", 0), at[-1] if at else 0))
    rate, clock = _rate_and_clock(where, video, value, keys, clock)
    seconds = (np.array(at) - 1) / rate
    real = clock.frames_at(seconds)
    if not real[-1] < MAX_FRAMES:
        raise InputError(f"{where}: framesCount {value.get('framesCount')} is no number of frames of a video")
    sides = np.array([[float(key[side]) for side in ("x", "y", "width", "height")] for key in keys]).reshape(-1, 4)
    boxes: dict[int, np.ndarray] = {}
    for i, key in enumerate(keys):
        end = real[i + 1] if key.get("enabled", True) else real[i]  # after the last one, framesCount's
        frames = np.arange(round(real[i]), round(end) + 1)
        x, y, width, height = (np.interp(clock.times_of(frames), seconds[:-1], side) / 100 for side in sides.T)
        boxes |= zip(frames.tolist(), np.stack([x, y, x + width, y + height], 1) * [*size, *size], strict=True)
    return boxes


def _rate_and_clock(
    where: str, video: str, value: Mapping, keys: Sequence[Mapping], clock: Clock | None
) -> tuple[float, Clock]:
    """The editor's frames a second and the video's clock, both of one frame a second where the editor's frames are the
    video's; InputError where that cannot be known."""
    first = float(any(key["frame"] == 1 and key.get("time") == 0 for key in keys))  # number of the frame at second 0
    rates = [(key["frame"] - first) / key["time"] for key in keys if key.get("time")]
    if not rates and value.get("duration"):
        rates = [value["framesCount"] / value["duration"]]
    for key in keys if rates else ():
        if key.get("time") and abs(key["time"] * rates[-1] + first - key["frame"]) > SAME_MOMENT:
            text = f"{key['time']:g}, but later ones count {rates[-1]:g} a second: it was annotated at two rates"
            raise InputError(f"{where}: frame {key['frame']} is at second {text}")
    if clock is not None and rates:
        return rates[-1], clock
    if clock is None and not rates:
        raise needed(where, f"no times, so that its frames may not be the video's ({video})", "fps", "videos")
    if clock is None and abs(rates[-1] - DEFAULT_RATE) < 0.01:
        counted = f"the editor counted {DEFAULT_RATE} frames a second, its default, whatever the video has"
        raise needed(where, f"{counted} (video {video})", "fps", "videos")
    return 1.0, Clock(1.0)
