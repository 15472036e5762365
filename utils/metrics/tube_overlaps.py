"""The 3D IoU of every pair of tubes that shares frames."""

import itertools
from collections.abc import Iterator

import numpy as np

from utils.box_ops import paired_iou
from utils.metrics.tube_arrays import TubeArrays

CHUNK_BOXES = 8192  # compared at a time: what a core's cache holds
CHUNK_PAIRS = 1 << 20  # considered at a time: bounds the memory where every tube meets every other


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


def spread(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... (counts[0] of them), begin[1], ...: int64 (counts.sum(),)."""
    return np.arange(counts.sum()) + np.repeat(begin - (counts.cumsum() - counts), counts)


def _chunks(counts: np.ndarray, limit: int) -> Iterator[slice]:
    """Consecutive items whose counts add up to about `limit`."""
    edges = np.flatnonzero(np.diff((counts.cumsum() - counts) // limit, prepend=-1)).tolist()
    return (slice(*edge) for edge in itertools.pairwise([*edges, len(counts)]))


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
