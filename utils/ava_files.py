"""The files of AVA: rows of boxes or of key frames (csv), and label maps (pbtxt).

A row is `video,second,x1,y1,x2,y2,class` with an eighth column, a person's id or a detection's score, or `video,second`
alone, a key frame without people. There is no header; corners are shares of the frame.
"""

import csv
import io
import math
import re
import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.misc import InputError

COLUMNS = ("video", "second", "x1", "y1", "x2", "y2", "class", "eighth column")
WIDTHS = (2, 7, 8)  # columns of a row
MAX_SECOND = 10**6
MICRO = 10**6  # key frames are told apart by the second to 6 digits
MAX_DIGITS = 15  # of a number that is parsed quickly
_BLOCK = 2**23  # bytes that are parsed at a time
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

    def refuse(self, wrong: np.ndarray, text: str) -> None:
        """InputError at the first of the `wrong` rows, bool (n,); its columns replace {x1} and so on in `text`."""
        if not wrong.any():
            return
        row = int(wrong.argmax())
        values = dict(zip(COLUMNS[2:6], self.boxes[row].tolist(), strict=True))
        values |= {"video": self.videos[self.video[row]], "second": f"{self.time[row] / MICRO:g}"}
        values |= {"class_id": self.classes[row], "last": self.last[row]}
        more = f" (and {wrong.sum() - 1} more lines)" if wrong.sum() > 1 else ""
        raise InputError(f"{self.path}, line {self.lines[row]}: {text.format(**values)}{more}")


def read_rows(path: str | Path, widths: tuple[int, ...] = WIDTHS) -> AvaRows:
    """Read a csv of AVA.

    Args:
        widths: numbers of columns that a row may have; a file of rows of two alone may be empty.

    Raises:
        InputError: an empty file; a column that is no number or a line of another number of columns, with the line.
    """
    path = Path(path)
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    names: dict[bytes, int] = {}
    parts, begin, line = [], 0, 1
    while begin < len(data):
        end = data.find(b"\n", begin + _BLOCK) + 1 or len(data)
        block = data[begin:end]
        part = _fast(block, names, line, widths)
        parts.append(part if part is not None else _careful(path, block, names, line, widths))
        begin, line = end, line + block.count(b"\n")
    if not any(len(part[0]) for part in parts):
        if widths != (2,):  # no second need be excluded
            raise InputError(f"{path}: an empty file")
        parts = [(np.zeros(0, np.int64), np.zeros((0, 7)), np.zeros(0, np.int64))]
    try:
        videos = [name.decode() for name in names]
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    index, numbers, lines = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    rows = AvaRows(path, videos, index, numbers[:, 0], numbers[:, 1:5], numbers[:, 5], numbers[:, 6], lines)
    classes = np.where(np.isnan(rows.classes), -1, rows.classes)
    rows.refuse((classes != np.floor(classes)) | (np.abs(classes) > 1e9), "class {class_id:g} is not a whole number")
    late = np.abs(rows.time) >= MAX_SECOND
    rows = rows._replace(time=np.rint(np.where(late, 0, rows.time) * MICRO).astype(np.int64))
    rows.refuse(late, f"a second beyond {MAX_SECOND}")
    return rows._replace(classes=classes.astype(np.int64))


def joined(parts: Sequence[AvaRows]) -> AvaRows:
    """The rows of several files, with the path and line numbers of each lost but the first's path."""
    videos = list(dict.fromkeys(name for part in parts for name in part.videos))
    places = [np.array([videos.index(name) for name in part.videos], np.int64)[part.video] for part in parts]
    columns = [np.concatenate(column) for column in zip(*(part[3:] for part in parts), strict=True)]
    return AvaRows(parts[0].path, videos, np.concatenate(places), *columns)


Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # video (n,), the other columns (n, 7), lines (n,)


def _fast(block: bytes, names: dict[bytes, int], line: int, widths: tuple[int, ...]) -> Part | None:
    """Parse lines that are plain and of one width; None where they are not, or anything is wrong with them."""
    if any(sign in block for sign in (b'"', b"\r", b"\n\n")):
        return None
    block += b"\n" * (not block.endswith(b"\n"))
    n = block.count(b"\n")
    text = np.frombuffer(block + b"\0" * MAX_DIGITS, np.uint8)
    ends = np.flatnonzero((text == ord(",")) | (text == ord("\n")))
    width = len(ends) // n
    if width not in widths or width == 2 or len(ends) != n * width:
        return None
    ends = ends.reshape(n, width)
    if not (text[ends] == np.array([ord(",")] * (width - 1) + [ord("\n")])).all():
        return None
    starts = np.append(0, ends[:-1, -1] + 1)
    named = [block[a:b] for a, b in zip(starts.tolist(), ends[:, 0].tolist(), strict=True)]
    numbers = np.column_stack([_decimals(text, ends[:, i] + 1, ends[:, i + 1]) for i in range(width - 1)])
    other = np.isnan(numbers)
    numbers[other] = _floats(text, ends[:, :-1][other] + 1, ends[:, 1:][other])
    if not np.isfinite(numbers).all() or any(name != name.strip() or not name for name in set(named)):
        return None
    for name in dict.fromkeys(named):
        names.setdefault(name, len(names))
    if width == 7:
        numbers = np.concatenate([numbers, np.full((n, 1), np.nan)], 1)
    return np.fromiter(map(names.__getitem__, named), np.int64, n), numbers, np.arange(line, line + n)


def _floats(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Fields of any number's form, as `float` reads them; NaN for all where one is no number."""
    inside = np.zeros(len(text) + 1, np.int8)
    inside[starts] += 1
    inside[ends + 1] -= 1  # each with the sign that ends it
    fields = np.where((text == ord(",")) | (text == ord("\n")), np.uint8(ord(" ")), text)
    fields = fields[np.cumsum(inside[:-1], dtype=np.int8) > 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            numbers = np.fromstring(fields.tobytes(), sep=" ")
        except (ValueError, DeprecationWarning):
            numbers = np.zeros(0)
    return numbers if len(numbers) == len(starts) else np.full(len(starts), np.nan)


def _decimals(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Plain decimals, digits with a point or without, as float64; NaN where a field is anything else.

    Exact: up to 15 digits are a whole number that float64 holds, so that one division rounds as `float` does.

    Args:
        text: uint8, followed by at least `MAX_DIGITS` more bytes. starts, ends: where each field begins and ends.
    """
    length = ends - starts
    value, after_point = np.zeros(length.shape, np.int64), np.zeros(length.shape, np.int8)
    point, plain = np.zeros(length.shape, bool), (length > 0) & (length <= MAX_DIGITS)
    for i in range(int(length.max(initial=0, where=plain))):
        digit = text[starts + i] - np.uint8(ord("0"))  # wraps, so that every other sign is 10 or more
        inside = length > i
        is_digit = inside & (digit < 10)
        value = np.where(is_digit, 10 * value + digit, value)
        after_point += is_digit & point
        is_point = inside & (digit == np.uint8(254))
        plain &= ~inside | is_digit | (is_point & ~point)
        point |= is_point
    plain &= length > point
    return np.where(plain, value / 10.0 ** np.arange(MAX_DIGITS + 1)[after_point], np.nan)


def _careful(path: Path, block: bytes, names: dict[bytes, int], line: int, widths: tuple[int, ...]) -> Part:
    """Parse line by line, with what `csv` takes; InputError names the line at fault."""
    index, lines, numbers = array("q"), array("q"), array("d")
    reader = csv.reader(io.StringIO(block.decode("utf-8", "surrogateescape"), newline=""))
    for row in reader:
        if not row or row == [""]:
            continue
        place = f"{path}, line {line + reader.line_num - 1}"
        if len(row) not in widths:
            raise InputError(f"{place}: {len(row)} columns, not {_either(widths)}")
        values = [_number(text) for text in row[1:]]
        if math.nan in values:
            hint = " (a header line is not part of this format)" if place.endswith("line 1") else ""
            raise InputError(f"{place}: {row[values.index(math.nan) + 1][:40]!r} is not a number{hint}")
        name = row[0].strip().encode("utf-8", "surrogateescape")
        if not name:
            raise InputError(f"{place}: no video's name in the first column")
        index.append(names.setdefault(name, len(names)))
        lines.append(line + reader.line_num - 1)
        numbers.extend(values + [math.nan] * (7 - len(values)))
    return np.array(index, np.int64), np.array(numbers).reshape(-1, 7), np.array(lines, np.int64)


def _either(widths: tuple[int, ...]) -> str:
    return " or ".join(str(width) for width in widths if width > 2 or len(widths) == 1)


def _number(text: str | bytes) -> float:
    """A finite number; `math.nan` itself for anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


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
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: label map cannot be read ({reason})") from None
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
