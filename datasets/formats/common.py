"""What every annotation format is read into, and the numbers in it."""

import glob
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.misc import InputError, counted

if TYPE_CHECKING:
    from datasets.dataset import VideoFrames

SAME_PERSON_IOU = 0.5  # two boxes of one person in one frame (two actions at a time) overlap at least so
MAX_FRAME = 2**40  # what is beyond counts as no frame number
MAX_FRAMES = 10**7  # of a video whose length a file states: more would be days
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
NO_ACTION = ("", "none", "__undefined__")  # values of an annotation tool that stand for no action


class RawTube(NamedTuple):
    """A tube as annotated.

    `frames` int64 (T,), counted from 0; `boxes` float64 (T, 4), xyxy pixels; `label` an index, a name or None (a
    person without action); `person_id` None where the file has none; `place` is where the file has
    it ("track 3"), for messages.
    """

    frames: np.ndarray
    boxes: np.ndarray
    label: int | str | None
    person_id: int | None = None
    place: str = ""


class RawVideo(NamedTuple):
    """A video as annotated; sizes and `n_frames` are 0 where the file does not say.

    `key_frames`, int64, are the frames in which every person is annotated, None where it is all of them between the
    first and the last box; `empty_frames` those that the file lists without any person.
    """

    width: int
    height: int
    n_frames: int
    tubes: list[RawTube]
    key_frames: np.ndarray | None = None
    empty_frames: np.ndarray | None = None


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file as it is, unchecked.

    `labels` are the names that label indices refer to, empty where the file has none; `lists` are its own lists of
    videos, such as {"test_videos": [split 1, split 2, ...]}. `sampled`: frames count at the project's rate, not the
    video's own. `notes`: what the reader took otherwise than it is written, in lines. `label_ids`: the ids of labels,
    where the format has ids of its own.
    """

    path: Path
    videos: Mapping[str, RawVideo]
    labels: list[str] = field(default_factory=list)
    lists: dict[str, list[list[str]]] = field(default_factory=dict)
    sampled: bool = False
    notes: list[str] = field(default_factory=list)
    label_ids: dict[int, str] = field(default_factory=dict)

    def split(self, key: str, number: int) -> list[str]:
        """The `number`-th list (from 1) under `key`; InputError when the file has none."""
        if not 1 <= number <= len(self.lists.get(key, [])):
            raise InputError(f"{self.path}: has no list {number} under {key!r}")
        return self.lists[key][number - 1]


def video_path(pattern: str | Path, name: str) -> Path:
    """The path of a video: `pattern` with the name for {name}; one that ends with .* is the file that exists."""
    path = str(pattern).replace("{name}", name)
    if not path.endswith(".*"):
        return Path(path)
    folder, stem = Path(path).parent, Path(path).name[:-1]
    return min(folder.glob(glob.escape(stem) + "*"), default=Path(path))


def whole_number(value: object, what: str = "value") -> int:
    """An integer from 3, 3.0 or NumPy's; ValueError, naming `what`, for text, fractions and booleans."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or array.item() != math.floor(array.item()):
        raise ValueError(f"{what} {repr(value)[:40]} is not a whole number")
    return int(array.item())


def whole_numbers(values: object) -> np.ndarray:
    """int64 (T,); ValueError for text, fractions and nested lists."""
    array = _array(values, "frames")
    if array.ndim != 1 or not ((np.floor(array) == array) & (np.abs(array) < MAX_FRAME)).all():
        raise ValueError("frames are not whole numbers")
    return array.astype(np.int64)


def box_array(values: object, columns: int = 4) -> np.ndarray:
    """float64 (T, columns): small integer types would overflow in sums. ValueError for text and other shapes."""
    array = _array(values, "boxes")
    if array.size and (array.ndim != 2 or array.shape[1] != columns):
        raise ValueError(f"boxes are not rows of {columns} numbers")
    return array.astype(np.float64).reshape(-1, columns)


def _array(values: object, what: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{what} are not rows of one length") from None
    if array.dtype.kind in "SU":
        raise ValueError(f"{what} are text; write numbers without quotes")
    if array.size and array.dtype.kind not in "iuf":
        raise ValueError(f"{what} are not numbers")
    return array


def corners(boxes: object) -> np.ndarray:
    """Boxes left, top, width, height (T, 4) as float64 xyxy."""
    boxes = box_array(boxes)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def tubes_of_person(
    annotated: Mapping[int, Mapping[str | None, Sequence[float]]], person_id: int | None, place: str = ""
) -> list[RawTube]:
    """A person's boxes as tubes: an action's tube lasts while each annotated frame has the action.

    Frames without a box do not end a tube (they are gaps); frames without any action form tubes of label None.

    Args:
        annotated: frame -> action -> box, xyxy pixels.
    """
    frames = sorted(annotated)
    of_frame = [{k: v for k, v in annotated[f].items() if k is not None} or annotated[f] for f in frames]
    tubes = []
    for label in dict.fromkeys(label for boxes in of_frame for label in boxes):
        rows = np.flatnonzero([label in boxes for boxes in of_frame])
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            boxes = box_array([of_frame[row][label] for row in run])
            tubes.append(RawTube(whole_numbers([frames[row] for row in run]), boxes, label, person_id, place=place))
    return tubes


def fill_between(annotated: Mapping[int, Mapping], ends: Mapping[int, int]) -> dict[int, dict]:
    """`annotated` (`tubes_of_person`) with the frames from some of its frames to later ones, `ends`: boxes move
    linearly, and the actions of the earlier frame hold."""
    filled = {frame: dict(actions) for frame, actions in annotated.items()}
    for frame, end in ends.items():
        for action, box in annotated[frame].items():
            after = annotated[end].get(action, next(iter(annotated[end].values())))
            a, b = np.asarray(box, float), np.asarray(after, float)
            for between in range(frame + 1, end):
                filled.setdefault(between, {})[action] = a + (b - a) * ((between - frame) / (end - frame))
    return filled


def fill_steps(annotated: Mapping[int, Mapping], step: int) -> dict[int, dict]:
    """`fill_between` frames that are `step` apart."""
    return fill_between(annotated, {frame: frame + step for frame in annotated if frame + step in annotated})


def tracks_of(tubes: Sequence[RawTube]) -> list[list[RawTube]]:
    """The tubes of each person in order of time, as formats with one action a frame take them.

    A tube that shares a frame with one before it (a second action at the same time) goes to a further list.
    """
    tracks: dict[int, list[list[RawTube]]] = {}
    for tube in sorted(tubes, key=lambda tube: (tube.frames[0], tube.label is None)):
        of_person = tracks.setdefault(tube.person_id, [])
        free = (t for t in of_person if not any(np.intersect1d(tube.frames, other.frames).size for other in t))
        track = next(free, None)
        if track is None:
            of_person.append(track := [])
        track.append(tube)
    return [track for of_person in tracks.values() for track in of_person]


def refuse_names_of_nothing(labels: Sequence[str]) -> None:
    """InputError for an action whose name reads back as no action."""
    for label in labels:
        if label in NO_ACTION:
            raise InputError(f"label {label!r} stands for no action in files of annotation tools; rename it")


def second_actions(videos: Mapping[str, RawVideo]) -> list[str]:
    """A line about tubes that `tracks_of` could not leave with their person."""
    n = sum(len(tracks_of(v.tubes)) - len({tube.person_id for tube in v.tubes}) for v in videos.values())
    return [f"{counted(n, 'track')} of a second action at the same time: people of their own"] if n else []


def not_a_number(error: ValueError) -> str:
    """What `float` says of a text, in words of ours."""
    return f"{str(error).partition(': ')[2][:80]} is not a number"


def read_text(path: Path) -> str:
    """A text file; InputError where it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_json_text(path: Path, pairs_hook: Callable[[list], object] | None = None) -> object:
    """What a JSON file holds; InputError where it is not JSON, or `pairs_hook` (of `json.loads`) raises ValueError."""
    try:
        return json.loads(read_text(path), object_pairs_hook=pairs_hook)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON that can be read ({error})") from None


def size_of(
    name: str, sizes: Mapping | None, width: int | None, height: int | None, videos: str | None = None
) -> tuple[float, float] | None:
    """Width and height of a video by the options, else by the video itself, where `videos` is its path with {name} in
    it; None where neither says them."""
    if sizes and name in sizes:
        return tuple(sizes[name])
    if width and height:
        return width, height
    return _opened(videos, name).size if videos else None


def fps_of(name: str, fps: float | None, videos: str | None) -> float | None:
    """Frames a second of a video by the option, else by the video itself, else None."""
    return _opened(videos, name).fps if fps is None and videos else fps


def _opened(videos: str, name: str) -> "VideoFrames":
    from datasets.dataset import VideoFrames

    return VideoFrames(video_path(videos, name))


def video_name(location: str) -> str:
    """The name of a video, without folders and suffix, from its path."""
    path = PurePosixPath(location.replace("\\", "/"))
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
