"""MOT Challenge, and CVAT's export "MOT 1.1": gt/gt.txt, gt/labels.txt, seqinfo.ini; one sequence, or a folder of such.

A line is `frame, id, left, top, width, height, conf, class, visibility, ...`; frames count from 1. Corners are taken as
they stand, as CVAT does (the MOT Challenge counts them from 1). `conf` 0 is a box to ignore; class k is line k of
labels.txt; a box without a class, or of class -1, has no action; an id below 1 is a box without a track. In CVAT's
export a frame is a position in the task: the video's frame is start + step * (frame - 1).
"""

import configparser
import zipfile
from collections.abc import Sequence
from pathlib import Path

from datasets.formats.common import NO_ACTION, AnnotationFile, RawVideo, refuse_names_of_nothing, whole_number
from datasets.formats.options import needed
from datasets.formats.person_tubes import fill_steps, joined_tubes, second_actions, tracks_of, tubes_of_person
from datasets.formats.sources import check_name, lines_of
from utils.misc import InputError
from utils.storage.files import not_a_number, read_text, write_text


def read(
    path: Path,
    *,
    names: Sequence[str] | None = None,
    person_labels: Sequence[str] | None = None,
    no_action: Sequence[str] = NO_ACTION,
    video: str | None = None,
    start: int = 0,
    step: int = 1,
    fill: bool = False,
) -> AnnotationFile:
    """Read a gt.txt, or all `gt/gt.txt` of a folder; `names` are the classes where no labels.txt is beside it.

    With a `step` above 1, `fill` interpolates between a person's boxes of two annotated frames that follow each other.
    """
    if path.is_file() and zipfile.is_zipfile(path):
        raise InputError(f"{path}: a zip; unpack it, and name the folder or its gt/gt.txt")
    files = [path] if path.is_file() else sorted(path.rglob("gt/gt.txt"))
    if not files or (video is not None and len(files) > 1):
        raise InputError(f"{path}: {len(files)} files gt/gt.txt" + f" cannot all be video {video!r}" * bool(files))
    videos: dict[str, RawVideo] = {}
    labels: dict[str, None] = {}
    for file in files:
        beside = file.with_name("labels.txt")
        classes = names or (read_text(beside).rstrip().splitlines() if beside.is_file() else [])
        classes = [name.strip() for name in classes]
        people = _people(file, classes, person_labels, no_action)
        tubes = []
        for (person, _), boxes in people.items():
            annotated = {start + step * (frame - 1): actions for frame, actions in boxes.items()}
            annotated = fill_steps(annotated, step) if fill else annotated
            tubes += tubes_of_person(annotated, person, "" if person is None else f"track {person}")
        name, *about = _sequence(file)
        name = video or name
        if name in videos:
            raise InputError(f"{file}: video {name!r} is there twice")
        n_frames = about.pop() if (start, step) == (0, 1) else 0
        videos[name] = RawVideo(*about[:2], n_frames, tubes)
        labels |= dict.fromkeys(name for name in classes if name and name not in no_action)
    return AnnotationFile(path, videos, list(labels))


def _people(
    path: Path, classes: Sequence[str], person_labels: Sequence[str] | None, no_action: Sequence[str]
) -> dict[tuple[int | None, int], dict[int, dict[str | None, list[float]]]]:
    """Frame (from 1) -> action -> box of each track, whose key is its id, or None and a line."""
    people: dict[tuple[int | None, int], dict[int, dict]] = {}
    for number, cells in lines_of(path, ","):
        where = f"{path}: {path.name}, line {number}"
        frame, track, box, confidence, label = _row(where, cells)
        if confidence == 0:
            continue
        if label > 0 and not classes:
            raise needed(path, f"line {number}: class {label}, but no labels.txt is beside it", "names")
        if label > len(classes):
            raise InputError(f"{where}: class {label}, but labels.txt has {len(classes)}")
        name = classes[label - 1] if label > 0 else ""
        if name and person_labels is not None and name not in person_labels:
            continue
        boxes = people.setdefault((track, 0) if track > 0 else (None, number), {})
        if frame in boxes:
            raise InputError(f"{where}: track {track} has two boxes in frame {frame}")
        boxes[frame] = {None if not name or name in no_action else name: box}
    return people


def _row(where: str, cells: list[str]) -> tuple[int, int, list[float], float, int]:
    """Frame, id, xyxy box, confidence and class of a line; InputError where it has others than numbers in them."""
    if not 6 <= len(cells) <= 10:
        raise InputError(f"{where}: {len(cells)} columns, not 6 to 10 parted by commas")
    try:
        numbers = [float(cell) for cell in (cells + ["1", "-1"][len(cells) - 6 :])[:8]]
    except ValueError as error:
        raise InputError(f"{where}: {not_a_number(error)}") from None
    frame, track, left, top, width, height, confidence, label = numbers
    try:
        frame, track, label = map(whole_number, (frame, track, label), ("frame", "id", "class"))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}") from None
    if frame < 1:
        raise InputError(f"{where}: frame {frame}, but frames count from 1")
    return frame, track, [left, top, left + width, top + height], confidence, label


def _sequence(path: Path) -> tuple[str, int, int, int]:
    """Name, width, height and number of frames of a gt.txt's seqinfo.ini; else the folder's name and zeros."""
    folder = path.resolve().parent
    folder = folder.parent if folder.name == "gt" else folder
    file = folder / "seqinfo.ini"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_text(file) if file.is_file() else "")
        about = parser["Sequence"] if parser.has_section("Sequence") else {}
        numbers = [int(about.get(key, 0)) for key in ("imWidth", "imHeight", "seqLength")]
    except (configparser.Error, ValueError) as error:
        raise InputError(f"{file}: not a seqinfo.ini that can be read ({' '.join(str(error).split())})") from None
    return about.get("name") or folder.name, *numbers


def write(file: AnnotationFile, path: Path) -> list[str]:
    """Write the folder of a sequence; of several videos, one folder each in `path`.

    Two actions of one person at a time, sides beyond the third digit, and where an action ends and is done again are
    what it cannot hold.
    """
    refuse_names_of_nothing(file.labels)
    several = len(file.videos) > 1
    for name in file.videos if several else ():
        check_name(name, path, file.path)
    for name, video in file.videos.items():
        folder = path / name if several else path
        rows = []
        for number, track in enumerate(tracks_of(video.tubes), 1):
            for tube in track:
                label = -1 if tube.label is None else file.labels.index(tube.label) + 1
                for frame, (x0, y0, x1, y1) in zip(tube.frames.tolist(), tube.boxes.tolist(), strict=True):
                    sides = ",".join(f"{side:.3f}" for side in (x0, y0, x1 - x0, y1 - y0))
                    rows.append((frame, number, f"{frame + 1},{number},{sides},1,{label},1"))
        length = video.n_frames or max((row[0] + 1 for row in rows), default=0)
        about = {"name": name, "seqLength": length, "imWidth": video.width, "imHeight": video.height}
        texts = {
            "seqinfo.ini": ["[Sequence]", *(f"{key}={value}" for key, value in about.items())],
            "gt/labels.txt": file.labels,
            "gt/gt.txt": [text for *_, text in sorted(rows)],
        }
        for part, lines in texts.items():
            write_text(folder / part, "".join(f"{line}\n" for line in lines))
    return second_actions(file.videos) + joined_tubes(file.videos)
