"""The files that annotations are read from, and the videos that they are about."""

import functools
import glob
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from utils.misc import InputError
from utils.storage.files import read_text

if TYPE_CHECKING:
    from datasets.dataset import VideoFrames

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")


def video_path(pattern: str | Path, name: str) -> Path:
    """The path of a video: `pattern` with the name for {name}; one that ends with .* is the file that exists, which
    need not be the only one: `a.json` may lie beside `a.mp4`, and `a.b.mp4` is another video."""
    path = str(pattern).replace("{name}", name)
    if not path.endswith(".*"):
        return Path(path)
    folder, stem = Path(path).parent, Path(path).name[:-1]
    files = (file for file in folder.glob(glob.escape(stem) + "*") if "." not in file.name.removeprefix(stem))
    return min(files, key=lambda file: (file.suffix.lower() not in VIDEO_SUFFIXES, file), default=Path(path))


def check_name(name: str, folder: Path, where: object) -> None:
    """InputError for a video's name that is not a path below `folder`; the line begins with `where`."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        hint = "; part folders with /" if "\\" in name else ""
        raise InputError(f"{where}: video name {name[:80]!r} is not a path below {folder}{hint}")


def check_csv_name(name: str, where: object) -> None:
    """InputError for a video's name that is read back from AVA's csv, which is written without quoting, as another."""
    if "," in name or name.startswith('"'):
        text = "AVA's csv cannot hold a name with a comma or a quote at its beginning"
        raise InputError(f"{where}: video {name!r}: {text}")


def lines_of(path: Path, separator: str | None) -> Iterator[tuple[int, list[str]]]:
    """The lines of a text that are not blank, each with its number from 1 and parted by `separator`."""
    for n, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield n, line.strip().split(separator)


def size_of(
    name: str, sizes: Mapping | None, width: int | None, height: int | None, videos: str | None = None
) -> tuple[float, float] | None:
    """Width and height of a video by the options, else by the video itself, where `videos` is its path with {name} in
    it; None where neither says them."""
    if sizes and name in sizes:
        return tuple(sizes[name])
    if width and height:
        return width, height
    return _video(videos, name).size if videos else None


class Clock(NamedTuple):
    """When the frames of a video are shown: the first ones at `times`, in seconds, those after them `fps` a second."""

    fps: float
    times: np.ndarray = np.zeros(1)

    def frames_at(self, seconds: np.ndarray) -> np.ndarray:
        """The frames at times (T,), with fractions."""
        known = np.interp(seconds, self.times, np.arange(len(self.times)))
        return known + np.maximum(seconds - self.times[-1], 0) * self.fps

    def times_of(self, frames: np.ndarray) -> np.ndarray:
        """When frames (T,) are shown, in seconds."""
        known = np.interp(frames, np.arange(len(self.times)), self.times)
        return known + np.maximum(frames - len(self.times) + 1, 0) / self.fps


@functools.lru_cache(maxsize=4096)  # VIA's times ask once a box
def clock_of(name: str, fps: float | None, videos: str | None) -> Clock | None:
    """The clock of a video by its file, whose rate may vary, else by the option `fps`, else None."""
    if videos and video_path(videos, name).is_file():
        video = _video(videos, name)
        return Clock(video.fps, np.array(video.own_times))
    return None if fps is None else Clock(fps)


@functools.lru_cache(maxsize=4096)  # opening a video decodes a frame
def _video(videos: str, name: str) -> "VideoFrames":
    from datasets.dataset import VideoFrames  # PyAV and OpenCV only where a video is opened

    return VideoFrames(video_path(videos, name))


def video_name(location: str) -> str:
    """The name of a video, without folders and suffix, from its path."""
    return without_suffix(PurePosixPath(location.replace("\\", "/")).name)


def without_suffix(name: str) -> str:
    """A video's name without the suffix of a video file."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES else name
