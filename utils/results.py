"""What an evaluation leaves: tables on the screen, and the same metrics as JSON, in the run's log and as plots."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from shutil import make_archive

import numpy as np

from utils.cli import Parser
from utils.misc import InputError, did_you_mean
from utils.run_log import RunLog
from utils.storage.files import read_json, write_json

_COMPARABLE = (
    "subset",
    "load_epoch",
    "psn_score_th",
    "filter_length",
    "end_consecutive_frames",
    "label_centric",
    "frame_iou",
    "protocol",
    "strict",
)
"""Settings that results by different link cues must share to be compared."""
CURVE_CHARTS = 2  # thresholds whose curves Comet gets


def add_plot_video_flag(parser: Parser) -> None:
    """The flags of the evaluations that say which videos are shown in detail."""
    what = "video that --plot shows in detail (default: the first of those with most people)"
    parser.flag("run", "plot_video", help=what)
    parser.flag("run", "side_by_side", nargs="+", default=(), metavar="VIDEO",
                help="videos to write as MP4, ground truth and predictions side by side")  # fmt: skip


def check_plot_video(args: argparse.Namespace, names: Iterable[str]) -> None:
    """InputError for a video of `--plot_video` or `--side_by_side` that is not one of the subset's `names`, or that
    nothing is drawn of."""
    names = list(names)
    for video in args.side_by_side:
        if video not in names:
            near = did_you_mean(video, names)
            raise InputError(f"--side_by_side {video}: no usable video of subset {args.subset!r}{near}")
    if args.plot_video is None:
        return
    if not args.plot:
        raise InputError(f"--plot_video {args.plot_video}: only goes with --plot")
    if args.plot_video not in names:
        near = did_you_mean(args.plot_video, names)
        raise InputError(f"--plot_video {args.plot_video}: no usable video of subset {args.subset!r}{near}")


def plain(value: object) -> object:
    """`value` as JSON holds it: NumPy numbers as Python's, undefined metrics (NaN) as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | type(None)) else str(value)


def write_results(
    root: Path,
    stage: str,
    subset: str,
    name: str,
    args: Mapping,
    metrics: dict,
    epoch: int,
    draw: Callable[[Path], list[Path]] | None = None,
    curves: Callable[[], list[dict]] | None = None,
    report: Callable[[Path], tuple[Path, list[Path]]] | None = None,
) -> Path:
    """Write a results file, `{"args", "metrics"}`, and the evaluation's log beside it.

    Args:
        root: the run's folder.
        stage, subset, name: make the file's name, `root/results/<stage>-<subset>-<name>.json`; `name` names every
            setting that changes a metric.
        args: the flags as they were used.
        metrics: name -> value, or mappings of such.
        epoch: of the evaluated checkpoint, for the log.
        draw: draws the plots into the folder that it is given and returns their paths.
        curves: the curves that Comet gets, called where it is used: charts of `utils.drawing.report.contents`.
        report: writes the page into the folder that it is given, and annotated videos beside it where Comet is used;
            returns their paths.

    Returns:
        The results file; the folder of the same name holds the log (`utils.run_log`) and the plots.
    """
    path = root / "results" / f"{stage}-{subset}-{name}.json"
    args, metrics, folder = plain(args), plain(metrics), path.with_suffix("")
    write_json(path, {"args": args, "metrics": metrics})
    with RunLog(stage, folder, args, args["comet"]) as log:
        log.metrics(dict(_flat(metrics)), epoch)
        _log_parts(log, metrics)
        for chart in curves()[:CURVE_CHARTS] if curves and args["comet"] != "disabled" else ():
            for curve in chart["curves"]:
                log.curve(f"{chart['title']}, {curve['name']}", curve["x"], curve["y"])
        pictures = _drawn(draw, folder, args) if draw else []
        for picture in pictures:
            log.image(picture.stem, picture)
        if report:
            page, videos = report(folder / "report")
            if args["comet"] != "disabled":
                log.asset("report.zip", make_archive(str(folder / "report"), "zip", page.parent))
            for video in videos:
                log.video(video.stem, video)
    if pictures:
        print(f"pictures: {folder}/*.png")
    if report:
        print(f"report: {page}")
    return path


def _drawn(draw: Callable[[Path], list[Path]], folder: Path, args: Mapping) -> list[Path]:
    from utils.drawing.plots import formats  # with Matplotlib

    with formats(args.get("plot_format") or ()):
        return draw(folder)


def _log_parts(log: RunLog, metrics: Mapping) -> None:
    """Log the metrics that have parts (classes, motion categories) as tables, and confusion matrices."""
    for name, parts in metrics.items():
        if isinstance(parts, Mapping) and name not in ("intervals", "errors", "confusion"):
            bounds = metrics.get("intervals", {}).get(name, {})
            rows = [[part, value, *bounds.get(part, ("", ""))] for part, value in parts.items()]
            log.table(name, ["name", "value", "low", "high"], rows)
    for name, summary in metrics.get("errors", {}).items():
        rows = [[cause, row["gain"], row["count"]] for cause, row in summary["causes"].items()]
        log.table(f"errors_{name}", ["cause", "gain", "count"], rows)
    for name, matrix in metrics.get("confusion", {}).items():
        log.confusion(name, matrix["labels"], matrix["counts"])


def _flat(metrics: Mapping, prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Metrics with the path to them as their name, `AP@0.5/walk`; lists and texts are left out."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float | type(None)):
            yield prefix + name, value


def _read_results(path: Path) -> dict:
    results = read_json(path, "results file")
    known = isinstance(results, dict) and all(isinstance(results.get(name), dict) for name in ("args", "metrics"))
    if not known or "link_cues" not in results["args"]:
        raise InputError(f"{path}: not a results file of eval_qmm.py; remove it, or evaluate again")
    return results


def motion_recall_by_cue(path: Path, threshold: float) -> dict[str, dict[str, float | None]]:
    """Recall by motion category of each link cue, as `eval_qmm.py` left it.

    Args:
        path: a results file; beside it, the newest of each other cue with the same settings counts too (but for the
            similarity threshold, which differs in kind).
        threshold: 3D IoU.

    Returns:
        Link cue -> "small", "medium", "large" -> recall.
    """
    mine = _read_results(path)
    same = {name: value for name, value in mine["args"].items() if name in _COMPARABLE}
    by_cue = {mine["args"]["link_cues"]: mine}
    for other in sorted(path.parent.glob("eval_qmm-*.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        results = _read_results(other)
        if all(results["args"].get(name) == value for name, value in same.items()):
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
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(padded).rstrip())
