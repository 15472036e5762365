"""Predicted and annotated tubes side by side: on the frames of a clip, and in space and time."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

from utils.box_ops import Tube
from utils.drawing.draw import BLACK, WHITE, colour_of, draw_boxes, ink_on, put_text
from utils.drawing.figure import page, rgb
from utils.misc import InputError
from utils.storage.files import atomic

CELL = 480  # pixels of a frame's longer side in the contact sheet


def _numbers(tubes: Sequence[Tube]) -> list[int]:
    """What a tube's colour goes by: its person, or its place in the list where it has none."""
    return [i if tube.person_id < 0 else tube.person_id for i, tube in enumerate(tubes)]


def _name(tube: Tube, labels: Sequence[str]) -> str:
    return labels[tube.label] if 0 <= tube.label < len(labels) else "person"


def plot_predictions(
    path: str | Path,
    frames: Sequence[np.ndarray],
    numbers: Sequence[int],
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    labels: Sequence[str],
    title: str = "",
) -> None:
    """A contact sheet of frames, uint8 RGB (H, W, 3) with their numbers, with what was predicted and what is true.

    Predicted tubes are solid, in one colour a person, with class and score; a person's tubes with one box
    (several actions) share it. The ground truth is dashed and white. The longer side of each frame has
    `CELL` pixels, and four stand in a row.
    """
    size, line = 14, 26
    scale = CELL / max(frames[0].shape[:2])
    h, w = (max(1, round(side * scale)) for side in frames[0].shape[:2])
    cells = []
    for frame, number in zip(frames, numbers, strict=True):
        cell = np.full((h + line, w + 8, 3), 255, np.uint8)
        put_text(cell, f"frame {number}", (4, 6), size, BLACK)
        picture = cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        shown: dict[tuple, str] = {}
        for person, tube in zip(_numbers(pred), pred, strict=True):
            if (box := _box(tube, number)) is not None:
                name = f"{_name(tube, labels)} {tube.score:.2f}"
                shown[person, box] = f"{shown[person, box]}, {name}" if (person, box) in shown else name
        true = [(box, _name(tube, labels)) for tube in gt if (box := _box(tube, number)) is not None]
        draw_boxes(
            picture,
            np.array([*(box for _, box in shown), *(box for box, _ in true)]).reshape(-1, 4) * scale,
            [*(colour_of(person) for person, _ in shown), *([WHITE] * len(true))],
            [*shown.values(), *(name for _, name in true)],
            size,
            [False] * len(shown) + [True] * len(true),
        )
        cell[line:, 4 : w + 4] = picture
        cells.append(cell)
    columns = min(len(cells), 4)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    head, key = (np.full((line, rows[0].shape[1], 3), 255, np.uint8) for _ in range(2))
    put_text(head, title, (4, 2), size + 4, BLACK)
    put_text(key, "solid: predicted, with score, a colour a person; dashed: ground truth", (4, 4), size, BLACK)
    ok, data = cv2.imencode(".png", np.vstack([head, *rows, key])[..., ::-1])
    if not ok:
        raise InputError(f"{path}: a picture of {rows[0].shape[1]} x {len(rows) * (h + line)} pixels cannot be encoded")
    with atomic(path) as part:
        part.write_bytes(data.tobytes())


def _box(tube: Tube, frame: int) -> tuple[float, ...] | None:
    """The tube's box in a frame, None where it has none."""
    i = int(np.searchsorted(tube.frames, frame))
    return tuple(tube.boxes[i].tolist()) if i < len(tube) and tube.frames[i] == frame else None


def plot_tubes(
    path: str | Path,
    pred: Sequence[Tube],
    gt: Sequence[Tube],
    labels: Sequence[str],
    size: tuple[int, int],
    title: str = "",
) -> None:
    """The tubes of one video in space (pixels, of a picture of `size` width x height) and time (frames).

    Predicted tubes are walls in one colour a person, the ground truth dashed black edges. Class and score of
    each stand at its beginning.
    """
    with page(path, 9, 4.8, title) as figure:
        figure.set_layout_engine("none")  # it leaves half of the page to a 3D plot's invisible corners
        axes = figure.add_axes((-0.02, -0.45, 1, 1.85), projection="3d", computed_zorder=False)
        everything = [*gt, *pred]
        first = min((int(tube.frames[0]) for tube in everything if len(tube)), default=0)
        last = max((int(tube.frames[-1]) for tube in everything if len(tube)), default=1)
        axes.set(xlim=(first, max(last, first + 1)), ylim=(0, size[0]), zlim=(size[1], 0))
        axes.set(xlabel="time (frames)", ylabel="x (pixels)", zlabel="y (pixels)")
        axes.set_box_aspect((2.4, size[0] / max(size), size[1] / max(size)), zoom=0.76)
        axes.view_init(22, -62)
        axes.xaxis.labelpad = 14
        for axis, ticks in ((axes.xaxis, 10), (axes.yaxis, 3), (axes.zaxis, 3)):
            axis.set_pane_color((0.97, 0.97, 0.97))
            axis.set_major_locator(MaxNLocator(ticks, integer=True))
        for number, tube in zip(_numbers(pred), pred, strict=True):
            colour = rgb(colour_of(number))
            for rings in _rings(tube):
                walls = [np.concatenate([rings[:, k], rings[::-1, (k + 1) % 4]]) for k in range(4)]
                axes.add_collection3d(Poly3DCollection(walls, facecolor=colour, alpha=0.3, edgecolor="none"))
                axes.add_collection3d(
                    Poly3DCollection(rings[[0, -1]], facecolor=(*colour, 0.5), edgecolor=colour, lw=1.2)
                )
                axes.add_collection3d(Line3DCollection(rings.swapaxes(0, 1), colors=[colour], lw=1.2))
        for tube in gt:
            for rings in _rings(tube):
                edges = [*rings.swapaxes(0, 1), *(ring[[0, 1, 2, 3, 0]] for ring in (rings[0], rings[-1]))]
                axes.add_collection3d(Line3DCollection(edges, colors="black", lw=0.8, linestyles=(0, (4, 2))))
        for number, tube in zip(_numbers(pred), pred, strict=True):
            if len(tube):
                x, y = tube.boxes[0, 0], tube.boxes[0, 1]
                field = {"facecolor": rgb(colour_of(number)), "edgecolor": "none", "pad": 1}
                text = f"{_name(tube, labels)} {tube.score:.2f}"
                ink = rgb(ink_on(colour_of(number)))
                axes.text(tube.frames[0], x, y, text, va="bottom", fontsize=7, bbox=field, color=ink)
        kinds = [
            Patch(facecolor=(*rgb(colour_of(0)), 0.5), edgecolor=rgb(colour_of(0)), label="predicted"),
            Line2D([], [], color="black", lw=0.8, ls=(0, (4, 2)), label="ground truth"),
        ]
        figure.legend(handles=kinds, loc="lower left", ncols=2)


def _rings(tube: Tube) -> list[np.ndarray]:
    """The corners (t, x, y) of a tube's boxes, one array (T, 4, 3) for each run of frames without a gap."""
    x0, y0, x1, y1 = np.nan_to_num(tube.boxes.T.astype(np.float64))
    t = tube.frames.astype(np.float64)
    corners = np.stack([np.stack([t, x, y], 1) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], 1)
    return [run for run in np.split(corners, np.flatnonzero(np.diff(tube.frames) > 1) + 1) if len(run)]
