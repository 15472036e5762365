"""A video with its people drawn in: boxes, actions, and a strip that shows what everybody does when.

The file is an mp4 that browsers play. Where an `ffmpeg` with x264 is installed, frames go to it through a pipe
(H.264); elsewhere OpenCV writes VP9, which is an order of magnitude slower: its encoder cannot be told to hurry.
"""

import math
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from utils.drawing.draw import colour_of, draw_boxes
from utils.drawing.timeline import GROUND, Person, PersonTrack, Strip
from utils.misc import InputError
from utils.storage.files import atomic

LEAST, MOST = 480, 1280  # pixels of the longer side: text must be readable, and encoding takes its time
LEAST_WIDTH = 320  # of the strip
PAGE_SECONDS = 20.0  # of the strip, at most
ROWS = 12  # people with a row of their own in the strip, at most


class TubeVideoWriter:
    """Writes an annotated video frame by frame, as a context manager; the file appears when the block ends well.

    `size` (width, height) of the frames in pixels, `fps` frames a second, `labels` the actions' names. With
    `tracks` the people are known beforehand and the strip shows a page's future, pale; without, each call of
    `write` says who is there, and the strip (then of `rows` rows) fills as time goes. `n_frames`, 0 where
    unknown, sets how much time the strip spans: the whole video, or pages of at most `PAGE_SECONDS`.
    Small frames are enlarged until the longer side has `LEAST` pixels, large ones reduced to `MOST`.
    Memory does not grow with the number of frames. Raises InputError when the file cannot be written whole.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        fps: float,
        labels: Sequence[str],
        tracks: Sequence[PersonTrack] | None = None,
        n_frames: int = 0,
        rows: int = 6,
    ) -> None:
        if not (0 < fps < 1000 and min(size) > 0):
            raise InputError(f"{path}: a video of {size[0]} x {size[1]} pixels at {fps} frames a second is none")
        self.path, self.fps, self.labels, self.tracks = Path(path), fps, labels, tracks
        longer = max(size)
        self.scale = min(max(longer, LEAST), MOST) / longer
        picture = [max(1, round(side * self.scale)) for side in size]
        width = max(picture[0], LEAST_WIDTH) // 2 * 2
        self.picture_size = min(picture[0], width), picture[1]
        self.text = max(12, round(6 + 0.016 * math.sqrt(picture[0] * picture[1])))
        limit = max(round(PAGE_SECONDS * fps), 1)
        page = math.ceil(n_frames / math.ceil(n_frames / limit)) if n_frames > 0 else limit
        if tracks is not None:
            people = Counter(p for track in tracks for p in np.unique(track.frames // page).tolist())
            rows = max(people.values(), default=1)
        self.strip = Strip(width, min(rows, ROWS), labels, fps, page, self.text)
        self.strip.turn(0, tracks or ())
        height = self.picture_size[1] + self.strip.height
        self.size = width, height + height % 2
        self.frame = 0
        self._stack = ExitStack()

    def __enter__(self) -> "TubeVideoWriter":
        with ExitStack() as stack:
            part = stack.enter_context(atomic(self.path))
            encoder = _FFmpeg if _has_x264() else _OpenCV
            self._encoder = stack.enter_context(encoder(self.path, part, self.size, self.fps))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.frame == 0:
            error = InputError(f"{self.path}: a video without frames cannot be written")
            self._stack.__exit__(InputError, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)

    def write(self, frame: np.ndarray, people: Sequence[Person] | None = None) -> None:
        """Add the next frame, uint8 RGB (H, W, 3), which is left as it is, and its people (default: the tracks')."""
        if self.frame == self.strip.start + self.strip.page:
            self.strip.turn(self.frame, self.tracks or ())
        if people is None:
            found = (track.at(self.frame) for track in self.tracks or ())
            people = [person for person in found if person is not None]
        else:
            self.strip.mark(self.frame, people)
        how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        picture = cv2.resize(frame, self.picture_size, interpolation=how)
        draw_boxes(
            picture,
            np.array([person.box for person in people]).reshape(-1, 4) * self.scale,
            [colour_of(person.person_id) for person in people],
            [self._caption(person) for person in people],
            self.text,
        )
        page = np.empty((*self.size[::-1], 3), np.uint8)
        page[:] = GROUND
        left = (self.size[0] - picture.shape[1]) // 2
        page[: picture.shape[0], left : left + picture.shape[1]] = picture
        page[picture.shape[0] : picture.shape[0] + self.strip.height] = self.strip.image(self.frame)
        self._encoder.write(page)
        self.frame += 1

    def _caption(self, person: Person) -> str:
        if 0 <= person.label < len(self.labels):
            return f"{person.person_id} {self.labels[person.label]} {person.score:.2f}"
        return str(person.person_id)


def write_tube_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    tracks: Sequence[PersonTrack],
    labels: Sequence[str],
    n_frames: int = 0,
) -> int:
    """Write a video of `frames`, uint8 RGB (H, W, 3) in order, with its people; the number of frames written.

    Takes one frame at a time and encodes it at once. The rest as for `TubeVideoWriter`; InputError also where
    there is no frame.
    """
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise InputError(f"{path}: a video without frames cannot be written")
    with TubeVideoWriter(path, (first.shape[1], first.shape[0]), fps, labels, tracks, n_frames) as video:
        for frame in chain([first], rest):
            video.write(frame)
    return video.frame


@lru_cache
def _has_x264() -> bool:
    if shutil.which("ffmpeg") is None:
        return False
    asked = subprocess.run(["ffmpeg", "-hide_banner", "-encoders"], capture_output=True, text=True, check=False)
    return " libx264 " in asked.stdout


class _FFmpeg:
    """H.264 by the installed `ffmpeg`, its index in front, so that a browser plays it while it loads."""

    def __init__(self, path: Path, part: Path, size: tuple[int, int], fps: float) -> None:
        self.path = path
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the encoder)
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:.6f}", "-i", "-"]
        coded = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p"]
        # a player that is not told the colour matrix guesses it by the picture's size
        matrix = ["-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"]
        matrix += ["-color_primaries", "bt709", "-color_trc", "bt709"]
        self._process = subprocess.Popen(
            ["ffmpeg", "-loglevel", "error", "-y", *raw, *coded, *matrix, "-movflags", "+faststart", f"file:{part}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,  # an interrupt is this program's to handle
        )

    def __enter__(self) -> "_FFmpeg":
        return self

    def write(self, frame: np.ndarray) -> None:
        try:
            self._process.stdin.write(frame.data)
        except OSError:
            self._fail()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._said:
            if kind is not None:
                self._process.kill()
            with suppress(OSError):  # what was still in the pipe
                self._process.stdin.close()
            if self._process.wait() and kind is None:
                self._fail()

    def _fail(self) -> None:
        self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        raise InputError(f"{self.path}: the video could not be written ({said[-1] if said else 'ffmpeg stopped'})")


class _OpenCV:
    """VP9 by OpenCV's own FFmpeg."""

    def __init__(self, path: Path, part: Path, size: tuple[int, int], fps: float) -> None:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what matters is raised
        self.path, self.part, self.count = path, part, 0
        self._writer = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"vp09"), fps, size)
        if not self._writer.isOpened():
            raise InputError(f"{path}: cannot be written, or OpenCV has no VP9 encoder (install ffmpeg, with x264)")

    def __enter__(self) -> "_OpenCV":
        return self

    def write(self, frame: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.release()
        if kind is None:
            held = cv2.VideoCapture(str(self.part), cv2.CAP_FFMPEG)
            whole = held.isOpened() and round(held.get(cv2.CAP_PROP_FRAME_COUNT)) == self.count
            held.release()
            if not whole:
                raise InputError(f"{self.path}: the video could not be written whole; is the disk full?")
