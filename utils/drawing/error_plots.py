"""Plots of intervals, causes of error and confusion."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.drawing.plots import page

BLUE = "#1f5fa8"
RED = "#b5403a"


def analysis_plots(folder: Path, metrics: Mapping) -> list[Path]:
    """The causes of error and the confusion that `metrics` hold, where they do; returns the files' paths."""
    paths = []
    for name, summary in metrics.get("errors", {}).items():
        paths.append(folder / f"errors_{name}.png")
        plot_causes(paths[-1], summary["causes"], f"What errors cost: {name} is {summary['mAP']:.3f}")
    for name, matrix in metrics.get("confusion", {}).items():
        paths.append(folder / f"confusion_{name}.png")
        plot_confusion(paths[-1], np.array(matrix["counts"]), matrix["labels"], f"Confusion of classes, {name}")
    return paths


def plot_intervals(path: str | Path, values: Mapping[str, tuple[float, float, float]], title: str, note: str) -> None:
    """Differences with their intervals, a row for each; red and blue are those whose interval leaves zero out.

    Args:
        values: name -> difference and both ends of its interval.
        note: stands below.
    """
    with page(path, 6.5, 1.2 + 0.22 * len(values), title) as fig:
        axes = fig.subplots()
        for row, (value, low, high) in enumerate(values.values()):
            colour = BLUE if low > 0 else RED if high < 0 else "0.45"
            axes.plot([low, high], [row, row], color=colour, lw=1.6)
            axes.plot(value, row, "o", color=colour, ms=4)
        axes.axvline(0, color="0.3", lw=0.8)
        axes.set_yticks(range(len(values)), list(values), fontsize=7)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.grid(axis="x")
        fig.supxlabel(note, fontsize=7)


def plot_causes(path: str | Path, causes: Mapping[str, Mapping[str, float]], title: str) -> None:
    """What the mAP would gain ("gain") if each cause alone were mended, as bars with the number of errors ("count")."""
    gains = [row["gain"] for row in causes.values()]
    with page(path, 5.5, 1 + 0.35 * len(causes), title) as fig:
        axes = fig.subplots()
        bars = axes.barh(range(len(causes)), gains, color=BLUE, height=0.65)
        axes.bar_label(bars, [f" {row['gain']:+.3f} ({row['count']})" for row in causes.values()], fontsize=8)
        axes.set_yticks(range(len(causes)), list(causes))
        axes.set_ylim(len(causes) - 0.5, -0.5)
        axes.set_xlim(min(0, *gains), max(1e-3, *gains) * 1.3)
        axes.set_xlabel("gain in mAP if this alone were mended (number of errors)")


def plot_confusion(path: str | Path, counts: np.ndarray, labels: Sequence[str], title: str) -> None:
    """Which class is taken for which: shares of each ground-truth class.

    Args:
        counts: int (n, n), rows are the ground truth, columns what was predicted.
        labels: the n classes' names, "no action" the last.
    """
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.5 + 0.3 * len(labels)
    with page(path, side + 0.6, side, title) as fig:
        axes = fig.subplots()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(share >= 0.005) if len(labels) <= 30 else ():
            colour = "white" if share[row, column] > 0.6 else "black"
            text = f"{share[row, column]:.2f}".lstrip("0") if share[row, column] < 0.995 else "1"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.spines[:].set_visible(True)
        axes.set(xlabel="predicted", ylabel="ground truth")
        fig.colorbar(image, label="share of the ground-truth class", shrink=0.8)
