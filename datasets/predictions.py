"""Predictions in any format as the same checked tubes, and as the project's JSON."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.annotations import TAIL
from datasets.formats import pred_json, pred_pickles, pred_text
from datasets.formats.predicted import OPTIONS, RawPredictions, TubeRows
from utils.box_ops import Tube, Tubes
from utils.misc import InputError, counted, did_you_mean, tell
from utils.storage.files import parsing, shorten

MAX_BYTES = 4 * 2**30  # of one file, which is read whole
TUBER_SHORT_SIDE = 256  # pixels; of its published settings
STRANGE = 0.05  # share of boxes that are reversed, or wholly outside of their frames, above which a file is refused
SHOWN = 10  # names in a warning


def _one_of(*values: str) -> Callable[[str], str]:
    return lambda text: values[values.index(text)]


def _size(text: str) -> list[int]:
    width, height = map(int, text.split("x"))
    if min(width, height) < 1:
        raise ValueError(text)
    return [width, height]


USER_OPTIONS: dict[str, Callable[[str], object]] = {
    "first_label": int, "first_frame": int, "start": float, "rate": float, "short_side": float, "label_type": str,
    "boxes": _one_of("pixels", "shares"), "other_videos": _one_of("ignore"), "late_frames": _one_of("ignore"),
    "n_frames": _one_of("ignore"), "multi_label": _one_of("yes"), "picture": _size,
}  # fmt: skip
"""What `--predictions_options` may say, and how each value is read; ValueError where it is none."""
SAY = "say --predictions_options"


class Format(NamedTuple):
    """A format of predictions: its reader, and its defaults of the options (`OPTIONS`)."""

    read: Callable[[TubeRows], None]
    defaults: dict


FORMATS = {
    "json": Format(pred_json.read, {}),
    "act_tubes": Format(pred_pickles.read_act_tubes, {"first_frame": 1}),
    "multisports": Format(pred_pickles.read_multisports, {"first_frame": 1}),
    "frame_detections": Format(pred_pickles.read_frame_detections, {"first_frame": 1}),
    "retinanet": Format(pred_pickles.read_retinanet, {"first_frame": 1, "picture": [682, 512]}),
    "yowo": Format(pred_text.read_yowo, {"first_frame": 1, "first_label": 1}),
    "ava_csv": Format(pred_text.read_ava_csv, {"first_label": 1, "boxes": "shares", "start": 900, "rate": 30}),
    "tuber": Format(pred_text.read_tuber, {"short_side": None}),
    "mot": Format(pred_text.read_mot, {"first_frame": 1, "first_label": 1}),
}
"""The names that `--predictions_format` may have; `datasets.convert` calls them `pred_<name>`."""


def read_predictions(path: Path, format: str, options: Mapping) -> RawPredictions:
    """Read a file of predictions, or the folder that the format (of `FORMATS`) is, unchecked against a data set.

    `options` say what the file does not (`OPTIONS`).

    Raises:
        InputError: names file, place and fault, and the option that would be right where one can be guessed.
    """
    _check_exists(path)
    if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
        limit = MAX_BYTES >> 30
        raise InputError(f"{path}: {size / 2**30:.0f} GiB in one file; part it into several of up to {limit} GiB")
    if unknown := options.keys() - OPTIONS.keys():
        key = min(map(str, unknown))
        raise InputError(f"option {key}: no format of predictions has it{did_you_mean(key, OPTIONS)}")
    given = {key: value for key, value in options.items() if value is not None}
    try:
        with parsing(path, f"predictions of the format {format}"):
            tubes = TubeRows(path, FORMATS[format].defaults | given)
            FORMATS[format].read(tubes)
            return tubes.done()
    finally:
        pred_pickles.content_of.cache_clear()


def recognise(path: Path) -> str:
    """The format of a file or folder, by names of files and their content; InputError where that is not safe."""
    _check_exists(path)
    kind = None
    if any(path.rglob("*_tubes.pkl")):
        kind = "act_tubes"
    elif path.suffix == ".json" or any(path.rglob("*.json")):
        kind = "json"
    elif path.is_dir():
        texts = (file for file in sorted(path.rglob("*.txt"))[:1000] if file.stat().st_size)
        kind = _kind_of_text(first) if (first := next(texts, None)) else None
    elif path.suffix in (".pkl", ".pickle", ".npy"):
        kind = pred_pickles.kind_of(path)
    elif path.suffix in (".csv", ".txt"):
        kind = _kind_of_text(path)
    if kind is None:
        raise InputError(f"{path}: its format is not recognised; say it with --predictions_format {'|'.join(FORMATS)}")
    return kind


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder of predictions")


def _kind_of_text(path: Path) -> str | None:
    """The format of a text by its first line."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(10000)
    if "[" in line:
        return "tuber"
    columns = line.split(",")
    if len(columns) > 1:
        return "mot" if columns[0].strip().isdecimal() and len(columns) >= 8 else "ava_csv"
    return "yowo" if len(line.split()) in (5, 6) else None


def parse_options(texts: Iterable[str]) -> dict:
    """`--predictions_options KEY=VALUE ...` as a mapping; InputError for what is not in `USER_OPTIONS`."""
    options: dict = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in USER_OPTIONS:
            near = did_you_mean(key, USER_OPTIONS)
            raise InputError(f"--predictions_options {text}: no such option; there are {', '.join(USER_OPTIONS)}{near}")
        try:
            options[key] = USER_OPTIONS[key](value)
        except ValueError:
            raise InputError(f"--predictions_options {text}: not a value of {key}: {OPTIONS[key]}") from None
    return options


def data_set_options(format: str, labels: Sequence[str], sizes: Mapping[str, tuple], given: Mapping) -> dict:
    """The options that a data set answers: its labels in their order, its videos and their sizes; `given` ones win."""
    options = {"labels": labels, "videos": list(sizes), "sizes": {name: size[:2] for name, size in sizes.items()}}
    return options | ({"short_side": TUBER_SHORT_SIDE} if format == "tuber" else {}) | dict(given)


def fit_to_data_set(
    raw: RawPredictions,
    path: str | Path,
    subset: str,
    sizes: Mapping[str, tuple[int, int, int]],
    options: Mapping,
    left_out: Container[str] = (),
) -> RawPredictions:
    """Compare predictions with the videos of a subset; what the options say to leave out is left out.

    Args:
        sizes: width, height and number of frames of each of the subset's videos, 0 where unknown.
        left_out: further videos of the subset, whose predictions are left out.

    Raises:
        InputError: videos, frames or boxes do not fit; one line with what was found and what was expected.
    """
    known = np.array([name in sizes for name in raw.names], bool)
    if not known.any():
        first = raw.names[0] if raw.names else None
        tail = next((name for name in sizes if first and name.endswith(f"/{first}")), None)
        near = f"; did you mean {tail}?" if tail else did_you_mean(first or "", sizes)
        content = f"names {counted(len(raw.names), 'video')}, the first {first!r}" if raw.names else "names no video"
        text = f"{content}, none of subset {subset!r}, whose first is {next(iter(sizes), None)!r}{near}"
        raise InputError(f"{path}: {text}")
    others = [name for name in raw.names if name not in sizes and name not in left_out]
    if others and options.get("other_videos") != "ignore":
        other = others[0]
        text = f"is not in subset {subset!r}, nor are {len(others) - 1} more{did_you_mean(other, sizes)}"
        raise InputError(f"{path}: video {other!r} {text}; to leave such out, {SAY} other_videos=ignore")
    _compare_shapes(raw.shapes, path, sizes, options)
    video = raw.video[raw.tube]
    size = np.array([sizes.get(name, (0, 0, 0)) for name in raw.names]).reshape(-1, 3)[video]
    width, height, n_frames = size.T
    keep = known[video]
    late = keep & (n_frames > 0) & (raw.frames >= n_frames)
    if late.any() and options.get("late_frames") != "ignore":
        row, first = int(late.argmax()), int(options.get("first_frame", 0))
        near = f"if they count from {first + 1}, {SAY} first_frame={first + 1}; "
        text = f"frame {raw.frames[row] + first}, but it has {n_frames[row]} frames, from {first}; "
        text += near * bool((raw.frames[keep] > 0).all()) + f"to leave such boxes out, {SAY} late_frames=ignore"
        raise InputError(f"{path}: video {raw.names[video[row]]!r}: {text}")
    keep &= ~late
    sized = keep & (width > 2) & (height > 2)
    boxes = raw.boxes[sized | (keep & (width == 0))]
    if len(boxes) and (largest := np.abs(boxes).max()) <= 1.5:
        text = f"no coordinate is above {largest:.3g}, but pixels are expected"
        raise InputError(f"{path}: {text}; if shares of the frame, {SAY} boxes=shares")
    is_reversed = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if len(boxes) and is_reversed.mean() > STRANGE:
        first = ", ".join(f"{x:g}" for x in boxes[is_reversed.argmax()])
        text = f"{is_reversed.sum()} of {len(boxes)} boxes are reversed, the first {first}: not x1, y1, x2, y2"
        raise InputError(f"{path}: {text}")
    boxes, size = raw.boxes[sized], size[sized, :2]
    outside = (boxes[:, :2] >= size).any(1) | (boxes[:, 2:] <= 0).any(1)
    if len(boxes) and outside.mean() > STRANGE:
        reach, frames = ("{:.0f} x {:.0f}".format(*corners.max(0)) for corners in (boxes[:, 2:], size))
        text = f"{outside.sum()} of {len(boxes)} boxes lie outside of their frames: they reach to {reach}, the frames "
        text += f"to {frames}; if they are pixels of another picture, {SAY} picture=WIDTHxHEIGHT"
        raise InputError(f"{path}: {text}")
    if keep.all():
        return raw
    tubes, tube = np.unique(raw.tube[keep], return_inverse=True)  # those that keep a box
    of_tubes = (column[tubes] for column in (raw.video, raw.label, raw.person, raw.score))
    of_boxes = (column[keep] for column in (raw.frames, raw.boxes, raw.scores))
    return RawPredictions(raw.names, raw.labels, *of_tubes, tube, *of_boxes, raw.shapes)


def _compare_shapes(
    shapes: Mapping[str, tuple[int, int, int]], path: str | Path, sizes: Mapping, options: Mapping
) -> None:
    """InputError where a file's video has not the frames that were annotated; arguments as of `fit_to_data_set`."""
    for name in (name for name in shapes if name in sizes):
        (*size, n_frames), (width, height, annotated) = shapes[name], sizes[name]
        where = f"{path}: video {name!r}"
        if all(size) and width > 2 and height > 2 and tuple(size) != (width, height):
            text = f"{size[0]} x {size[1]} pixels, but annotated as {width} x {height}; predict the annotated video"
            raise InputError(f"{where}: {text}")
        ignored = options.get("n_frames") == "ignore"
        if n_frames and annotated and abs(n_frames - annotated) > TAIL and not ignored:
            text = f"{n_frames} frames, but {annotated} are annotated; predict it at the annotation's frame rate, or if"
            raise InputError(f"{where}: {text} these are the same frames, {SAY} n_frames=ignore")


def as_tubes(raw: RawPredictions, names: Iterable[str]) -> dict[str, list[Tube]]:
    """The tubes, with `frame_scores`, of each of the videos `names`, in the file's order; none of one that it lacks."""
    names = dict.fromkeys(names)
    tubes: dict[str, list[Tube]] = {name: [] for name in names}
    bounds = np.searchsorted(raw.tube, np.arange(len(raw.video) + 1)).tolist()
    of_tube = (column.tolist() for column in (raw.video, raw.label, raw.score, raw.person))
    boxes = raw.boxes.astype(np.float32)
    for i, (video, label, score, person) in enumerate(zip(*of_tube, strict=True)):
        rows = slice(bounds[i], bounds[i + 1])
        if (name := raw.names[video]) in names:
            tubes[name].append(Tube(raw.frames[rows], boxes[rows], label, score, person, raw.scores[rows]))
    return tubes


def tell_missing(known: Container[str], path: str | Path, names: Sequence[str]) -> list[str]:
    """The videos of the data set that are not among the file's (`known`), listed on stderr: they count as without
    detections."""
    missing = [name for name in names if name not in known]
    if missing:
        shown = ", ".join(missing[:SHOWN]) + f" and {len(missing) - SHOWN} more" * (len(missing) > SHOWN)
        text = f"{counted(len(missing), 'video')} of {len(names)} not in it, taken as without detections: {shown}"
        tell(f"warning: {path}: {text}")
    return missing


def predictions_json(labels: Sequence[str], tubes: Tubes, sizes: Mapping[str, tuple[int, int, int]]) -> dict:
    """Predictions as the JSON that `--predictions` reads, to the last digit: see `datasets.formats.pred_json`. `sizes`:
    width, height and number of frames of videos, 0 where unknown."""
    videos = {}
    for name, of_video in tubes.items():
        size = sizes.get(name, (0, 0, 0))
        videos[name] = {
            **(dict(zip(("width", "height", "n_frames"), size, strict=True)) if any(size) else {}),
            "tubes": [
                {
                    "label": labels[tube.label],
                    "score": float(tube.score),
                    **({"person_id": tube.person_id} if tube.person_id >= 0 else {}),
                    "frames": tube.frames.tolist(),
                    "boxes": shorten(tube.boxes).tolist(),
                    "scores": tube.frame_scores.tolist(),
                }
                for tube in of_video
            ],
        }
    return {"labels": list(labels), "videos": videos}


def convert(format: str, path: Path, options: Mapping) -> dict:
    """Predictions in a format as the project's JSON, without a data set; arguments and errors as `read_predictions`."""
    raw = read_predictions(path, format, options)
    return predictions_json(raw.labels, as_tubes(raw, raw.names), raw.shapes)
