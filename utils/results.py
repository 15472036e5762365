"""What an evaluation leaves: tables on the screen, and the same metrics as JSON, in the run's log and as plots."""

import argparse
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from shutil import make_archive
from typing import NamedTuple
from unicodedata import east_asian_width

import numpy as np

from utils.box_ops import Tubes
from utils.gt_tubes import tubes_checksum
from utils.misc import InputError, checksum, did_you_mean
from utils.run_log import RunLog
from utils.storage.files import plain, read_json, write_json

_COMPARABLE = {
    "subset", "load_epoch", "psn_score_th", "filter_length", "end_consecutive_frames", "label_centric", "frame_iou",
    "protocol", "linker", "strict", "amp", "image_size", "pad_square", "person_label", "ground_truth", "detector_key",
    "encoder_hash",
}  # fmt: skip
"""Settings that results by different link cues must share to be compared."""
CURVE_CHARTS = 2  # thresholds whose curves Comet gets
_PLOTS = ("precision_recall@*", "motion_recall@*", "errors_*@*", "confusion_tubes@*", "confusion_frames", "similarity",
          "features", "tubes", "frames")  # fmt: skip
_MADE_OF_TUBES = (
    *(f"{plot}.{kind}" for plot in _PLOTS for kind in ("png", "pdf")),
    *("side_by_side/**/*.mp4", "errors.json", "predictions.json", "frame_detections.npy", "ava.csv", "mot/**/*.txt"),
    *("report/index.html", "report/files-*/*", "report.zip"),
)
"""Files beside the results that show the evaluated tubes; others there are the user's."""


class Views(NamedTuple):
    """What an evaluation shows of its tubes, where the flags ask for it.

    draw: writes the plots of `--plot` into the folder that it is given and returns their paths.
    page: that folder -> the page of `--report`, as from `utils.drawing.report.contents.evaluation_page`.
    panels: a video's name -> its panels side by side (`utils.drawing.side_by_side`).
    frames: a video's name -> its `VideoFrames`; InputError where it cannot be read.
    curves: the charts of curves for Comet and the page.
    """

    draw: Callable[[Path], list[Path]]
    page: Callable[[Path], dict]
    panels: Callable[[str], list]
    frames: Callable[[str], Iterable[np.ndarray]]
    curves: Callable[[], list[dict]] = list


def check_side_by_side(args: argparse.Namespace, names: Collection[str]) -> None:
    """InputError for a video of `--side_by_side` that is not one of the subset's `names`."""
    for video in args.side_by_side:
        if video not in names:
            near = did_you_mean(video, names)
            raise InputError(f"--side_by_side {video}: no usable video of subset {args.subset!r}{near}")


def ground_truth_checksum(gt: Tubes, labels: Sequence[str]) -> str:
    """A checksum of the ground truth of a subset's videos and of the labels; the setting `ground_truth` of results."""
    return checksum(*labels, *(f"{name} {tubes_checksum(gt[name], of_people=True)}" for name in sorted(gt)))


def write_results(
    root: Path,
    stage: str,
    subset: str,
    name: str,
    args: Mapping,
    metrics: dict,
    epoch: int,
    views: Views | None = None,
) -> Path:
    """Write a results file, `{"args", "metrics"}`, and beside it the evaluation's log and what `views` shows.

    Args:
        root: the run's folder.
        stage, subset, name: make the file's name, `root/results/<stage>-<subset>-<name>.json`; `name` names the
            settings that change a metric.
        args: the flags as they were used, those of `add_evaluation_flags` among them.
        metrics: name -> value, or mappings of such; `videos_left_out` above 0 is in the file's name too, so that
            metrics of fewer videos never take the place of those of all.

    Returns:
        The results file; the folder of the same name holds the log (`utils.run_log`) and the plots. Plots, videos,
        page and predictions that are there, of an earlier evaluation with other metrics (of models trained anew), are
        removed.
    """
    if left_out := metrics.get("videos_left_out"):
        name += f"-without{left_out}"
    path = root / "results" / f"{stage}-{subset}-{name}.json"
    args, metrics, folder = plain(args), plain(metrics), path.with_suffix("")
    with contextlib.suppress(InputError):  # there is none yet
        earlier = read_json(path)["metrics"]
        if any(earlier[key] != metrics[key] for key in earlier.keys() & metrics.keys()):
            for old in [file for pattern in _MADE_OF_TUBES for file in folder.glob(pattern)]:
                old.unlink()
    write_json(path, {"args": args, "metrics": metrics})
    print(f"results: {path}")
    with RunLog(stage, folder, args, args["comet"]) as log:
        log.metrics(dict(flat(metrics)), epoch)
        _log_parts(log, metrics)
        if views:
            _show(views, folder, args, log)
    return path


def _show(views: Views, folder: Path, args: Mapping, log: RunLog) -> None:
    """Plots, page and videos that the flags ask for; Comet also gets curves, and the worst videos of the page."""
    worst: list[str] = []
    curves = views.curves() if log.on_comet or args["report"] else []
    for chart in curves[:CURVE_CHARTS]:
        for curve in chart["curves"]:
            log.comet("log_curve", f"{chart['title']}, {curve['name']}", x=curve["x"], y=curve["y"], overwrite=True)
    if args["plot"]:
        from utils.drawing.plots import formats  # with Matplotlib

        with formats(args["plot_format"] or ()):
            for plot in views.draw(folder):
                log.comet("log_image", str(plot), name=plot.stem, overwrite=True)
        print(f"plots: {folder}/*.png")
    if args["report"]:
        from utils.drawing.report import contents
        from utils.drawing.report.page import write_report

        page = views.page(folder)
        page["charts"] += curves
        index = write_report(folder / "report", page, views.frames, args["report_videos"], args["workers"])
        print(f"report: {index}")
        if log.on_comet:
            archive = make_archive(str(folder / "report"), "zip", index.parent)
            log.comet("log_asset", archive, file_name="report.zip", overwrite=True)
            worst = contents.worst(page["videos"])
    for name in dict.fromkeys([*worst, *args["side_by_side"]]):
        from utils.drawing.side_by_side import write_side_by_side

        video = folder / "side_by_side" / f"{name}.mp4"
        try:
            frames = views.frames(name)
            write_side_by_side(video, frames, frames.size, frames.fps, views.panels(name))
        except InputError:
            if name in args["side_by_side"]:
                raise
            continue  # nobody asked for it; the page has a note on videos that cannot be read
        print(f"video: {video}")
        if name in worst:
            log.comet("log_video", str(video), name=name, overwrite=True)


def _log_parts(log: RunLog, metrics: Mapping) -> None:
    """Log the metrics that have parts (classes, motion categories) as tables, and confusion matrices."""
    for name, parts in metrics.items():
        if isinstance(parts, Mapping) and name not in ("intervals", "errors", "confusion"):
            bounds = metrics.get("intervals", {}).get(name, {})
            rows = [[part, value, *bounds.get(part, ("", ""))] for part, value in parts.items()]
            log.comet("log_table", f"{name}.csv", tabular_data=rows, headers=["name", "value", "low", "high"])
    for name, summary in metrics.get("errors", {}).items():
        rows = [[cause, row["gain"], row["count"]] for cause, row in summary["causes"].items()]
        log.comet("log_table", f"errors_{name}.csv", tabular_data=rows, headers=["cause", "gain", "count"])
    for name, matrix in metrics.get("confusion", {}).items():
        log.comet(
            "log_confusion_matrix", matrix=matrix["counts"], labels=matrix["labels"], title=f"Confusion of {name}",
            file_name=f"confusion_{name}.json", row_label="ground truth", column_label="predicted",
            max_categories=len(matrix["labels"]),
        )  # fmt: skip


def flat(metrics: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Metrics with the path to them as their name, `AP@0.5/walk`; lists and texts are left out."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif not isinstance(value, list | str):
            yield prefix + name, value


def read_results(path: Path, stage: str, flag: str) -> dict:
    """A results file, `{"args": {...}, "metrics": {...}}`; InputError unless its `args` have the stage's `flag`."""
    results = read_json(path, "results file")
    known = isinstance(results, dict) and all(isinstance(results.get(name), dict) for name in ("args", "metrics"))
    if not known or flag not in results["args"]:
        raise InputError(f"{path}: not a results file of {stage}.py; remove it, or evaluate again")
    return results


def motion_recall_by_cue(path: Path, threshold: float) -> dict[str, dict[str, float | None]]:
    """Recall by motion category of each link cue, as `eval_qmm.py` left it.

    Args:
        path: a results file; beside it, the newest of each other cue with the same settings, models and ground truth
            counts too (but for the similarity threshold, which differs in kind).
        threshold: 3D IoU.

    Returns:
        Link cue -> "small", "medium", "large" -> recall.
    """
    mine = read_results(path, "eval_qmm", "link_cues")
    by_cue = {mine["args"]["link_cues"]: mine}
    for other in sorted(path.parent.glob("eval_qmm-*.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        results = read_results(other, "eval_qmm", "link_cues")
        if all(results["args"].get(name) == mine["args"].get(name) for name in _COMPARABLE):
            by_cue.setdefault(results["args"]["link_cues"], results)
    key = f"motion_recall@{threshold:g}"
    return {cue: by_cue[cue]["metrics"][key] for cue in sorted(by_cue) if key in by_cue[cue]["metrics"]}


def cell(value: object) -> str:
    """A metric as tables show it: four digits after the point, counts whole, undefined ones as a dash."""
    value = plain(value)
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under `head`: the first to the left, the others to the right."""
    cells = [list(head), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        gaps = [" " * (w - _width(c)) for c, w in zip(row, widths, strict=True)]
        padded = [row[0] + gaps[0], *(gap + c for gap, c in zip(gaps[1:], row[1:], strict=True))]
        print("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """The columns that a terminal shows a text in: two for each Chinese or Japanese character."""
    return len(text) + sum(east_asian_width(character) in "WF" for character in text)
