"""AVA's csv: `video,second,x1,y1,x2,y2,class,person`, one row for each box and action, corners as shares of the frame.

AVA 2.1 and 2.2, AVA-Kinetics, and own data in this format. A person is a `person_id` of a video, or one box where rows
have none. Each action of a person is a tube on key frames; a box without an evaluated action is part of a tube without
label. A second t is frame round((t - start) * rate).
"""

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.formats.ava_clips import CLIP, in_clips
from datasets.formats.common import MAX_EXACT, SAME_PERSON_IOU, AnnotationFile, RawTube, RawVideo
from datasets.formats.options import needed
from datasets.formats.sources import size_of, without_suffix
from utils.ava_files import MICRO, AvaRows, all_of_ava, joined, read_label_map, read_rows
from utils.box_ops import paired_iou
from utils.misc import InputError, tell
from utils.storage.files import read_text

SLACK = 0.1  # how far a corner may lie beyond the frame, as a share of it: beyond that, boxes are in pixels
NEAR = 0.021  # seconds: half a frame of 25 a second, farther from which a frame shows something else
ROUNDING = 1e-5  # of IoU: boxes become float32 pixels before they are compared again


def read(
    path: Path,
    *,
    label_map: str | dict | None = None,
    subsets: dict[str, str] | None = None,
    excluded: list[str] | None = None,
    included: str | None = None,
    other_classes: bool = False,
    time: str = "seconds",
    start: float = 900,
    rate: float | None = 30,
    loose_boxes: bool = False,
    person_per_label: bool = False,
    clips: bool = False,
    width: int | None = None,
    height: int | None = None,
    sizes: dict[str, list[int]] | None = None,
    videos: str | None = None,
) -> AnnotationFile:
    """Read a csv, or those of a folder that `subsets` names; the options are described in `datasets.formats.options`.

    Raises:
        InputError: names file and line of the first row at fault.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and not subsets:
        raise InputError(f"{path}: a folder; name its csv files with subsets: {{train: train.csv, val: val.csv}}")
    if label_map is None:
        raise needed(path, "classes are numbers", "label_map")
    if rate is None and time == "seconds":
        raise needed(path, "rows are of seconds", "rate")
    if clips and videos is None:
        raise needed(path, "rows are of clips", "videos")
    if clips and (excluded or included):
        raise InputError(f"{path}: clips count from their own beginning, so `excluded` and `included` go without them")
    if isinstance(label_map, str):
        classes = read_label_map(folder / label_map)
    else:
        classes = {int(number): str(name) for number, name in label_map.items()}
    if len(set(classes.values())) < len(classes):
        raise InputError(f"{path}: two classes of the label map have one name")
    files = {name: folder / file for name, file in subsets.items()} if subsets else {"": path}
    notes = all_of_ava(classes, path if isinstance(label_map, dict) else folder / label_map)
    left_out = [_named(read_rows(folder / name, widths=(2,)), notes) for name in excluded or []]
    listed = None if included is None else _seconds(folder / included)
    rate = 1.0 if time == "frames" else rate
    parts: list[AvaRows] = []
    for file in files.values():
        rows = _named(read_rows(file), notes)
        _check(rows, classes, other_classes, loose_boxes, notes)
        if loose_boxes:
            apart = _apart(rows, person_per_label)
            text = "person {last:g} is in two places in second {second}; such boxes are people by themselves ({lines})"
            notes += [rows.line(apart, text)] if apart.any() else []
        rows = in_clips(rows, videos, notes) if clips else rows
        if twice := sorted({name for part in parts for name in part.videos}.intersection(rows.videos)):
            raise InputError(f"{file}: video {twice[0]!r} is in another subset's file too")
        frames = frames_at(rows.time, start, rate)
        off = np.abs(rows.time / MICRO - start - frames / rate)
        if (off > NEAR).any():
            text = f"has no frame at {rate:g} a second; its boxes go to one up to {off.max():.2g} s away"
            notes.append(rows.line(off > NEAR, f"second {{second}} {text} ({{lines}}); set a higher rate"))
        rows.refuse(
            frames < 0,
            f"second {{second}} lies before the first frame, which is second {start:g}; set start to the second "
            "at which videos begin (0 for own videos and originals, 900 for AVA's videos cut from 15:00)",
        )
        parts.append(rows)

    ids = np.array(sorted(classes))

    def tubes_of(name: str, rows: AvaRows, frames: np.ndarray) -> tuple[tuple[int, int], list[RawTube]]:
        if not (size := size_of(name, sizes, width, height, videos)):
            raise needed(f"video {name!r}", "boxes are shares of the frame", "width", "height", "sizes")
        return size, _tubes(rows, frames, size, ids, person_per_label, loose_boxes)

    lazy = AvaVideos(parts, joined(left_out) if left_out else None, listed, start, rate, clips, tubes_of)
    names = [classes[number] for number in sorted(classes)]
    lists = {subset: [sorted(rows.videos)] for subset, rows in zip(files, parts, strict=True) if subset}
    sampled = time == "seconds"  # frames of the file are the video's own
    return AnnotationFile(path, lazy, names, lists, sampled, notes, classes)


def csv_options(file: AnnotationFile) -> dict:
    """`label_map`, `start` and `rate` of predictions in the csv of this annotation; nothing for other formats."""
    if not isinstance(file.videos, AvaVideos):
        return {}
    return {"label_map": file.label_ids, "start": file.videos.start, "rate": file.videos.rate}


def csv_writing(file: AnnotationFile, protocol: str = "") -> dict:
    """`csv_options`, and `key(name, frame)`, a frame's name of the video and second in such a csv; warns where
    `protocol` needs more seconds than are known."""
    if protocol == "ava-2019" and getattr(file.videos, "included", None) is None:
        text = "the project file names no seconds as included, so that annotated ones alone count, as by ava"
        tell(f"warning: --protocol ava-2019: {text}")
    options = csv_options(file)
    return {**options, "key": file.videos.key} if options else options


def _seconds(path: Path) -> np.ndarray:
    """Included seconds, one a line, in microseconds."""
    try:
        values = [float(line) for line in read_text(path).split()]
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error}; it holds one second a line)") from None
    return np.unique(np.rint(np.array(values) * MICRO).astype(np.int64))


def _named(rows: AvaRows, notes: list[str]) -> AvaRows:
    """The rows with video names without file extension."""
    short = [without_suffix(name) for name in rows.videos]
    if short == rows.videos:
        return rows
    odd = np.array([a != b for a, b in zip(short, rows.videos, strict=True)])[rows.video]
    text = "{video!r} ends with a file extension, which is no part of a name and left out ({lines}); the official "
    notes.append(rows.line(odd, text + "evaluation compares names"))
    names = list(dict.fromkeys(short))
    index = np.array([names.index(name) for name in short], np.int64)
    return rows._replace(videos=names, video=index[rows.video])


def _check(rows: AvaRows, classes: Mapping, other_classes: bool, loose_boxes: bool, notes: list[str]) -> None:
    """InputError at the first row that cannot be meant so."""
    has_box = rows.classes >= 0
    boxes = np.where(has_box[:, None], rows.boxes, 0.5)
    for i, corner in enumerate(("x1", "y1", "x2", "y2")):
        rows.refuse(
            (boxes[:, i] < -SLACK) | (boxes[:, i] > 1 + SLACK),
            f"{corner} {{{corner}}} is no share of the picture (0 to 1)",
        )
    rows.refuse((boxes[:, :2] > boxes[:, 2:]).any(1), "the box ({x1}, {y1}, {x2}, {y2}) is reversed")
    known = np.isin(rows.classes, list(classes))
    ids = f"ids {min(classes)} to {max(classes)}"
    if not other_classes:
        rows.refuse(has_box & ~known, "class {class_id} is not in the label map")
    elif has_box.any() and not known.any():
        raise InputError(f"{rows.path}: not one of its classes is in the label map ({ids})")
    loose = has_box & np.isnan(rows.last)
    if not loose_boxes:
        rows.refuse(loose, "no person id (7 columns): tubes cannot be made")
    elif loose.any():
        notes.append(rows.line(loose, "no person id (7 columns): each box is a person of its own ({lines})"))
    last = np.where(np.isnan(rows.last), -1, rows.last)
    rows.refuse(last != np.floor(last), "person id {last} is not a whole number; a score is not part of ground truth")
    rows.refuse(last >= MAX_EXACT, "person id {last:.0f} is not below 2^53, so ids may be mixed up; use smaller ones")


def _apart(rows: AvaRows, person_per_label: bool) -> np.ndarray:
    """Rows whose person has boxes in two places in that second, bool (n,): an id that does not say who is who there."""
    label = rows.classes if person_per_label else np.zeros(len(rows.classes), np.int64)
    keys = (rows.video, rows.time, rows.last, label)
    order = np.lexsort(keys)
    same = np.logical_and.reduce([np.diff(key[order]) == 0 for key in keys]) & (rows.last[order][1:] >= 0)
    ends = np.append(np.flatnonzero(~same) + 1, len(order))
    other_box = np.flatnonzero(same & (np.diff(rows.boxes[order], axis=0) != 0).any(1))
    apart = np.zeros(len(order), bool)
    for group in np.unique(np.searchsorted(ends, other_box, "right")).tolist():
        members = order[ends[group - 1] if group else 0 : ends[group]]
        a, b = (rows.boxes[members[i]] for i in np.triu_indices(len(members), 1))
        if (paired_iou(a, b) < SAME_PERSON_IOU + ROUNDING).any():
            apart[members] = True
    return apart


def frames_at(time: np.ndarray, start: float, rate: float) -> np.ndarray:
    """The frames of times in microseconds, int64 (n,); frame 0 is at second `start`, with `rate` frames a second."""
    return np.rint((time / MICRO - start) * rate).astype(np.int64)


def _tubes(
    rows: AvaRows, frames: np.ndarray, size: tuple[int, int], classes: np.ndarray, per_label: bool, loose_boxes: bool
) -> list[RawTube]:
    """A tube for each action of each person of a video, and one of the boxes of a person without any; `rows` are the n
    with a box, `frames` int64 (n,) theirs, `classes` the evaluated ids, rising."""
    label = np.searchsorted(classes, rows.classes).clip(max=len(classes) - 1)
    label = np.where(classes[label] == rows.classes, label, -1)
    person = _persons(rows, per_label, loose_boxes)
    _, moment = np.unique(np.stack([person, frames]), axis=1, return_inverse=True)
    moment = moment.reshape(-1)
    keep = (label >= 0) | ~np.isin(moment, moment[label >= 0])  # without label only where a person does nothing else
    table = np.column_stack([person, label, frames, rows.boxes * np.tile(size, 2)])[keep]
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    table = table[(np.diff(table, axis=0, prepend=np.nan) != 0).any(1)]  # a row may be there twice
    begins = np.flatnonzero((np.diff(table[:, :2], axis=0) != 0).any(1)) + 1
    tubes = []
    for own in np.split(table, begins) if len(table) else ():
        owner, action = own[0, :2].astype(int).tolist()
        tubes.append(RawTube(own[:, 2].astype(np.int64), own[:, 3:], None if action < 0 else action, owner))
    return tubes


def _persons(rows: AvaRows, per_label: bool, loose_boxes: bool) -> np.ndarray:
    """Each row's person, int64 (n,): the given ids, and further ones for boxes without one or whose one is in two
    places."""
    given = np.where(np.isnan(rows.last), -1, rows.last).astype(np.int64)
    person = given.copy()
    if per_label:
        person = np.unique(np.stack([rows.classes, given], 1), axis=0, return_inverse=True)[1].reshape(-1)
    loose = (given < 0) | (loose_boxes and _apart(rows, per_label))
    keys = np.column_stack([rows.time, rows.boxes])[loose]
    person[loose] = person.max(initial=-1) + 1 + np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    return person


class AvaVideos(UserDict):
    """The videos of a csv by name, each made when it is asked for: its size may have to be read from the video."""

    def __init__(
        self,
        parts: Sequence[AvaRows],
        excluded: AvaRows | None,
        included: np.ndarray | None,
        start: float,
        rate: float,
        clips: bool,
        tubes_of: Callable[[str, AvaRows, np.ndarray], tuple[tuple[int, int], list[RawTube]]],
    ) -> None:
        super().__init__()  # `data`: each video's file, and the indices of its rows there
        self.start, self.rate, self._clips, self._tubes_of = start, rate, clips, tubes_of
        self.included, self._parts, self._excluded = included, parts, excluded
        for rows in parts:
            order = np.argsort(rows.video, kind="stable")
            ends = np.searchsorted(rows.video[order], np.arange(1, len(rows.videos)))
            for name, of_video in zip(rows.videos, np.split(order, ends), strict=True):
                self.data[name] = rows, of_video
        self._seconds: dict[str, dict[int, float]] = {}

    def __getitem__(self, name: str) -> RawVideo:
        file, of_video = self.data[name]
        rows = file.where(of_video)
        gone = self._excluded.of_videos([name]).time if self._excluded else np.zeros(0, np.int64)
        rows = rows.where(~np.isin(rows.time, gone))
        seconds = np.unique(rows.time) if self.included is None else np.union1d(self.included, rows.time)
        key_frames = self._frames(np.setdiff1d(seconds, gone))
        used = self._frames(np.unique(rows.time))
        if len(twice := used[1:][np.diff(used) == 0]):
            text = f"two of its seconds are frame {twice[0]} at {self.rate:g} a second"
            raise InputError(f"video {name!r}: {text}; a higher rate keeps them apart")
        has_box, frames = rows.classes >= 0, self._frames(rows.time)
        size, tubes = self._tubes_of(name, rows.where(has_box), frames[has_box])
        empty = np.setdiff1d(frames[~has_box], frames[has_box])
        return RawVideo(*size, 0, tubes, np.unique(key_frames[key_frames >= 0]), empty)

    def _frames(self, time: np.ndarray) -> np.ndarray:
        return frames_at(time, self.start, self.rate)

    def rows(self, names: Sequence[str]) -> tuple[AvaRows, AvaRows | None]:
        """The rows of videos as they stand in the files, and those of excluded seconds, None without such files.

        Raises:
            InputError: a video has no rows.
        """
        missing = next((name for name in names if name not in self.data), None)
        if missing is not None:
            raise InputError(f"{self._parts[0].path}: the annotation has no video {missing!r}")
        parts = [part.of_videos(names) for part in self._parts if not set(names).isdisjoint(part.videos)]
        return joined(parts), self._excluded.of_videos(names) if self._excluded else None

    def place(self, name: str, frame: int) -> str:
        """Where the file has a frame of a video, for messages: ", second 905 (ava.csv, line 33)"; empty if nowhere."""
        file, of_video = self.data[name]
        rows = of_video[self._frames(file.time[of_video]) == frame]
        if not len(rows):
            return ""
        return f", second {file.time[rows[0]] / MICRO:g} ({file.path.name}, line {file.lines[rows[0]]})"

    def key(self, name: str, frame: int) -> tuple[str, float]:
        """The name and second of a frame in a csv; a key frame has its own second, which may lie between two frames."""
        if name not in self._seconds:
            file, of_video = self.data[name]
            times = np.unique(file.time[of_video])
            self._seconds[name] = dict(zip(self._frames(times).tolist(), (times / MICRO).tolist(), strict=True))
        source, begin = CLIP.fullmatch(name).group(1, 2) if self._clips else (name, 0)
        second = self._seconds[name].get(frame, self.start + frame / self.rate)
        return source, round(int(begin) + second, 6)
