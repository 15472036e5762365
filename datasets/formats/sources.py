"""The files that annotations are read from, and the videos that they are about."""

import contextlib
import functools
import glob
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from utils.misc import InputError
from utils.storage.files import read_text

FPS_TOLERANCE = 0.03  # 30 for 29.97, but not 25 for 24
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")


def video_path(pattern: str | Path, name: str) -> Path:
    """The path of a video: `pattern` with the name for {name}; one that ends with .* is the file that exists."""
    path = str(pattern).replace("{name}", name)
    if not path.endswith(".*"):
        return Path(path)
    folder, stem = Path(path).parent, Path(path).name[:-1]
    return min(folder.glob(glob.escape(stem) + "*"), default=Path(path))


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
    return _size_and_fps(videos, name)[0] if videos else None


def fps_of(name: str, fps: float | None, videos: str | None) -> float | None:
    """Frames a second of a video by the option, else by the video itself, else None.

    InputError where the two differ. A folder of images has no rate of its own, and an unreadable file is not compared.
    """
    if fps is None:
        return _size_and_fps(videos, name)[1] if videos else None
    if videos and (path := video_path(videos, name)).is_file():
        own = fps
        with contextlib.suppress(InputError):
            own = _size_and_fps(videos, name)[1]
        if abs(own / fps - 1) > FPS_TOLERANCE:
            raise InputError(f"{path}: has {own:g} frames a second, not {fps:g}; leave out the option fps")
    return fps


@functools.lru_cache(maxsize=4096)  # opening a video decodes a frame, and VIA's times ask once a box
def _size_and_fps(videos: str, name: str) -> tuple[tuple[int, int], float]:
    from datasets.dataset import VideoFrames  # PyAV and OpenCV only where a video is opened

    video = VideoFrames(video_path(videos, name))
    return video.size, video.fps


def video_name(location: str) -> str:
    """The name of a video, without folders and suffix, from its path."""
    return without_suffix(PurePosixPath(location.replace("\\", "/")).name)


def without_suffix(name: str) -> str:
    """A video's name without the suffix of a video file."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES else name
