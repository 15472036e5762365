"""Which of a video's frames are used: all, every n-th, or so many a second by presentation time."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TypeVar

FOLDER_FPS = 25.0  # of a folder of images, unless the project file says otherwise
TOLERANCE = 1e-3  # seconds: containers round times, often to milliseconds
Frame = TypeVar("Frame")


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are used. They count from 0, whatever the file's own numbers are.

    Args:
        rate: frames a second: frame k is the one on screen `start + k / rate` seconds after the file's beginning,
            whether or not the video's own rate varies. None: the video's own frames.
        stride: every so many-th of the video's own frames, without `rate`.
        start: seconds from the file's beginning to frame 0.
        end: seconds from the file's beginning after which nothing is used; None: the file's end.
        image_rate: images a second of a folder.
        image_offset: index in a folder, from 0, of the image that is on screen at the video's beginning.
    """

    rate: float | None = None
    stride: int = 1
    start: float = 0.0
    end: float | None = None
    image_rate: float = FOLDER_FPS
    image_offset: int = 0

    @property
    def all_frames(self) -> bool:
        """Whether every frame of a video is used."""
        return self.rate is None and self.stride == 1 and self.start == 0 and self.end is None

    @property
    def for_other_videos(self) -> dict:
        """What new videos are sampled by too, as tracks and heads keep it."""
        kept = {"rate": self.rate, "stride": self.stride}
        return kept if self.image_rate == FOLDER_FPS else kept | {"image_rate": self.image_rate}

    def fps(self, own: float) -> float:
        """Frames a second that are used of a video of `own` frames a second."""
        return self.rate or own / self.stride

    def choose(self, frames: Iterable[tuple[Frame, float]], own_fps: float) -> Iterator[Frame]:
        """The frames that are used; one may come several times where `rate` exceeds the video's own.

        Args:
            frames: the video's frames, each with its time in seconds after the file's beginning, which rises.
            own_fps: says how long the last one is on screen.
        """
        stop = float("inf") if self.end is None else self.end + TOLERANCE
        if self.rate is None:
            first = self.start - TOLERANCE if self.start else float("-inf")
            until_stop = takewhile(lambda frame_and_time: frame_and_time[1] <= stop, frames)
            yield from islice((frame for frame, time in until_stop if time > first), 0, None, self.stride)
            return
        used, shown, end = 0, None, 0.0
        for frame, time in frames:
            while shown is not None and self._time(used) < min(time - TOLERANCE, stop):
                yield shown
                used += 1
            if self._time(used) > stop:
                return
            shown, end = frame, time + 1 / own_fps
        while shown is not None and self._time(used) < min(end - TOLERANCE, stop):
            yield shown
            used += 1

    def _time(self, number: int) -> float:
        return self.start + number / self.rate


ALL_FRAMES = Sampling()
