"""Tubes of many videos as flat arrays, and the 3D IoU of every pair that shares frames."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils.box_ops import Tube, paired_iou
from utils.misc import InputError

CHUNK_BOXES = 8192  # compared at a time: what a core's cache holds
BLOCK = 32  # frames that are summed up by one hull to rule pairs out
CHUNK_PAIRS = 1 << 20  # considered at a time: bounds the memory where every tube meets every other


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

    def corners(self, rows: np.ndarray) -> np.ndarray:
        """The boxes of these rows, int64 (k,), as float64 (4, k): left, top, right, bottom edges."""
        corners = self.boxes.take(rows, 0).T.astype(np.float64, "C")
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
        x0, y0, x1, y1 = self.corners(np.arange(len(self.frames)))
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


def spread(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... (counts[0] of them), begin[1], ...: int64 (counts.sum(),)."""
    return np.arange(counts.sum()) + np.repeat(begin - (counts.cumsum() - counts), counts)


def _chunks(counts: np.ndarray, limit: int) -> Iterator[slice]:
    """Consecutive items whose counts add up to about `limit`."""
    edges = np.flatnonzero(np.diff((counts.cumsum() - counts) // limit, prepend=-1)).tolist()
    return (slice(*edge) for edge in itertools.pairwise([*edges, len(counts)]))


def join(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (i, j) with a[i] == b[j], int64 (n,) and (m,): in chunks, two int64 (k,) each, by rising i then j."""
    order = np.argsort(b, kind="stable")
    begin = np.searchsorted(b[order], a)
    counts = np.searchsorted(b[order], a, "right") - begin
    met = np.flatnonzero(counts)
    begin, counts = begin[met], counts[met]
    for chunk in _chunks(counts, CHUNK_PAIRS):
        yield np.repeat(met[chunk], counts[chunk]), order[spread(begin[chunk], counts[chunk])]


def overlaps(
    a: TubeArrays,
    b: TubeArrays,
    same_label: bool,
    min_iou: float,
    label_centric: bool = False,
    frame_iou: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of a video whose 3D IoU is at least `min_iou` > 0: indices into a and b int64 (k,), IoU float64 (k,).

    The IoU is `utils.box_ops.tube_iou`'s, with `frame_iou` the IoU above which a frame counts as 1. With
    `same_label` only pairs of one label. By rising a then b.
    """
    found = []
    for i, j in join(*(_group(x, same_label, max(_top_label(a), _top_label(b))) for x in (a, b))):
        shared = np.minimum(a.end[i], b.end[j]) - np.maximum(a.start[i], b.start[j]) + 1
        most = np.minimum(shared, np.minimum(a.length[i], b.length[j]))  # frames both can have
        union = b.length[j] if label_centric else a.length[i] + b.length[j] - most
        keep = most / union >= min_iou
        i, j, shared = i[keep], j[keep], shared[keep]
        if shared.sum() > 4 * (len(a.frames) + len(b.frames)):  # hulls pay where each box is compared often
            keep = _iou_bound(a, b, i, j, label_centric, frame_iou) >= min_iou
            i, j = i[keep], j[keep]
        iou = _pair_iou(a, b, i, j, label_centric, frame_iou)
        keep = iou >= min_iou
        found.append((i[keep], j[keep], iou[keep]))
    return _concatenate(found)


def box_overlaps(
    a: TubeArrays, b: TubeArrays, same_label: bool, min_iou: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of boxes of one frame with an IoU of at least `min_iou`: rows of a and b int64 (k,), IoU float64."""
    top = max(_top_label(a), _top_label(b))
    first = min(a.frames.min(initial=0), b.frames.min(initial=0))
    span = max(a.frames.max(initial=0), b.frames.max(initial=0)) - first + 1
    found = []
    for i, j in join(*(_group(x, same_label, top)[x.owner] * span + x.frames - first for x in (a, b))):
        iou = paired_iou(a.corners(i).T, b.corners(j).T)
        keep = iou >= min_iou
        found.append((i[keep], j[keep], iou[keep]))
    return _concatenate(found)


def best_partner(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], n: int, threshold: float) -> np.ndarray:
    """For each of the n tubes of a, the tube of b that it overlaps most, -1 where no IoU reaches `threshold`;
    int64 (n,). `pairs` as from `overlaps`."""
    i, j, iou = (part[pairs[2] >= threshold] for part in pairs)
    order = np.lexsort((-j, iou))
    best = np.full(n, -1)
    best[i[order]] = j[order]
    return best


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


def _top_label(x: TubeArrays) -> int:
    return int(x.label.max(initial=0))


def _group(x: TubeArrays, same_label: bool, top_label: int) -> np.ndarray:
    """One number for a video, or for a video and a label (-1 to `top_label`)."""
    return x.video * (top_label + 2) + x.label if same_label else x.video


def _concatenate(found: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    i, j, iou = (np.concatenate(parts) for parts in zip(none, *found, strict=True))
    return i, j, iou


def _iou_bound(
    a: TubeArrays, b: TubeArrays, i: np.ndarray, j: np.ndarray, label_centric: bool, frame_iou: float | None
) -> np.ndarray:
    """What the 3D IoU of tubes i of a and j of b, whose spans overlap, is not above; float64 (k,).

    In a block the IoU of two boxes is at most that of the overlap of the hulls with the smallest boxes.
    """
    if a.block_offset[-1] + b.block_offset[-1] > len(a.frames) + len(b.frames):  # frames too thin for blocks
        return np.full(len(i), np.inf)
    low = np.maximum(a.block_start[i], b.block_start[j])
    row_a, row_b = (x.block_offset[k] + low - x.block_start[k] for x, k in ((a, i), (b, j)))
    counts = np.minimum(a.block_offset[i + 1] - row_a, b.block_offset[j + 1] - row_b)
    total, common = np.zeros(len(i)), np.zeros(len(i))
    for chunk in _chunks(counts, CHUNK_BOXES):
        n = counts[chunk]
        rows = spread(row_a[chunk], n)
        ax0, ay0, ax1, ay1, area_a, n_a = a.blocks.take(rows, 1)
        bx0, by0, bx1, by1, area_b, n_b = b.blocks.take(rows + np.repeat(row_b[chunk] - row_a[chunk], n), 1)
        inter = np.maximum(np.minimum(ax1, bx1) - np.maximum(ax0, bx0), 0)
        inter *= np.maximum(np.minimum(ay1, by1) - np.maximum(ay0, by0), 0)
        union = np.maximum(area_a + area_b - inter, inter)
        iou = inter / np.where(union > 0, union, 1)
        if frame_iou is not None:
            iou = np.where(iou > frame_iou - 1e-9, 1.0, iou)
        both = np.minimum(n_a, n_b)
        begins = n.cumsum() - n
        total[chunk] = np.add.reduceat(iou * both, begins)
        common[chunk] = np.add.reduceat(both, begins)
    frames = b.length[j] if label_centric else a.length[i] + b.length[j] - common
    return total / frames * (1 + 1e-9)


def _pair_iou(
    a: TubeArrays,
    b: TubeArrays,
    i: np.ndarray,
    j: np.ndarray,
    label_centric: bool,
    frame_iou: float | None,
) -> np.ndarray:
    """The 3D IoU of tubes i of a and j of b, whose spans overlap; float64 (k,)."""
    low, high = np.maximum(a.start[i], b.start[j]), np.minimum(a.end[i], b.end[j])
    row_a, row_b = a.row(i, low), b.row(j, low)
    counts = a.row(i, high + 1) - row_a
    gapless = a.gapless[i] & b.gapless[j]
    total, common = np.zeros(len(i)), np.where(gapless, counts, 0)
    for kind in (gapless, ~gapless):
        pairs = np.flatnonzero(kind & (counts > 0))
        for chunk in _chunks(counts[pairs], CHUNK_BOXES):
            at = pairs[chunk]
            n = counts[at]
            rows_a = spread(row_a[at], n)
            begins = n.cumsum() - n
            if gapless[at[0]]:
                rows_b = rows_a + np.repeat(row_b[at] - row_a[at], n)
                iou = paired_iou(a.corners(rows_a).T, b.corners(rows_b).T)
            else:
                frames = a.frames[rows_a]
                rows_b = b.rows_within(j[at], n, frames)
                both = b.frames[rows_b] == frames
                iou = np.where(both, paired_iou(a.corners(rows_a).T, b.corners(rows_b).T), 0)
                common[at] = np.add.reduceat(both, begins, dtype=np.int64)
            if frame_iou is not None:
                iou = np.where(iou > frame_iou, 1.0, iou)
            total[at] = np.add.reduceat(iou, begins)
    return total / (b.length[j] if label_centric else a.length[i] + b.length[j] - common)
