"""Matplotlib pages in one style, and the plots of tubes: on the frames of a clip, and in space and time.

Matplotlib's windows and global state are left alone: each page is an object of its own.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection
from PIL import Image

from utils.box_ops import Tube, person_numbers
from utils.drawing.draw import BLACK, WHITE, Colour, colour_of, draw_boxes, font_families, ink_on, put_text
from utils.storage.files import atomic

CELL = 480  # pixels of a frame's longer side in the contact sheet
DPI = 150  # pixels an inch
MIN_WIDTH = 4.5  # inches, for the title
_formats: ContextVar[tuple[str, ...]] = ContextVar("formats", default=())
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": "0.4",
    "axes.labelcolor": "0.15",
    "text.color": "0.15",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "grid.color": "0.9",
    "axes.axisbelow": True,
}


@contextmanager
def formats(names: Iterable[str]) -> Iterator[None]:
    """Within this block every plot is also written in these formats ("pdf"), beside its PNG file."""
    before = _formats.set(tuple(names))
    try:
        yield
    finally:
        _formats.reset(before)


def _write(path: str | Path, save: Callable[[Path], None]) -> None:
    """Write a plot to `path`, and in the other formats beside it."""
    path = Path(path)
    for file in dict.fromkeys([path, *(path.with_suffix(f".{name}") for name in _formats.get())]):
        with atomic(file) as part:
            save(part)


@contextmanager
def page(path: str | Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """A page of width (at least `MIN_WIDTH`) x height inches, written to `path` when the block ends well."""
    with matplotlib.rc_context({**STYLE, "font.family": list(font_families())}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as an empty box
        fig = Figure((max(width, MIN_WIDTH), height), DPI, layout="constrained")
        if title:
            fig.suptitle(title, fontsize=11, fontweight="bold")
        yield fig
        _write(path, partial(fig.savefig, dpi=DPI))


@contextmanager
def panels(
    path: str | Path, n: int, max_columns: int, width: float, height: float, title: str, **options
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A page of n panels of width x height inches, in up to `max_columns` columns and about a square; and its axes.

    `options` are those of Matplotlib's `subplots`.
    """
    columns = min(max(n, 1), max_columns, math.ceil(math.sqrt(n)) + 1)
    rows = math.ceil(max(n, 1) / columns)
    with page(path, 1 + width * columns, 1 + height * rows, title) as fig:
        axes = fig.subplots(rows, columns, squeeze=False, **options).ravel()
        for empty in axes[n:]:
            empty.set_axis_off()
        yield fig, axes[:n].tolist()


def rgb(colour: Colour) -> tuple[float, ...]:
    """A colour as Matplotlib takes it."""
    return tuple(c / 255 for c in colour)


def plot_predictions(
    path: str | Path,
    frames: Sequence[np.ndarray],
    numbers: Sequence[int],
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    labels: Sequence[str],
    title: str = "",
) -> None:
    """A contact sheet of frames with predictions and ground truth, four frames in a row.

    Predicted boxes are solid, in one colour a person, with class and score; a person's tubes of one box (several
    actions) share it. The ground truth is dashed and white.

    Args:
        frames: uint8 RGB (H, W, 3); the longer side becomes `CELL` pixels.
        numbers: the frames' numbers in the video.
    """
    size, line = 14, 26
    scale = CELL / max(frames[0].shape[:2])
    height, width = (max(1, round(side * scale)) for side in frames[0].shape[:2])
    cells = []
    for frame, number in zip(frames, numbers, strict=True):
        captions = defaultdict(list)  # by person and box
        for person, tube in zip(person_numbers(pred), pred, strict=True):
            if (box := _box_at(tube, number)) is not None:
                captions[person, box].append(f"{_name(tube, labels)} {tube.score:.2f}")
        gt_boxes = [(box, _name(tube, labels)) for tube in gt if (box := _box_at(tube, number)) is not None]
        image = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        draw_boxes(
            image,
            np.array([*(box for _, box in captions), *(box for box, _ in gt_boxes)]).reshape(-1, 4) * scale,
            [*(colour_of(person) for person, _ in captions), *([WHITE] * len(gt_boxes))],
            [*map(", ".join, captions.values()), *(name for _, name in gt_boxes)],
            size,
            [False] * len(captions) + [True] * len(gt_boxes),
        )
        cell = np.full((height + line, width + 8, 3), 255, np.uint8)
        put_text(cell, f"frame {number}", (4, 6), size, BLACK)
        cell[line:, 4 : width + 4] = image
        cells.append(cell)
    columns = min(len(cells), 4)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    head, key = (np.full((line, rows[0].shape[1], 3), 255, np.uint8) for _ in range(2))
    put_text(head, title, (4, 2), size + 4, BLACK)
    put_text(key, "solid: predicted, with score, a colour a person; dashed: ground truth", (4, 4), size, BLACK)
    _write(path, partial(Image.fromarray(np.vstack([head, *rows, key])).save, resolution=DPI))


def plot_tubes(
    path: str | Path,
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    labels: Sequence[str],
    size: tuple[int, int],
    title: str = "",
) -> None:
    """The tubes of one video in space (pixels) and time (frames).

    Predicted tubes are walls in one colour a person, with class and score at their beginning; the ground truth is
    dashed black edges. `size` is the video's width and height in pixels.
    """
    with page(path, 9, 4.8, title) as fig:
        fig.set_layout_engine("none")  # it would leave half of the page to the invisible corners of a 3D plot
        axes = fig.add_axes((-0.02, -0.45, 1, 1.85), projection="3d", computed_zorder=False)
        first = min((int(tube.frames[0]) for tube in [*gt, *pred] if len(tube)), default=0)
        last = max((int(tube.frames[-1]) for tube in [*gt, *pred] if len(tube)), default=1)
        axes.set(xlim=(first, max(last, first + 1)), ylim=(0, size[0]), zlim=(size[1], 0))
        axes.set(xlabel="time (frames)", ylabel="x (pixels)", zlabel="y (pixels)")
        axes.set_box_aspect((2.4, size[0] / max(size), size[1] / max(size)), zoom=0.76)
        axes.view_init(22, -62)
        axes.xaxis.labelpad = 14
        for axis, ticks in ((axes.xaxis, 10), (axes.yaxis, 3), (axes.zaxis, 3)):
            axis.set_pane_color((0.97, 0.97, 0.97))
            axis.set_major_locator(MaxNLocator(ticks, integer=True))
        people = list(zip(person_numbers(pred), pred, strict=True))
        for person, tube in people:
            colour = rgb(colour_of(person))
            for rings in _rings(tube):
                walls = [np.concatenate([rings[:, k], rings[::-1, (k + 1) % 4]]) for k in range(4)]
                ends = {"facecolor": (*colour, 0.5), "edgecolor": colour, "lw": 1.2}
                axes.add_collection3d(Poly3DCollection(walls, facecolor=colour, alpha=0.3, edgecolor="none"))
                axes.add_collection3d(Poly3DCollection(rings[[0, -1]], **ends))
                axes.add_collection3d(Line3DCollection(rings.swapaxes(0, 1), colors=[colour], lw=1.2))
        for tube in gt:
            for rings in _rings(tube):
                edges = [*rings.swapaxes(0, 1), *(ring[[0, 1, 2, 3, 0]] for ring in (rings[0], rings[-1]))]
                axes.add_collection3d(Line3DCollection(edges, colors="black", lw=0.8, linestyles=(0, (4, 2))))
        for person, tube in people:  # after the walls, so that nothing covers them
            if len(tube):
                field = {"facecolor": rgb(colour_of(person)), "edgecolor": "none", "pad": 1}
                style = {"va": "bottom", "fontsize": 7, "bbox": field, "color": rgb(ink_on(colour_of(person)))}
                axes.text(tube.frames[0], *tube.boxes[0, :2], f"{_name(tube, labels)} {tube.score:.2f}", **style)
        kinds = [
            Patch(facecolor=(*rgb(colour_of(0)), 0.5), edgecolor=rgb(colour_of(0)), label="predicted"),
            Line2D([], [], color="black", lw=0.8, ls=(0, (4, 2)), label="ground truth"),
        ]
        fig.legend(handles=kinds, loc="lower left", ncols=2)


def _name(tube: Tube, labels: Sequence[str]) -> str:
    return labels[tube.label] if 0 <= tube.label < len(labels) else "person"


def _box_at(tube: Tube, frame: int) -> tuple[float, ...] | None:
    """The tube's box in a frame, None where it has none."""
    i = int(np.searchsorted(tube.frames, frame))
    return tuple(tube.boxes[i].tolist()) if i < len(tube) and tube.frames[i] == frame else None


def _rings(tube: Tube) -> list[np.ndarray]:
    """The corners (t, x, y) of a tube's boxes, one array (T, 4, 3) for each run of frames without a gap."""
    x0, y0, x1, y1 = np.nan_to_num(tube.boxes.T.astype(np.float64))
    t = tube.frames.astype(np.float64)
    corners = np.stack([np.stack([t, x, y], 1) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], 1)
    return [run for run in np.split(corners, np.flatnonzero(np.diff(tube.frames) > 1) + 1) if len(run)]
