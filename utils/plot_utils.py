"""Plots of the stages' results, each one PNG, readable at a glance and under every kind of colour blindness.

All functions take arrays or tubes, and write a whole file or none (`utils.storage.files.atomic`).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill, shorten

import numpy as np
from matplotlib import patheffects
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.box_ops import MOTION_CATEGORIES
from utils.drawing.draw import colour_of
from utils.drawing.plots import page, panels, rgb
from utils.drawing.plots import plot_predictions as plot_predictions  # for users, who find all plots here
from utils.drawing.plots import plot_tubes as plot_tubes
from utils.metrics.average_precision import PROTOCOLS, area_under_envelope, average_precision, precision_recall
from utils.misc import InputError, counted
from utils.run_log import metric_lines

MARKERS = "os^Dv*"  # one for each stretch of time
LIGHT, BLUE, RED, GREY = rgb(colour_of(0)), rgb(colour_of(6)), rgb(colour_of(5)), (0.6, 0.6, 0.6)
LAST_PANELS = ("lr", "grad_norm", "seconds", "skipped_steps")  # of a training's plot


def plot_precision_recall(
    path: str | Path,
    correct: Sequence[np.ndarray],
    n_gt: Sequence[int],
    labels: Sequence[str],
    protocol: str = "voc",
    title: str = "Precision and recall of action tubes",
) -> None:
    """A panel for each class, by falling AP: its curve, its AP (the coloured area), its number of ground-truth tubes.

    Args:
        correct: for each class whether each detection is correct, bool (n_c,) by falling score.
        n_gt: int (n_classes,), number of ground truths; classes without any, and those that the protocol leaves out,
            are listed below the panels, as far as there is room.
        protocol: whose AP the area is (`utils.video_map.PROTOCOLS`).
    """
    shown = [c for c in np.flatnonzero(n_gt).tolist() if labels[c] not in PROTOCOLS[protocol].left_out]
    ap = {c: average_precision(np.asarray(correct[c], bool), int(n_gt[c]), protocol) for c in shown}
    with panels(path, len(ap), 8, 1.55, 1.6, title, sharex=True, sharey=True) as (fig, all_axes):
        for axes, c in zip(all_axes, sorted(ap, key=lambda c: -ap[c]), strict=True):
            precision, recall = precision_recall(correct[c], n_gt[c])
            precision, recall = np.append(1.0, precision), np.append(0.0, recall)
            if PROTOCOLS[protocol].area is area_under_envelope:
                envelope = np.maximum.accumulate(precision[::-1])[::-1]
                axes.fill_between(recall, envelope, color=LIGHT, alpha=0.45, lw=0, step="pre")
            else:
                axes.fill_between(recall, precision, color=LIGHT, alpha=0.45, lw=0)
            axes.plot(recall, precision, color=BLUE, lw=1.3, solid_joinstyle="round")
            name = fill(labels[c], 22, max_lines=2)
            axes.set_title(f"{name}\nAP {ap[c]:.2f}, {counted(int(n_gt[c]), 'tube')}", fontsize=8)
            axes.set(xlim=(0, 1.02), ylim=(0, 1.05), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.grid()
        missing = [label for c, label in enumerate(labels) if c not in ap]
        why = "without ground truth" + " or not evaluated" * bool(PROTOCOLS[protocol].left_out)
        note, room = f"{why}: {', '.join(missing)}", round(13 * fig.get_figwidth())  # letters
        note = "\n\n" + shorten(note, room, placeholder=f" ... ({len(missing)} classes)") if missing else ""
        fig.supxlabel("recall (share of the ground-truth tubes)" + note, fontsize=9)
        fig.supylabel("precision (share of the detections)", fontsize=9)


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
    """The cosine similarity of every pair of a clip's person features, sorted by person, then frame.

    Args:
        features: float (n, d).
        person_ids: int (n,), -1 for a detection that matches nobody.
        frames: int (n,).
    """
    order = np.lexsort((frames, np.where(person_ids < 0, np.iinfo(np.int64).max, person_ids)))
    unit, people = _unit(features)[order], np.asarray(person_ids)[order]
    similarity = unit @ unit.T
    known = (people[:, None] >= 0) & (people >= 0) & ~np.eye(len(people), dtype=bool)
    same = people[:, None] == people
    means = [f"{similarity[pairs].mean():.2f}" if pairs.any() else "n/a" for pairs in (known & same, known & ~same)]
    with page(path, 6.2, 5.4, title) as fig:
        axes = fig.subplots()
        matrix = similarity if len(people) else np.full((1, 1), np.nan)
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        edges = [0, *(np.flatnonzero(np.diff(people)) + 1).tolist(), len(people)]
        for edge in edges[1:-1]:
            axes.axhline(edge - 0.5, color="black", lw=0.8)
            axes.axvline(edge - 0.5, color="black", lw=0.8)
        runs = [(begin, end) for begin, end in pairwise(edges) if end > begin]
        middles = [(begin + end - 1) / 2 for begin, end in runs]
        names = ["nobody" if people[begin] < 0 else str(people[begin]) for begin, _ in runs]
        axes.set_xticks(middles, names, rotation=90 if len(names) > 12 else 0)
        axes.set_yticks(middles, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        axes.set(xlabel="ground-truth person (frames in order within each)", ylabel="ground-truth person")
        axes.set_title(f"mean over pairs of one person {means[0]}, of two people {means[1]}", fontsize=9)
        fig.colorbar(image, label="cosine similarity", shrink=0.85, ticks=(-1, -0.5, 0, 0.5, 1))


def plot_features(
    path: str | Path,
    features: np.ndarray,
    person_ids: np.ndarray,
    frames: np.ndarray,
    title: str = "Person features across frames",
) -> None:
    """Person features of unit length on their two principal axes: a colour a person, a marker a stretch of time, a line
    from each frame of a person to the next. Arguments as in `plot_similarity`; who matches nobody is grey.
    """
    person_ids, frames = np.asarray(person_ids), np.asarray(frames)
    unit = _unit(features)
    centred = unit - unit.mean(0, keepdims=True) if len(unit) else unit
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(unit), 2))
    points[:, : min(2, len(directions))] = centred @ directions[:2].T
    variance = np.append(singular**2 / max((singular**2).sum(), 1e-12), [0, 0])
    low, high = (int(frames.min()), int(frames.max())) if len(frames) else (0, 0)
    edges = np.unique(np.linspace(low, high + 1, min(len(MARKERS), high - low + 1) + 1).round().astype(int))
    stretches = list(zip(pairwise(edges.tolist()), MARKERS, strict=False))
    with page(path, 7.4, 5.2, title) as fig:
        axes = fig.subplots()
        for person in np.unique(person_ids):
            rows = np.flatnonzero(person_ids == person)
            rows = rows[np.argsort(frames[rows], kind="stable")]
            colour = rgb(colour_of(int(person))) if person >= 0 else GREY
            if person >= 0:
                axes.plot(*points[rows].T, color=colour, lw=0.8, alpha=0.5, zorder=1)
                top = points[rows[points[rows, 1].argmax()]]
                halo = [patheffects.withStroke(linewidth=3, foreground="white")]
                style = {"fontsize": 12, "fontweight": "bold", "ha": "center", "path_effects": halo}
                axes.annotate(str(person), top, (0, 7), textcoords="offset points", **style)
            for (begin, end), marker in stretches:
                part = rows[(frames[rows] >= begin) & (frames[rows] < end)]
                axes.scatter(*points[part].T, s=34, marker=marker, color=colour, edgecolor="black", lw=0.4, zorder=2)
        axes.set(xlabel=f"first principal axis ({variance[0]:.0%} of the variance)")
        axes.set_title("one number and colour a ground-truth person; grey: matches nobody", fontsize=9)
        axes.set(ylabel=f"second principal axis ({variance[1]:.0%} of the variance)")
        axes.grid()
        axes.margins(0.08)
        look = {"ls": "", "color": "0.5", "mec": "black", "mew": 0.4}
        times = [
            Line2D([], [], marker=marker, label=f"{begin}" if end == begin + 1 else f"{begin} to {end - 1}", **look)
            for (begin, end), marker in stretches
        ]
        fig.legend(handles=times, loc="outside right upper", title="frame", fontsize=8)


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl` by epoch, without a torn last one; InputError where there is none."""
    by_epoch = {line["epoch"]: line for line in metric_lines(Path(path))}
    if not by_epoch:
        raise InputError(f"{path}: no such file, or no epoch's metrics in it")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def plot_training(path: str | Path, metrics: Sequence[Mapping]) -> None:
    """A panel for each metric (`read_metrics`) over the epochs: losses first, then others, then the learning rate etc.

    A metric `val_x` shares the panel of `x`. Values that are null leave a gap.
    """
    names = dict.fromkeys(name for line in metrics for name, value in line.items() if isinstance(value, int | float))
    names.pop("epoch", None)
    by_panel: dict[str, list[str]] = {}
    for name in names:
        by_panel.setdefault(name.removeprefix("val_"), []).append(name)
    last = {name: n for n, name in enumerate(LAST_PANELS, 1)}
    order = sorted(by_panel, key=lambda name: (last.get(name, 0), "loss" not in name))
    stage = metrics[0].get("stage", "") if metrics else ""
    with panels(path, len(order), 4, 2.5, 1.9, f"Training: {stage}") as (fig, all_axes):
        for axes, panel in zip(all_axes, order, strict=True):
            for name in by_panel[panel]:
                lines = [line for line in metrics if name in line]
                values = np.array([line[name] for line in lines], np.float64)
                color, style, label = (RED, "--", "held out") if name.startswith("val_") else (BLUE, "-", "training")
                axes.plot([line["epoch"] for line in lines], values, style, color=color, label=label, marker="o", ms=3)
                if panel == "lr" and np.nanmax(values) > 3 * np.nanmin(values) > 0:
                    axes.set_yscale("log")
            axes.set_title(panel if panel in names else by_panel[panel][0], fontsize=9)
            axes.set_xlim(metrics[0]["epoch"] - 0.5, metrics[-1]["epoch"] + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            axes.grid()
            if len(by_panel[panel]) > 1:
                axes.legend(fontsize=7, loc="best")
        fig.supxlabel("epoch", fontsize=9)


def plot_motion_recall(
    path: str | Path,
    recall: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int] | None = None,
    title: str = "Recall by motion category",
) -> None:
    """Bars of recall by motion category, side by side for each link cue.

    Args:
        recall: link cue -> "small", "medium", "large" -> recall from 0 to 1, NaN or None where undefined.
        counts: motion category -> number of ground-truth tubes.
    """
    with page(path, 1.6 + 1.9 * max(len(recall), 1), 3.6, title) as fig:
        axes = fig.subplots()
        width = 0.8 / max(len(recall), 1)
        for k, (cue, by_category) in enumerate(recall.items()):
            values = np.array([by_category.get(name) for name in MOTION_CATEGORIES], np.float64)
            x = np.arange(len(values)) + (k - (len(recall) - 1) / 2) * width
            bars = axes.bar(x, np.nan_to_num(values), width * 0.92, color=rgb(colour_of(k)), label=cue)
            axes.bar_label(bars, ["n/a" if np.isnan(v) else f"{v:.2f}" for v in values], padding=2, fontsize=8)
        names = [name if counts is None else f"{name}\n({counts.get(name, 0)} tubes)" for name in MOTION_CATEGORIES]
        axes.set_xticks(range(len(names)), names)
        axes.set(ylim=(0, 1.08), ylabel="recall (share of the tubes)", xlabel="motion of the person")
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.grid(axis="y")
        if recall:
            fig.legend(loc="outside lower center", ncols=len(recall), title="linked by", title_fontsize=8)
