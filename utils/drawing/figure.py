"""What every Matplotlib figure of this project shares: its style, its panels, and how it is written.

Matplotlib's windows and global state are left alone: each figure is an object of its own.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.drawing.draw import Colour, font_families
from utils.storage.files import atomic

DPI = 150  # pixels an inch
LEAST_WIDTH = 4.5  # inches: what a title takes
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
def page(path: str | Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """A figure of width (at least `LEAST_WIDTH`) x height inches, written to `path` when the block ends well."""
    with matplotlib.rc_context({**STYLE, "font.family": list(font_families())}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no font here has it: an empty box says so
        figure = Figure((max(width, LEAST_WIDTH), height), DPI, layout="constrained")
        if title:
            figure.suptitle(title, fontsize=11, fontweight="bold")
        yield figure
        with atomic(path) as part:
            figure.savefig(part, dpi=DPI)


def rgb(colour: Colour) -> tuple[float, ...]:
    """A colour as Matplotlib takes it."""
    return tuple(c / 255 for c in colour)


def grid(n: int, most: int) -> tuple[int, int]:
    """Rows and columns of n panels, at most so many columns, as near a square as they get."""
    columns = min(n, most, math.ceil(math.sqrt(n)) + 1)
    return math.ceil(n / columns), columns


def panels(figure: Figure, n: int, rows: int, columns: int, **options) -> list[Axes]:
    """n axes; the places that are left in the last row are empty."""
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for left in axes[n:]:
        left.set_axis_off()
    return axes[:n].tolist()
