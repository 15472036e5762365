"""What every annotation format is read into, and the numbers in it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.misc import InputError

MAX_FRAME = 2**40  # what is beyond counts as no frame number


class RawTube(NamedTuple):
    """A tube as annotated.

    `frames` int64 (T,), counted from 0; `boxes` float64 (T, 4), xyxy pixels; `label` an index, a name or None (a
    person without action); `person_id` None where the file has none.
    """

    frames: np.ndarray
    boxes: np.ndarray
    label: int | str | None
    person_id: int | None = None


class RawVideo(NamedTuple):
    """A video as annotated; sizes and `n_frames` are 0 where the file does not say."""

    width: int
    height: int
    n_frames: int
    tubes: list[RawTube]


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file as it is, unchecked.

    `labels` are the names that label indices refer to, empty where the file has none; `lists` are its own lists of
    videos, such as {"test_videos": [split 1, split 2, ...]}.
    """

    path: Path
    videos: dict[str, RawVideo]
    labels: list[str] = field(default_factory=list)
    lists: dict[str, list[list[str]]] = field(default_factory=dict)

    def split(self, key: str, number: int) -> list[str]:
        """The `number`-th list (from 1) under `key`; InputError when the file has none."""
        if not 1 <= number <= len(self.lists.get(key, [])):
            raise InputError(f"{self.path}: has no list {number} under {key!r}")
        return self.lists[key][number - 1]


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
