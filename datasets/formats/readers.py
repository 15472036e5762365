"""Readers of the annotation formats: each gives the same `Source`, as it stands in the file.

Nothing is corrected or judged here; `datasets.annotations` does that, once for all formats.
"""

import functools
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.io

from datasets.formats.pickles import read_pickle
from utils.misc import InputError
from utils.storage.files import read_json

if TYPE_CHECKING:
    from datasets.config import Project


_COMPRESSED = 15  # MATLAB's miCOMPRESSED
_MAX_MAT = 2**28  # bytes of a MATLAB file's decompressed part


class RawTube(NamedTuple):
    """A tube as annotated: `frames` int64 (T,) from 0, `boxes` float64 (T, 4) xyxy, `label` an index, a
    name or None (a person without action), `person_id` or None."""

    frames: np.ndarray
    boxes: np.ndarray
    label: int | str | None
    person_id: int | None = None


class RawVideo(NamedTuple):
    """A video as annotated; 0 where the annotation does not say."""

    width: int
    height: int
    n_frames: int
    tubes: list[RawTube]


@dataclass(frozen=True)
class Source:
    """An annotation file: its videos by name, its labels and lists of videos, if it has them."""

    path: Path
    videos: dict[str, RawVideo]
    labels: list[str] = field(default_factory=list)
    lists: dict[str, list[list[str]]] = field(default_factory=dict)

    def list(self, key: str, number: int) -> list[str]:
        """The `number`-th list (from 1) under `key`; InputError when the file has none."""
        if not 1 <= number <= len(self.lists.get(key, [])):
            raise InputError(f"{self.path}: holds no list {number} under {key!r}")
        return self.lists[key][number - 1]


def read_source(project: "Project") -> Source:
    """The project's annotation file, read (kept until another one is asked for, or the file changes).

    Raises InputError when it is missing, damaged or of another layout.
    """
    try:
        stat = project.annotations.stat()
    except OSError as error:
        raise InputError(f"{project.annotations}: no annotation file ({error.strerror}); {project.remedy}") from None
    return _read(project.annotations, project.format, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _read(path: Path, layout: str, mtime: int, size: int) -> Source:
    try:
        return FORMATS[layout](path)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: not in the {layout} layout ({type(error).__name__}: {error})"[:300]) from None


def _integer(value: object) -> int:
    """An integer, whatever carries it; ValueError for text, fractions and truth values."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or array.item() != math.floor(array.item()):
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    return int(array.item())


def _numbers(value: object, columns: int) -> np.ndarray:
    """float64 (T, columns): small integer types would overflow in sums."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" and array.size:
        raise ValueError("boxes are not numbers")
    return array.astype(np.float64).reshape(-1, columns)


def _span(start: int, stop: int, boxes: np.ndarray) -> np.ndarray:
    if len(boxes) != stop - start:
        raise ValueError(f"a tube of {stop - start} frames has {len(boxes)} boxes")
    return np.arange(start, stop)


def _xywh(boxes: object) -> np.ndarray:
    boxes = _numbers(boxes, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _check_mat(path: Path) -> None:
    """InputError when a MATLAB 5 file is cut off or a checksum of its compressed parts is wrong.

    SciPy's reader does not look, and damage can bring the interpreter down.
    """
    data, at = path.read_bytes(), 128
    try:
        if data[124:128] != b"\x00\x01IM" or len(data) == at:
            raise ValueError("its header is not of MATLAB 5, little-endian")
        while at < len(data):
            kind, size = struct.unpack_from("<II", data, at)
            stream = zlib.decompressobj()
            stream.decompress(data[at + 8 : at + 8 + size], _MAX_MAT)
            if kind != _COMPRESSED or not stream.eof or stream.unused_data:
                raise ValueError("it is cut off, or not compressed")
            at += 8 + size
    except (ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path}: damaged MATLAB file ({error}); get it again, or use pyannot.pkl") from None


def _ucf101(path: Path) -> Source:
    """`pyannot.pkl` or `finalAnnots.mat`: boxes x, y, w, h; every UCF101 video is 320 x 240.

    The two count differently, as their 4,458 tubes show: in the pickle `sf` counts from 0 and `ef` is
    the frame after the last (ef - sf boxes, ef up to numf, sf from 0); in the MATLAB file `sf` and `ef`
    are the first and last frame counted from 1 (ef - sf + 1 boxes), and classes count from 1.
    """
    videos = {}
    if path.suffix == ".mat":
        _check_mat(path)
        try:
            annotations = scipy.io.loadmat(path, variable_names=["annot"])["annot"].reshape(-1)
        except Exception as error:  # SciPy's reader raises whatever its parts raise on damaged files
            raise InputError(f"{path}: not a readable MATLAB file ({error})"[:300]) from None
        for video in annotations:
            tubes = []
            for tube in video["tubes"].reshape(-1):
                boxes = _xywh(tube["boxes"])
                frames = _span(_integer(tube["sf"]) - 1, _integer(tube["ef"]), boxes)
                tubes.append(RawTube(frames, boxes, _integer(tube["class"]) - 1))
            videos[str(video["name"].item())] = RawVideo(320, 240, _integer(video["num_imgs"]), tubes)
        return Source(path, videos)
    for name, video in read_pickle(path, "annotation file").items():
        tubes = []
        for tube in video["annotations"]:
            boxes = _xywh(tube["boxes"])
            tubes.append(
                RawTube(_span(_integer(tube["sf"]), _integer(tube["ef"]), boxes), boxes, _integer(tube["label"]))
            )
        videos[str(name)] = RawVideo(320, 240, _integer(video["numf"]), tubes)
    return Source(path, videos)


def _jhmdb21(path: Path) -> Source:
    """`JHMDB-GT.pkl` of the ACT detector: frames from 1; corners x1, y1, x2, y2 as stored; resolution (h, w)."""
    held = read_pickle(path, "annotation file")
    videos = {}
    for name, by_label in held["gttubes"].items():
        tubes = []
        for label, arrays in by_label.items():
            for array in arrays:
                array = _numbers(array, 5)
                if not np.isfinite(array[:, 0]).all() or (array[:, 0] % 1).any():
                    raise ValueError(f"{name}: a frame number is not whole")
                tubes.append(RawTube(array[:, 0].astype(np.int64) - 1, array[:, 1:], _integer(label)))
        height, width = held["resolution"][name]
        videos[str(name)] = RawVideo(_integer(width), _integer(height), _integer(held["nframes"][name]), tubes)
    lists = {key: [list(map(str, names)) for names in held[key]] for key in ("train_videos", "test_videos")}
    return Source(path, videos, [str(label) for label in held["labels"]], lists)


def _json(path: Path) -> Source:
    """This project's own: `{"labels": [...], "videos": {name: {"width", "height", "n_frames", "tubes": [{"label",
    "person_id", "frames", "boxes"}]}}}`; frames from 0, boxes xyxy in pixels.

    "label" is an index, a name, or null for a person without action; "person_id" may be left out.
    """
    held = read_json(path, "annotation file")
    labels = held.get("labels") or []
    if not all(isinstance(label, str) for label in labels):
        raise ValueError("labels are not names")
    videos = {}
    for name, video in held["videos"].items():
        tubes = []
        for i, tube in enumerate(video["tubes"]):
            try:
                frames, boxes = np.asarray(tube["frames"]), _numbers(tube["boxes"], 4)
                if (frames.dtype.kind not in "iu" and frames.size) or frames.shape != (len(boxes),):
                    raise ValueError(f"frames are not {len(boxes)} whole numbers, one a box")
                label, person = tube.get("label"), tube.get("person_id")
                if not (label is None or isinstance(label, str)):
                    label = _integer(label)
                tubes.append(
                    RawTube(frames.astype(np.int64), boxes, label, None if person is None else _integer(person))
                )
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise InputError(f"{path}: video {name!r}, tube {i}: {reason}") from None
        size = [_integer(video.get(key, 0)) for key in ("width", "height", "n_frames")]
        videos[name] = RawVideo(*size, tubes)
    return Source(path, videos, labels)


FORMATS: dict[str, Callable[[Path], Source]] = {"ucf101-24": _ucf101, "jhmdb21": _jhmdb21, "json": _json}
