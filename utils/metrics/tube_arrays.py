"""Tubes of many videos as flat arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils.box_ops import Tube
from utils.misc import InputError

BLOCK = 32  # frames that are summed up by one hull to rule pairs out


@dataclass(frozen=True)
class TubeArrays:
    """n tubes with R boxes in all. Rows of one tube follow each other, at `offset[i]:offset[i + 1]`.

    `tubes` the n tubes; `video` int64 (n,) index into the names they were packed with; `label` int64 (n,),
    `score` float64 (n,); `offset` int64 (n + 1,); `frames` int64 (R,); `boxes` float32 (R, 4) xyxy as they were given,
    `corners` for computing; `inclusive` as in `pack`.
    """

    tubes: list[Tube]
    video: np.ndarray
    label: np.ndarray
    score: np.ndarray
    offset: np.ndarray
    frames: np.ndarray
    boxes: np.ndarray
    inclusive: bool = False

    def __len__(self) -> int:
        return len(self.tubes)

    def corners(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The boxes of these rows, int64 (k,), or of all, as float64 (4, k): left, top, right, bottom edges."""
        corners = (self.boxes if rows is None else self.boxes.take(rows, 0)).T.astype(np.float64, "C")
        if self.inclusive:
            corners[2:] += 1
        return corners

    @cached_property
    def length(self) -> np.ndarray:
        """int64 (n,) number of boxes."""
        return np.diff(self.offset)

    @cached_property
    def start(self) -> np.ndarray:
        """int64 (n,) first frame."""
        return self.frames[self.offset[:-1]]

    @cached_property
    def end(self) -> np.ndarray:
        """int64 (n,) last frame."""
        return self.frames[self.offset[1:] - 1]

    @cached_property
    def owner(self) -> np.ndarray:
        """int64 (R,) the tube of each row."""
        return np.repeat(np.arange(len(self)), self.length)

    @cached_property
    def gapless(self) -> np.ndarray:
        """bool (n,)."""
        return self.end - self.start + 1 == self.length

    @cached_property
    def _row_of_frame(self) -> np.ndarray:
        """For each frame of each tube's span, the first row that is not before it; spans end to end."""
        steps = np.diff(self.frames, prepend=0)
        steps[self.offset[:-1]] = 1
        return np.repeat(np.arange(len(self.frames)), steps)

    @cached_property
    def _table_offset(self) -> np.ndarray | None:
        """What a tube adds to a frame for its place in `_row_of_frame`; None where frames are too thin for a table."""
        spans = self.end - self.start + 1
        return spans.cumsum() - spans - self.start if spans.sum() <= 16 * len(self.frames) else None

    @cached_property
    def block_start(self) -> np.ndarray:
        """int64 (n,) number of the first block of BLOCK frames of the video that the tube is in."""
        return self.start // BLOCK

    @cached_property
    def block_offset(self) -> np.ndarray:
        """int64 (n + 1,) where a tube's blocks, from its first to its last, stand in `blocks`."""
        return np.append(0, (self.end // BLOCK - self.block_start + 1).cumsum())

    @cached_property
    def blocks(self) -> np.ndarray:
        """float64 (6, B): hull of a block xyxy, area of its smallest box, number of boxes; 0 where it has none."""
        place = (self.block_offset[:-1] - self.block_start)[self.owner] + self.frames // BLOCK
        begin = np.flatnonzero(np.diff(place, prepend=-1))
        x0, y0, x1, y1 = self.corners()
        area = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
        table = np.zeros((6, self.block_offset[-1]))
        table[:, place[begin]] = [
            *(np.minimum.reduceat(part, begin) for part in (x0, y0)),
            *(np.maximum.reduceat(part, begin) for part in (x1, y1)),
            np.minimum.reduceat(area, begin),
            np.diff(begin, append=len(place)),
        ]
        return table

    def row(self, tube: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """The first row of each tube that is not before `frame`, which lies in its span or one past it; int64 (k,)."""
        row = self.offset[tube] + frame - self.start[tube]
        gaps = np.flatnonzero(~self.gapless[tube])
        row[gaps] = self._bisect(tube[gaps], frame[gaps])
        return row

    def rows_within(self, tube: np.ndarray, n: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """`row` for many frames, `n` of each tube, int64 (n.sum(),), which lie in its span."""
        if self._table_offset is None:
            return self._bisect(np.repeat(tube, n), frame)
        return self._row_of_frame[np.repeat(self._table_offset[tube], n) + frame]

    def _bisect(self, tube: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """`row` by halving each tube's rows until one is left."""
        low, high = self.offset[tube], self.offset[tube + 1]
        while (low < high).any():
            middle = (low + high) // 2
            before = (low < high) & (self.frames[np.minimum(middle, len(self.frames) - 1)] < frame)
            low, high = np.where(before, middle + 1, low), np.where(before, high, middle)
        return low


def pack(tubes: Mapping[str, Sequence[Tube]], names: Sequence[str], inclusive: bool = False) -> TubeArrays:
    """The tubes of the videos `names`, in their order, as arrays. Empty tubes are left out.

    With `inclusive` the right and lower edges are the last pixels of a box, which is then one pixel wider
    and higher than their difference.
    Raises InputError, naming the video, where a score or a box is not a finite number.
    """
    items: list[Tube] = []
    video: list[int] = []
    for i, name in enumerate(names):
        found = [tube for tube in tubes.get(name, ()) if len(tube.frames)]
        items += found
        video += [i] * len(found)
    n = len(items)
    packed = TubeArrays(
        items,
        np.array(video, np.int64),
        np.fromiter((tube.label for tube in items), np.int64, n),
        np.fromiter((tube.score for tube in items), np.float64, n),
        np.concatenate([[0], np.fromiter((len(tube.frames) for tube in items), np.int64, n).cumsum()]),
        np.concatenate([tube.frames for tube in items] or [np.zeros(0, np.int64)]),
        np.concatenate([tube.boxes for tube in items] or [np.zeros((0, 4), np.float32)]),
        inclusive,
    )
    if not np.isfinite(packed.score).all():
        bad = int(np.argmin(np.isfinite(packed.score)))
        raise InputError(f"video {names[video[bad]]!r}: a tube's score is {packed.score[bad]}; scores must be finite")
    finite = np.isfinite(packed.boxes)
    if not finite.all():
        row = int(np.argmin(finite.all(1)))
        raise InputError(
            f"video {names[video[packed.owner[row]]]!r}: the box in frame {packed.frames[row]} is not finite; "
            "leave such boxes out"
        )
    return packed


def by_content(x: TubeArrays, tubes: np.ndarray) -> np.ndarray:
    """The tubes (indices) in an order that depends on their videos, frames and boxes alone: int64 (k,).

    What breaks ties by it does not depend on the order in which tubes were handed over.
    """
    keys = {
        i: (x.video[i], x.start[i], x.length[i], x.tubes[i].frames.tobytes(), x.tubes[i].boxes.tobytes())
        for i in tubes.tolist()
    }
    return np.array(sorted(keys, key=keys.__getitem__), np.int64)


def check_thresholds(thresholds: float | Sequence[float]) -> list[float]:
    """One threshold or several as a list. Raises InputError where one is not in (0, 1], or where there is none."""
    values = np.atleast_1d(np.asarray(thresholds, np.float64)).tolist()
    bad = [value for value in values if not 0 < value <= 1]
    if bad or not values:
        raise InputError(f"IoU threshold {bad[0] if bad else values}: give values above 0 and up to 1")
    return values
