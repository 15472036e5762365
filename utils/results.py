"""What an evaluation leaves: a table on the screen, and the same figures as JSON, in the run's log and as pictures."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.cli import Parser
from utils.misc import InputError, did_you_mean
from utils.run_log import RunLog
from utils.storage.files import read_json, write_json

_SAME = (
    "subset",
    "load_epoch",
    "psn_score_th",
    "filter_length",
    "end_consecutive_frames",
    "label_centric",
    "frame_iou",
)


def add_plot_video_flag(parser: Parser) -> None:
    """The flag of the evaluations that says which video their pictures show."""
    what = "video that --plot shows in detail (default: the first of those with most people)"
    parser.flag("run", "plot_video", help=what)


def check_plot_video(args: argparse.Namespace, names: Iterable[str]) -> None:
    """InputError for a `--plot_video` that is not one of the subset's videos `names`, or that nothing is drawn of."""
    if args.plot_video is None:
        return
    if not args.plot:
        raise InputError(f"--plot_video {args.plot_video}: only goes with --plot")
    names = list(names)
    if args.plot_video not in names:
        near = did_you_mean(args.plot_video, names)
        raise InputError(f"--plot_video {args.plot_video}: no usable video of subset {args.subset!r}{near}")


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


def write_results(
    root: Path,
    stage: str,
    subset: str,
    settings: str,
    args: argparse.Namespace,
    metrics: dict,
    epoch: int,
    draw: Callable[[Path], list[Path]] | None = None,
) -> Path:
    """Write `root/results/<stage>-<subset>-<settings>.json`, `{"args", "metrics"}`; its path.

    The folder of the same name holds the run's log (`utils.run_log`), in which the figures are those of `epoch`, the
    measured checkpoint's, and the pictures, PNG files, that `draw(folder)` leaves.
    """
    path = root / "results" / f"{stage}-{subset}-{settings}.json"
    metrics, folder = plain(metrics), path.with_suffix("")
    write_json(path, {"args": plain(vars(args)), "metrics": metrics})
    with RunLog(stage, folder, plain(vars(args)), args.comet) as log:
        log.metrics(dict(_flat(metrics)), epoch)
        pictures = draw(folder) if draw else []
        for picture in pictures:
            log.image(picture.stem, picture)
    if pictures:
        print(f"pictures: {folder}/*.png")
    return path


def _flat(metrics: Mapping, prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Figures with the path to them as their name, `AP@0.5/walk`; lists and texts are left out."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float | type(None)):
            yield prefix + name, value


def _read_results(path: Path) -> dict:
    held = read_json(path, "results file")
    known = isinstance(held, dict) and isinstance(held.get("args"), dict) and isinstance(held.get("metrics"), dict)
    if not known or "link_cues" not in held["args"]:
        raise InputError(f"{path}: not a results file of eval_qmm.py; remove it, or measure again")
    return held


def motion_recall_by_cue(path: Path, level: float) -> dict[str, dict[str, float | None]]:
    """Recall by motion category at 3D IoU `level`, of the results of `eval_qmm.py` in `path` and, where they are
    there, the newest ones beside it with the other link cue and otherwise the same settings (a threshold of similarity
    has no counterpart): "feature" and "iou" -> "small", "medium", "large" -> recall."""
    mine = _read_results(path)
    same = {name: value for name, value in mine["args"].items() if name in _SAME}
    by_cue = {mine["args"]["link_cues"]: mine}
    for other in sorted(path.parent.glob("eval_qmm-*.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        held = _read_results(other)
        if all(held["args"].get(name) == value for name, value in same.items()):
            by_cue.setdefault(held["args"]["link_cues"], held)
    key = f"motion_recall@{level:g}"
    return {cue: by_cue[cue]["metrics"][key] for cue in sorted(by_cue) if key in by_cue[cue]["metrics"]}


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
