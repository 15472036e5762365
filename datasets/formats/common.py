"""What every annotation format is read into, and the numbers in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.misc import InputError

SAME_PERSON_IOU = 0.5  # two boxes of one person in one frame (two actions at a time) overlap at least so
MAX_FRAME = 2**40  # what is beyond counts as no frame number
MAX_EXACT = 2**53  # float64 tells whole numbers apart below
MAX_FRAMES = 10**7  # of a video whose length a file states: more would be days
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


def whole_number(value: object, name: str = "value") -> int:
    """An integer from 3, 3.0 or NumPy's; ValueError, naming `name`, for text, fractions and booleans."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or array.item() != math.floor(array.item()):
        raise ValueError(f"{name} {repr(value)[:40]} is not a whole number")
    if array.dtype.kind == "f" and abs(array.item()) >= MAX_EXACT:
        raise ValueError(f"{name} {array.item():.0f} is not below 2^53, so it may be mixed up with others")
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


def _array(values: object, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} are not rows of one length") from None
    if array.dtype.kind in "SU":
        raise ValueError(f"{name} are text; write numbers without quotes")
    if array.size and array.dtype.kind not in "iuf":
        raise ValueError(f"{name} are not numbers")
    return array


def corners(boxes: object) -> np.ndarray:
    """Boxes left, top, width, height (T, 4) as float64 xyxy."""
    boxes = box_array(boxes)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def refuse_names_of_nothing(labels: Sequence[str]) -> None:
    """InputError for an action whose name reads back as no action."""
    for label in labels:
        if label in NO_ACTION:
            raise InputError(f"label {label!r} stands for no action in files of annotation tools; rename it")
