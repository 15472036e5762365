"""What an evaluation leaves: a table on the screen and the same figures as JSON."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.files import write_json


def plain(value: object) -> object:
    """`value` as JSON holds it: NumPy numbers as Python's, undefined figures (NaN) as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | type(None)) else str(value)


def write_results(root: Path, stage: str, subset: str, settings: str, args: argparse.Namespace, metrics: dict) -> Path:
    """Write `root/results/<stage>-<subset>-<settings>.json`, `{"args", "metrics"}`; its path."""
    path = root / "results" / f"{stage}-{subset}-{settings}.json"
    write_json(path, {"args": plain(vars(args)), "metrics": plain(metrics)})
    return path


def figure(value: object) -> str:
    """A figure as tables show it: four digits after the point, counts whole, undefined ones as a dash."""
    value = plain(value)
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under `head`: the first to the left, the others to the right."""
    cells = [list(head), *([figure(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(padded).rstrip())
