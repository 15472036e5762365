"""AVA's csv: `video,second,x1,y1,x2,y2,class,person`, one row for each box and action, corners as shares of the frame.

AVA 2.1 and 2.2, AVA-Kinetics, and own data in this format. A person is a `person_id` of a video, or one box where rows
have none. Each action of a person is a tube on key frames; a box without an evaluated action is part of a tube without
label. A second t is frame round((t - start) * rate).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.formats.common import AnnotationFile, RawTube, RawVideo, video_path
from datasets.formats.options import needed
from utils.ava_files import MICRO, AvaRows, joined, read_label_map, read_rows
from utils.misc import InputError, counted

SLACK = 0.1  # how far a corner may lie beyond the frame, as a share of it: beyond that, boxes are in pixels
SUFFIXES = (".mkv", ".mp4", ".webm", ".avi", ".mov", ".m4v")


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
    classes = read_label_map(folder / label_map) if isinstance(label_map, str) else _mapping(path, label_map)
    if len(set(classes.values())) < len(classes):
        raise InputError(f"{path}: two classes of the label map have one name")
    files = {name: folder / file for name, file in subsets.items()} if subsets else {"": path}
    left_out = [read_rows(folder / name, widths=(2,)) for name in excluded or []]
    listed = None if included is None else _seconds(folder / included)
    notes: list[str] = []
    rows_of, lists = {}, {}
    for subset, file in files.items():
        rows = _named(read_rows(file), notes)
        _check(rows, classes, other_classes, loose_boxes, notes)
        lists[subset] = sorted(rows.videos)
        for name in lists[subset]:
            if name in rows_of:
                raise InputError(f"{file}: video {name!r} is in another subset's file too")
            rows_of[name] = rows
    if rate is None and time == "seconds":
        raise needed(path, "rows are of seconds", "rate")
    clock = Clock(start, 1.0 if time == "frames" else rate)
    _check_start(files.values(), rows_of, clock)
    size_of = _Sizes(path, (width, height) if width and height else None, sizes or {}, videos)
    people = _People(classes, person_per_label)
    lazy = AvaVideos(rows_of, left_out, listed, clock, size_of, people)
    names = [classes[number] for number in sorted(classes)]
    lists = {subset: [videos] for subset, videos in lists.items() if subset}
    sampled = time == "seconds"  # frames of the file are the video's own
    return AnnotationFile(path, lazy, names, lists, sampled, notes, classes)


def csv_options(file: AnnotationFile) -> dict:
    """`label_map`, `start` and `rate` of predictions in the csv of this annotation; nothing for other formats."""
    if not isinstance(file.videos, AvaVideos):
        return {}
    clock = file.videos.clock
    return {"label_map": file.label_ids, "start": clock.start, "rate": clock.rate}


def _mapping(path: Path, label_map: Mapping) -> dict[int, str]:
    try:
        classes = {int(number): str(name) for number, name in label_map.items()}
    except ValueError:
        raise InputError(f"{path}: label_map: its keys are not class ids") from None
    if not classes:
        raise InputError(f"{path}: label_map: no class in it")
    return classes


def _seconds(path: Path) -> np.ndarray:
    """Included seconds, one a line, in microseconds."""
    try:
        values = [float(line) for line in path.read_text(encoding="utf-8-sig").split()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}; it holds one second a line"
        raise InputError(f"{path}: cannot be read ({reason})") from None
    return np.unique(np.rint(np.array(values) * MICRO).astype(np.int64))


def _named(rows: AvaRows, notes: list[str]) -> AvaRows:
    """The rows with video names without file extension."""
    short = [name.removesuffix(next((s for s in SUFFIXES if name.lower().endswith(s)), "")) for name in rows.videos]
    if short == rows.videos:
        return rows
    odd = np.array([a != b for a, b in zip(short, rows.videos, strict=True)])[rows.video]
    first = int(odd.argmax())
    notes.append(
        f"{rows.path}, line {rows.lines[first]}: {rows.videos[rows.video[first]]!r} ends with a file extension, which "
        f"is no part of a name and left out ({counted(int(odd.sum()), 'line')}); the official evaluation compares names"
    )
    names = list(dict.fromkeys(short))
    place = np.array([names.index(name) for name in short], np.int64)
    return rows._replace(videos=names, video=place[rows.video])


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
        first = rows.lines[int(loose.argmax())]
        text = f"no person id (7 columns): each box is a person of its own ({counted(int(loose.sum()), 'line')})"
        notes.append(f"{rows.path}, line {first}: {text}")
    last = np.where(np.isnan(rows.last), -1, rows.last)
    rows.refuse(last != np.floor(last), "person id {last} is not a whole number; a score is not part of ground truth")


def _check_start(files: Sequence[Path], rows_of: Mapping[str, AvaRows], clock: "Clock") -> None:
    """InputError where a row lies before the first frame."""
    for rows in {id(rows): rows for rows in rows_of.values()}.values():
        rows.refuse(
            clock.frames(rows.time) < 0,
            f"second {{second}} lies before the first frame, which is second {clock.start:g}; set start to the second "
            "at which videos begin (0 for own videos and originals, 900 for AVA's videos cut from 15:00)",
        )


@dataclass(frozen=True)
class Clock:
    """`start`: the second of frame 0; `rate`: frames a second."""

    start: float
    rate: float

    def frames(self, time: np.ndarray) -> np.ndarray:
        """The frames of times in microseconds, int64 (n,)."""
        return np.rint((time / MICRO - self.start) * self.rate).astype(np.int64)


@dataclass(frozen=True)
class _Sizes:
    """Where the size of a video's frames comes from: an option, or else the video itself."""

    path: Path
    of_all: tuple[int, int] | None
    of_each: Mapping[str, Sequence[int]]
    videos: str | None

    def __call__(self, name: str) -> tuple[int, int]:
        if name in self.of_each:
            width, height = self.of_each[name]
            return width, height
        if self.of_all:
            return self.of_all
        if self.videos is None:
            raise needed(self.path, "boxes are shares of the frame", "width", "height", "sizes")
        from datasets.dataset import VideoFrames

        return VideoFrames(video_path(self.videos, name)).size


class _People:
    """Makes tubes of a video's rows."""

    def __init__(self, classes: Mapping[int, str], person_per_label: bool) -> None:
        self.classes = np.array(sorted(classes), np.int64)
        self.person_per_label = person_per_label

    def tubes(self, rows: AvaRows, frames: np.ndarray, size: tuple[int, int]) -> list[RawTube]:
        """A tube for each action of each person, and one of the boxes of a person without any."""
        boxes = rows.boxes * np.array([*size, *size], np.float64)
        label = np.searchsorted(self.classes, rows.classes).clip(max=len(self.classes) - 1)
        label = np.where(self.classes[label] == rows.classes, label, -1)
        person = self._persons(rows)
        order = np.lexsort((frames, label, person))
        person, label, frames, boxes = person[order], label[order], frames[order], boxes[order]
        same_person = np.append(False, np.diff(person) == 0)
        same_tube = same_person & np.append(False, np.diff(label) == 0)
        twice = same_tube & np.append(False, (np.diff(frames) == 0) & (np.diff(boxes, axis=0) == 0).all(1))
        acting = {(p, f) for p, f, known in zip(person.tolist(), frames.tolist(), label >= 0, strict=True) if known}
        idle = np.array([(p, f) in acting for p, f in zip(person.tolist(), frames.tolist(), strict=True)], bool)
        keep = ~twice & ((label >= 0) | ~idle)  # a box without label only where its person does nothing else
        begins = np.flatnonzero(~same_tube[1:]) + 1
        tubes = []
        for at in np.split(np.arange(len(frames)), begins):
            at = at[keep[at]]
            if len(at):
                what = None if label[at[0]] < 0 else int(label[at[0]])
                tubes.append(RawTube(frames[at], boxes[at], what, int(person[at[0]])))
        return tubes

    def _persons(self, rows: AvaRows) -> np.ndarray:
        """Each row's person, int64 (n,): the given ids, and further ones for boxes without."""
        given = np.where(np.isnan(rows.last), -1, rows.last).astype(np.int64)
        person = given.copy()
        if self.person_per_label:
            keys = np.stack([rows.classes, given], 1)
            person = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        loose = given < 0
        if loose.any():
            keys = np.column_stack([rows.time[loose], rows.boxes[loose]])
            person[loose] = person.max(initial=-1) + 1 + np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        return person


class AvaVideos(Mapping):
    """The videos of a csv by name, each made when it is asked for: its size may have to be read from the video."""

    def __init__(
        self,
        rows_of: Mapping[str, AvaRows],
        excluded: Sequence[AvaRows],
        included: np.ndarray | None,
        clock: Clock,
        size_of: _Sizes,
        people: _People,
    ) -> None:
        self.clock, self._size_of, self._people = clock, size_of, people
        self._included, self._excluded = included, excluded
        self._rows: dict[str, tuple[AvaRows, np.ndarray]] = {}
        for rows in {id(rows): rows for rows in rows_of.values()}.values():
            order = np.argsort(rows.video, kind="stable")
            ends = np.searchsorted(rows.video[order], np.arange(1, len(rows.videos)))
            for name, of_video in zip(rows.videos, np.split(order, ends), strict=True):
                self._rows[name] = rows, of_video
        self._made: dict[str, RawVideo] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> RawVideo:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def rows(self, names: Iterable[str]) -> tuple[AvaRows, AvaRows | None]:
        """The rows of videos as they stand in the files, and those of excluded seconds, None without such files."""
        files = {id(self._rows[name][0]): self._rows[name][0] for name in names if name in self._rows}
        excluded = joined(self._excluded).of_videos(names) if self._excluded else None
        return joined([file.of_videos(names) for file in files.values()]), excluded

    def place(self, name: str, frame: int) -> str:
        """Where the file has a frame of a video, for messages: ", second 905 (ava.csv, line 33)"; empty if nowhere."""
        file, of_video = self._rows[name]
        rows = of_video[self.clock.frames(file.time[of_video]) == frame]
        if not len(rows):
            return ""
        return f", second {file.time[rows[0]] / MICRO:g} ({file.path.name}, line {file.lines[rows[0]]})"

    def _make(self, name: str) -> RawVideo:
        file, of_video = self._rows[name]
        rows = file.where(of_video)
        gone = [r.time[r.video == r.videos.index(name)] for r in self._excluded if name in r.videos]
        gone = np.concatenate([np.zeros(0, np.int64), *gone])
        rows = rows.where(~np.isin(rows.time, gone))
        seconds = np.unique(rows.time) if self._included is None else np.union1d(self._included, rows.time)
        key_frames = self.clock.frames(np.setdiff1d(seconds, gone))
        used = np.unique(self.clock.frames(np.unique(rows.time)), return_counts=True)
        if (used[1] > 1).any():
            frame = int(used[0][used[1] > 1][0])
            raise InputError(
                f"video {name!r}: two of its seconds are frame {frame} at {self.clock.rate:g} a second; a higher rate "
                "keeps them apart"
            )
        has_box = rows.classes >= 0
        width, height = self._size_of(name)
        frames = self.clock.frames(rows.time)
        tubes = self._people.tubes(rows.where(has_box), frames[has_box], (width, height))
        empty = np.setdiff1d(frames[~has_box], frames[has_box])
        return RawVideo(width, height, 0, tubes, np.unique(key_frames[key_frames >= 0]), empty)
