"""The files of AVA: rows of boxes or of key frames (csv), and label maps (pbtxt).

A row is `video,second,x1,y1,x2,y2,class` with an eighth column, a person's id or a detection's score, or `video,second`
alone, a key frame without people. There is no header; corners are shares of the frame.
"""

import csv
import io
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.misc import InputError, counted
from utils.storage.files import not_a_number, read_text

WIDTHS = (2, 7, 8)  # columns of a row
MAX_SECOND = 10**6
MICRO = 10**6  # key frames are told apart by the second to 6 digits
_NAMED = re.compile(r'name:\s*(?:"((?:[^"\\]|\\.)*)"|\'([^\']*)\')|\b(?:label_)?id:\s*(-?\d+)')


class AvaRows(NamedTuple):
    """The n rows of a file.

    videos: the names, in order of appearance. video: int64 (n,), indices of them; time: int64 (n,), microseconds.
    boxes: float64 (n, 4), as written; classes: int64 (n,); last: float64 (n,), the eighth column. Where a column is
    missing they are NaN, and the class -1. lines: int64 (n,), from 1.
    """

    path: Path
    videos: list[str]
    video: np.ndarray
    time: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    last: np.ndarray
    lines: np.ndarray

    def where(self, keep: np.ndarray) -> "AvaRows":
        """The rows that a mask or an index selects."""
        return self._replace(**{name: getattr(self, name)[keep] for name in self._fields[2:]})

    def of_videos(self, names: Iterable[str]) -> "AvaRows":
        """The rows of these videos."""
        known = np.isin(self.videos, list(names))
        return self.where(known[self.video])

    def line(self, some: np.ndarray, text: str) -> str:
        """A line about some of the rows, bool (n,), with the file and line of the first.

        In `text`, {video}, {second}, {x1} and so on are replaced by its columns, and {lines} by how many there are.
        """
        row = int(some.argmax())
        values = dict(zip(("x1", "y1", "x2", "y2"), self.boxes[row].tolist(), strict=True))
        values |= {"video": self.videos[self.video[row]], "second": f"{self.time[row] / MICRO:g}"}
        values |= {"class_id": self.classes[row], "last": self.last[row], "lines": counted(int(some.sum()), "line")}
        return f"{self.path}, line {self.lines[row]}: {text.format(**values)}"

    def refuse(self, wrong: np.ndarray, text: str) -> None:
        """InputError at the first of the `wrong` rows, bool (n,), if any; `text` as in `line`."""
        if wrong.any():
            more = f" (and {wrong.sum() - 1} more lines)" if wrong.sum() > 1 else ""
            raise InputError(self.line(wrong, text) + more)


def read_rows(path: str | Path, widths: tuple[int, ...] = WIDTHS) -> AvaRows:
    """Read a csv of AVA.

    Args:
        widths: numbers of columns that a row may have; a file of rows of two alone may be empty.

    Raises:
        InputError: an empty file; a column that is no number or a line of another number of columns, with the line.
    """
    path = Path(path)
    text = read_text(path)
    if not text.strip() and widths != (2,):  # no second need be excluded
        raise InputError(f"{path}: an empty file")
    videos, video, numbers, lines = _plain(path, text, widths) or _careful(path, text, widths)
    rows = AvaRows(path, videos, video, numbers[:, 0], numbers[:, 1:5], numbers[:, 5], numbers[:, 6], lines)
    classes = np.where(np.isnan(rows.classes), -1, rows.classes)
    rows.refuse((classes != np.floor(classes)) | (np.abs(classes) > 1e9), "class {class_id:g} is not a whole number")
    late = np.abs(rows.time) >= MAX_SECOND
    rows = rows._replace(time=np.rint(np.where(late, 0, rows.time) * MICRO).astype(np.int64))
    rows.refuse(late, f"a second beyond {MAX_SECOND}")
    return rows._replace(classes=classes.astype(np.int64))


def joined(parts: Sequence[AvaRows]) -> AvaRows:
    """The rows of several files, with the path and line numbers of each lost but the first's path."""
    indices = {name: i for i, name in enumerate(dict.fromkeys(name for part in parts for name in part.videos))}
    video = [np.array([indices[name] for name in part.videos], np.int64)[part.video] for part in parts]
    columns = [np.concatenate(column) for column in zip(*(part[3:] for part in parts), strict=True)]
    return AvaRows(parts[0].path, list(indices), np.concatenate(video), *columns)


Columns = tuple[list[str], np.ndarray, np.ndarray, np.ndarray]  # videos, video (n,), other columns (n, 7), lines (n,)


def _plain(path: Path, text: str, widths: tuple[int, ...]) -> Columns | None:
    """Parse at once what has one number of columns and no quotes; None for other files and those with a mistake."""
    if '"' in text or not text.strip():
        return None
    indices: dict[str, int] = {}
    converters = {0: lambda name: indices.setdefault(name, len(indices))}
    try:
        table = np.loadtxt(path, delimiter=",", comments=None, converters=converters, encoding="utf-8-sig", ndmin=2)
    except (ValueError, OSError):
        return None
    n, width = table.shape
    n_lines = text.count("\n") + (not text.endswith("\n"))  # more where some are blank, fewer where "\r" ends lines
    named = all(name and name == name.strip() for name in indices)
    if n != n_lines or width not in widths or not named or not np.isfinite(table).all():
        return None
    numbers = np.pad(table[:, 1:], [(0, 0), (0, 8 - width)], constant_values=np.nan)
    return list(indices), table[:, 0].astype(np.int64), numbers, np.arange(1, n + 1)


def _careful(path: Path, text: str, widths: tuple[int, ...]) -> Columns:
    """Parse line by line, with what `csv` takes; InputError names the line at fault."""
    indices: dict[str, int] = {}
    video, lines, n_cells, numbers = array("q"), array("q"), array("q"), array("d")
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for name, *cells in filter(any, reader):  # without blank lines
            if len(cells) + 1 not in widths:
                known = " or ".join(str(width) for width in widths if width > 2 or len(widths) == 1)
                scoreless = ": a detection has a score in the eighth" if (len(cells), widths) == (6, (8,)) else ""
                fault = f"{len(cells) + 1} columns{scoreless or f', not {known}'}"
                raise InputError(f"{path}, line {reader.line_num}: {fault}")
            numbers.extend(map(float, cells))
            n_cells.append(len(cells))
            lines.append(reader.line_num)
            video.append(indices.setdefault(name.strip(), len(indices)))
    except ValueError as error:
        hint = " (a header line is not part of this format)" if reader.line_num == 1 else ""
        raise InputError(f"{path}, line {reader.line_num}: {not_a_number(error)}{hint}") from None
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from None
    given = np.arange(7) < np.array(n_cells)[:, None]
    table = np.full(given.shape, np.nan)
    table[given] = numbers
    infinite = given & ~np.isfinite(table)
    if infinite.any():
        line, value = lines[int(infinite.any(1).argmax())], table[infinite][0]
        raise InputError(f"{path}, line {line}: '{value}' is not a number")
    if "" in indices:
        raise InputError(f"{path}, line {lines[video.index(indices[''])]}: no video's name in the first column")
    return list(indices), np.array(video, np.int64), table, np.array(lines, np.int64)


def all_of_ava(classes: Mapping[int, str], where: object) -> list[str]:
    """A line where a label map holds AVA's 80 classes, 20 of which are not evaluated."""
    if len(classes) != 80 or (classes.get(12), classes.get(80)) != ("stand", "watch (a person)"):
        return []
    text = "published figures of AVA are over 60 of them: ava_action_list_v2.2_for_activitynet_2019.pbtxt"
    return [f"{where}: a label map of 80 classes; {text}"]


def read_label_map(path: str | Path) -> dict[int, str]:
    """Class id -> name of a label map, in both of AVA's syntaxes (`item {name id}` and `label {name label_id}`).

    Raises:
        InputError: no class in it, an id below 1 or twice, a name without an id.
    """
    text = read_text(path)
    classes: dict[int, str] = {}
    name = None
    for match in _NAMED.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        double, single, number = match.groups()
        if number is None:
            if name is not None:
                raise InputError(f"{path}, line {line}: {name!r} has no id")
            name = single if double is None else re.sub(r"\\(.)", r"\1", double)
        elif name is None:
            raise InputError(f"{path}, line {line}: id {number} has no name before it")
        elif int(number) < 1 or int(number) in classes:
            fault = "is there twice" if int(number) in classes else "is below 1; ids count from 1"
            raise InputError(f"{path}, line {line}: id {number} {fault}")
        else:
            classes[int(number)], name = name, None
    if not classes:
        text = 'no class in it; one is written as item { name: "stand" id: 12 }'
        raise InputError(f"{path}: not a label map: {text}")
    return classes
