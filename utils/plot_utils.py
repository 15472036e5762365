"""Figures of what the stages find, each one PNG, readable at a glance and under every kind of colour blindness.

All functions take arrays or tubes and write whole files or none (`utils.storage.files.atomic`).
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.box_ops import MOTION_CATEGORIES
from utils.drawing.draw import colour_of
from utils.drawing.figure import grid, page, panels, rgb
from utils.drawing.plot_tubes import plot_predictions, plot_tubes
from utils.misc import InputError
from utils.video_map import average_precision

__all__ = [
    "plot_features",
    "plot_motion_recall",
    "plot_precision_recall",
    "plot_predictions",
    "plot_similarity",
    "plot_training",
    "plot_tubes",
    "precision_recall",
    "read_metrics",
]
MARKERS = "os^Dv*"  # one a stretch of time
LIGHT, BLUE, RED, GREY = rgb(colour_of(0)), rgb(colour_of(6)), rgb(colour_of(5)), (0.6, 0.6, 0.6)


def precision_recall(correct: np.ndarray, n_gt: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each detection, float64 (n,) each.

    `correct` bool (n,): whether each detection is one, by falling score; `n_gt` > 0 ground truths in all.
    """
    found = np.asarray(correct, bool).cumsum()
    return found / np.arange(1, len(found) + 1), found / n_gt


def plot_precision_recall(
    path: str | Path,
    correct: Sequence[np.ndarray],
    n_gt: Sequence[int],
    labels: Sequence[str],
    protocol: str = "voc",
    title: str = "Precision and recall of action tubes",
) -> None:
    """A panel a class with its curve, its AP (the coloured area) and its number of ground-truth tubes, by falling AP.

    `correct`: for each class whether each detection is one, bool (n_c,) by falling score; `n_gt` int (n_classes,).
    Classes without ground truth are listed below. `protocol` as in `utils.video_map`: the area is that under
    the envelope ("voc") or under the raw curve ("act").
    """
    n_gt = [int(n) for n in n_gt]
    known = [c for c in range(len(labels)) if n_gt[c]]
    ap = {c: average_precision(np.asarray(correct[c], bool), n_gt[c], protocol) for c in known}
    rows, columns = grid(max(len(known), 1), 8)
    with page(path, 1 + 1.55 * columns, 1 + 1.6 * rows, title) as figure:
        each = panels(figure, len(known), rows, columns, sharex=True, sharey=True)
        for axes, c in zip(each, sorted(known, key=lambda c: -ap[c]), strict=True):
            precision, recall = (
                np.concatenate([[first], part])
                for first, part in zip((1.0, 0.0), precision_recall(correct[c], n_gt[c]), strict=True)
            )
            area = np.maximum.accumulate(precision[::-1])[::-1] if protocol == "voc" else precision
            how = {"step": "pre"} if protocol == "voc" else {}
            axes.fill_between(recall, area, color=LIGHT, alpha=0.45, lw=0, **how)
            axes.plot(recall, precision, color=BLUE, lw=1.3, solid_joinstyle="round")
            axes.set_title(f"{labels[c]}\nAP {ap[c]:.2f}, {n_gt[c]} tube{'s'[: n_gt[c] != 1]}", fontsize=8)
            axes.set(xlim=(0, 1.02), ylim=(0, 1.05), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.grid()
        missing = ", ".join(label for c, label in enumerate(labels) if not n_gt[c])
        note = f"\n\nwithout ground truth: {missing}" if missing else ""
        figure.supxlabel("recall (share of the ground-truth tubes)" + note, fontsize=9)
        figure.supylabel("precision (share of the detections)", fontsize=9)


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def plot_similarity(
    path: str | Path,
    features: np.ndarray,
    person_ids: np.ndarray,
    frames: np.ndarray,
    title: str = "Similarity of person features",
) -> None:
    """The cosine similarity of every pair of a clip's person features, float (n, d), sorted by person, then frame.

    `person_ids` int (n,), -1 for a query that is nobody; `frames` int (n,).
    """
    order = np.lexsort((frames, np.where(person_ids < 0, np.iinfo(np.int64).max, person_ids)))
    unit, people = _unit(features)[order], np.asarray(person_ids)[order]
    similarity = unit @ unit.T
    edges = [0, *(np.flatnonzero(np.diff(people)) + 1).tolist(), len(people)]
    known = (people[:, None] >= 0) & (people >= 0) & ~np.eye(len(people), dtype=bool)
    same = people[:, None] == people
    means = [f"{similarity[pairs].mean():.2f}" if pairs.any() else "n/a" for pairs in (known & same, known & ~same)]
    with page(path, 6.2, 5.4, title) as figure:
        axes = figure.subplots()
        shown = similarity if len(people) else np.full((1, 1), np.nan)
        image = axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        for edge in edges[1:-1]:
            axes.axhline(edge - 0.5, color="black", lw=0.8)
            axes.axvline(edge - 0.5, color="black", lw=0.8)
        middles = [(a + b - 1) / 2 for a, b in pairwise(edges) if b > a]
        names = ["nobody" if people[a] < 0 else str(people[a]) for a, b in pairwise(edges) if b > a]
        axes.set_xticks(middles, names, rotation=90 if len(names) > 12 else 0)
        axes.set_yticks(middles, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        axes.set(xlabel="person (frames in order within each)", ylabel="person")
        axes.set_title(f"mean over pairs of one person {means[0]}, of two people {means[1]}", fontsize=9)
        figure.colorbar(image, label="cosine similarity", shrink=0.85, ticks=(-1, -0.5, 0, 0.5, 1))


def plot_features(
    path: str | Path,
    features: np.ndarray,
    person_ids: np.ndarray,
    frames: np.ndarray,
    title: str = "Person features across frames",
) -> None:
    """Person features, float (n, d), of unit length and on their two principal axes: a colour a person, a marker
    a stretch of time, a line from each frame of a person to the next.

    `person_ids` int (n,), -1 for a query that is nobody (grey); `frames` int (n,).
    """
    person_ids, frames = np.asarray(person_ids), np.asarray(frames)
    unit = _unit(features)
    centred = unit - unit.mean(0, keepdims=True) if len(unit) else unit
    _, spread, axes_of = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(unit), 2))
    places[:, : min(2, len(axes_of))] = centred @ axes_of[:2].T
    share = np.append(spread**2 / max((spread**2).sum(), 1e-12), [0, 0])
    low, high = (int(frames.min()), int(frames.max())) if len(frames) else (0, 0)
    edges = np.unique(np.linspace(low, high + 1, min(len(MARKERS), high - low + 1) + 1).round().astype(int))
    with page(path, 7.4, 5.2, title) as figure:
        axes = figure.subplots()
        for person in np.unique(person_ids):
            at = np.flatnonzero(person_ids == person)
            at = at[np.argsort(frames[at], kind="stable")]
            colour = rgb(colour_of(int(person))) if person >= 0 else GREY
            if person >= 0:
                axes.plot(*places[at].T, color=colour, lw=0.8, alpha=0.5, zorder=1)
                top = places[at[places[at, 1].argmax()]]
                halo = [patheffects.withStroke(linewidth=3, foreground="white")]
                style = {"fontsize": 12, "fontweight": "bold", "ha": "center", "path_effects": halo}
                axes.annotate(str(person), top, (0, 7), textcoords="offset points", **style)
            for k, (a, b) in enumerate(pairwise(edges)):
                now = at[(frames[at] >= a) & (frames[at] < b)]
                axes.scatter(*places[now].T, s=34, marker=MARKERS[k], color=colour, edgecolor="black", lw=0.4, zorder=2)
        axes.set(xlabel=f"first principal axis ({share[0]:.0%} of the variance)")
        axes.set(ylabel=f"second principal axis ({share[1]:.0%} of the variance)")
        axes.grid()
        axes.margins(0.08)
        look = {"ls": "", "color": "0.5", "mec": "black", "mew": 0.4}
        times = [
            Line2D([], [], marker=MARKERS[k], label=f"{a}" if b == a + 1 else f"{a} to {b - 1}", **look)
            for k, (a, b) in enumerate(pairwise(edges))
        ]
        figure.legend(handles=times, loc="outside right upper", title="frame", fontsize=8)


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`, by epoch; InputError where there is none. A torn last line is left out."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of metrics")
    lines = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                lines[line["epoch"]] = line
    if not lines:
        raise InputError(f"{path}: holds no epoch's metrics")
    return [lines[epoch] for epoch in sorted(lines)]


def plot_training(path: str | Path, metrics: Sequence[Mapping], title: str = "") -> None:
    """A panel a figure over the epochs, `metrics` as from `read_metrics`: losses first, then others, then the rate.

    A figure `val_x` shares the panel of `x`. Figures that are null leave a gap; epochs without one are passed over.
    """
    epochs = [line["epoch"] for line in metrics]
    names = dict.fromkeys(name for line in metrics for name, value in line.items() if isinstance(value, int | float))
    names.pop("epoch", None)
    sharing: dict[str, list[str]] = {}
    for name in names:
        sharing.setdefault(name.removeprefix("val_"), []).append(name)
    last = ("lr", "grad_norm", "seconds", "skipped_steps")
    order = sorted(sharing, key=lambda name: (last.index(name) + 1 if name in last else 0, "loss" not in name))
    rows, columns = grid(max(len(order), 1), 4)
    stage = metrics[0].get("stage", "") if metrics else ""
    with page(path, 0.5 + 2.5 * columns, 0.7 + 1.9 * rows, title or f"Training: {stage}") as figure:
        for axes, panel in zip(panels(figure, len(order), rows, columns), order, strict=True):
            for name in sharing[panel]:
                told = [line for line in metrics if name in line]
                values = np.array([line[name] for line in told], np.float64)
                held_out = name.startswith("val_")
                look = (
                    {"color": RED, "ls": "--", "label": "held out"}
                    if held_out
                    else {"color": BLUE, "label": "training"}
                )
                axes.plot([line["epoch"] for line in told], values, lw=1.5, marker="o", ms=3, **look)
                if panel == "lr" and np.nanmax(values) > 3 * np.nanmin(values) > 0:
                    axes.set_yscale("log")
            axes.set_title(panel if panel in names else sharing[panel][0], fontsize=9)
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            axes.grid()
            if len(sharing[panel]) > 1:
                axes.legend(fontsize=7, loc="best")
        figure.supxlabel("epoch", fontsize=9)


def plot_motion_recall(
    path: str | Path,
    recall: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int] | None = None,
    title: str = "Recall by motion category",
) -> None:
    """Bars of recall, 0 to 1, by category of motion ("small", "medium", "large"), side by side for each link cue.

    `recall` maps a cue's name to its recall by category, NaN or None where that is undefined; `counts` how
    many ground-truth tubes a category has.
    """
    with page(path, 1.6 + 1.9 * max(len(recall), 1), 3.6, title) as figure:
        axes = figure.subplots()
        width = 0.8 / max(len(recall), 1)
        for k, (cue, by_category) in enumerate(recall.items()):
            values = np.array([by_category.get(name) for name in MOTION_CATEGORIES], np.float64)
            places = np.arange(len(values)) + (k - (len(recall) - 1) / 2) * width
            bars = axes.bar(places, np.nan_to_num(values), width * 0.92, color=rgb(colour_of(k)), label=cue)
            axes.bar_label(bars, ["n/a" if np.isnan(v) else f"{v:.2f}" for v in values], padding=2, fontsize=8)
        names = [name if counts is None else f"{name}\n({counts.get(name, 0)} tubes)" for name in MOTION_CATEGORIES]
        axes.set_xticks(range(len(names)), names)
        axes.set(ylim=(0, 1.08), ylabel="recall (share of the tubes)", xlabel="motion of the person")
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.grid(axis="y")
        if recall:
            figure.legend(loc="outside lower center", ncols=len(recall), title="linked by", title_fontsize=8)
