"""Predictions as text: YOWO, AVA's csv, TubeR, MOT. Frames and classes count from 1, but for AVA's seconds."""

import re
from collections.abc import Mapping

import numpy as np

from datasets.formats.common import corners
from datasets.formats.predicted import TubeRows
from datasets.formats.sources import lines_of
from utils.ava_files import MICRO, read_rows


def read_yowo(tubes: TubeRows) -> None:
    """YOWO and YOWOv2: a folder with `<video, / as _>_<frame>.txt` for each frame, lines of class, score and box."""
    known = _with_underscores(tubes)
    files = sorted(tubes.path.glob("*.txt")) if tubes.path.is_dir() else []
    if not files:
        raise tubes.fault("", "not a folder with <class>_<video>_<frame>.txt")
    for file in files:
        video, _, frame = file.stem.rpartition("_")
        if video not in known or not frame.isdecimal():
            raise tubes.fault(file.name, "no video of the data set has this name")
        numbers, rows = [], []
        for n, values in lines_of(file, None):
            if len(values) != 6:
                kind = "this is a label, not a detection" if len(values) == 5 else "not a detection"
                raise tubes.fault(f"{file.name}, line {n}", f"{len(values)} columns: {kind} (class score x1 y1 x2 y2)")
            numbers.append(n)
            rows.append(tubes.numbers(f"{file.name}, line {n}", values))
        labels, scores, *box = np.array(rows).reshape(-1, 6).T
        boxes = np.column_stack([np.full(len(rows), int(frame)), *box, scores])
        tubes.add_boxes(f"{file.name}, line", numbers, [tubes.video(known[video])] * len(rows), labels, boxes)


def _with_underscores(tubes: TubeRows) -> dict[str, str]:
    """The data set's video names by what files call them; InputError where two videos are called the same."""
    names = list(tubes.need("videos"))
    known = {name.replace("/", "_"): name for name in names}
    for name in names:
        if known[name.replace("/", "_")] != name:
            raise tubes.fault("", f"{name} and {known[name.replace('/', '_')]} have one name here, with _ for /")
    return known


def read_ava_csv(tubes: TubeRows) -> None:
    """AVA's csv: video, second, x1, y1, x2, y2 as shares of the frame, class from 1, score. Frame 0 is at `start`."""
    rows = read_rows(tubes.path, widths=(8,))
    indices = np.array([tubes.video(name) for name in rows.videos], np.int64)
    frames = ((rows.time / MICRO - float(tubes.options["start"])) * float(tubes.options["rate"])).round()
    boxes = np.column_stack([frames, rows.boxes, rows.last])
    tubes.add_boxes("line", rows.lines, indices[rows.video], rows.classes, boxes)


def read_tuber(tubes: TubeRows) -> None:
    """TubeR's `<rank>.txt`, or the folder of them: `<key> [x1, y1, x2, y2, a score for each class, ...]`.

    The key is `<video, / as _>-<frame from 1>`; the best class counts unless it is the last, "no action". With
    `multi_label` (AVA: `<video>_<second>`) every class counts. Boxes are pixels of the picture as the network saw it,
    whose shorter side is `short_side`; `sizes` are then factors, or the videos' sizes.
    """
    n = len(tubes.label_names)
    videos = tubes.need("videos")
    names = _with_underscores(tubes)
    for file in sorted(tubes.path.glob("*.txt")) if tubes.path.is_dir() else [tubes.path]:
        for line, (text,) in lines_of(file, "\0"):
            place = f"{file.name}, line {line}"
            match = re.fullmatch(r"(\S+) \[(.*)\]", text)
            if not match:
                raise tubes.fault(place, "not '<video>-<frame> [numbers]'")
            values = np.array(tubes.numbers(place, match[2].split(",")))
            if len(values) < 4 + n or not (tubes.options.get("multi_label") or len(values) == 5 + n):
                raise tubes.fault(place, f"{len(values)} numbers, not a box, {n} scores and that of no action")
            video, _, frame = match[1].rpartition("-")
            if isinstance(videos, Mapping) and match[1] in videos:
                video, frame = videos[match[1]]
            elif not isinstance(videos, Mapping) and video in names and frame.isdecimal():
                video, frame = names[video], int(frame) - 1
            else:
                raise tubes.fault(place, f"no video of the data set has the picture {match[1]!r}")
            best = int(values[4 : 5 + n].argmax())
            for label in range(n) if tubes.options.get("multi_label") else [best] * (best < n):
                rows = np.array([[frame, *values[:4], values[4 + label]]])
                tubes.add_boxes(f"{file.name}, line", [line], [tubes.video(video)], np.array([label]), rows)


def read_mot(tubes: TubeRows) -> None:
    """MOT: frame, track, left, top, width, height, score, class, ...; a file a video, or a folder of `<video>.txt`.

    A tube is a track's rows of one class; its score is their mean. A negative track is none: nobody has linked the box.
    """
    for file in sorted(tubes.path.rglob("*.txt")) if tubes.path.is_dir() else [tubes.path]:
        name = file.relative_to(tubes.path).with_suffix("").as_posix() if tubes.path.is_dir() else file.stem
        video, rows = name if tubes.path.is_dir() else tubes.options.get("video") or name, []
        tubes.video(video)
        for n, values in lines_of(file, ","):
            if not 8 <= len(values) <= 10:
                raise tubes.fault(f"{file.name}, line {n}", f"{len(values)} columns, not 8 to 10: which action is it?")
            rows.append(tubes.numbers(f"{file.name}, line {n}", values)[:8])
        table = np.array(rows).reshape(-1, 8)
        loose = table[:, 1] < 0
        table[loose, 1] = -1 - np.arange(loose.sum())
        table = table[np.lexsort((table[:, 0], table[:, 7], table[:, 1]))]
        begins = np.flatnonzero((table[1:, [1, 7]] != table[:-1, [1, 7]]).any(1)) + 1
        for own in np.split(table, begins) if len(table) else ():
            track, label = own[0, [1, 7]]
            boxes = np.column_stack([own[:, :1], corners(own[:, 2:6]), own[:, 6]])
            tubes.add(f"{file.name}, track {track:g}", video, label, boxes)
