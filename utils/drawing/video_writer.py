"""An annotated video: boxes with person numbers and actions, and a strip below that shows each person's actions."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.drawing.draw import colour_of, draw_boxes
from utils.drawing.timeline import BACKGROUND, Person, Strip
from utils.drawing.video_encoder import fit_image, fitted_size, new_video
from utils.misc import InputError

MIN_SIDE, MAX_SIDE = 480, 1280  # pixels of the longer side: text must be readable, and encoding takes its time
MIN_STRIP = 320  # pixels of the strip's width
PAGE_SECONDS = 20.0  # that the strip shows at a time, at most
ROWS = 6  # people with a row of their own in the strip, at most


def resize_image(frame: np.ndarray) -> np.ndarray:
    """A frame, uint8 RGB (H, W, 3), in the size that is drawn on; itself where it has that size."""
    return fit_image(frame, MAX_SIDE, MIN_SIDE)


class TubeVideoWriter:
    """Writes an annotated video frame by frame: H.264 that browsers play, its index in front.

    A context manager; the file appears when the block ends without an error. Memory does not grow with the number of
    frames.

    Args:
        path: the mp4 file.
        size: (width, height) of the video's frames in pixels, which boxes refer to.
        fps: frames a second.
        labels: the actions' names.
        n_frames: the video's number of frames, an estimate, so that a short video's strip is as long as the video; 0
            where unknown. The strip turns pages of at most `PAGE_SECONDS`.

    Raises:
        InputError: a size or rate that no video has, or no frame was written.
        OSError: the file cannot be written, e.g. since the disk is full.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int], fps: float, labels: Sequence[str], n_frames: int = 0
    ) -> None:
        if not (0 < fps < 1000 and min(size) > 0):
            raise InputError(f"{path}: no video has {size[0]} x {size[1]} pixels at {fps} frames a second")
        self.labels = labels
        width, height = fitted_size(size, MAX_SIDE, MIN_SIDE)
        self.scale = np.divide((width, height) * 2, size * 2)  # of boxes
        self.text = max(12, round(6 + 0.016 * math.sqrt(width * height)))
        limit = max(round(PAGE_SECONDS * fps), 1)
        page = math.ceil(n_frames / math.ceil(n_frames / limit)) if n_frames > 0 else limit
        self.strip = Strip(max(width, MIN_STRIP), ROWS, labels, fps, page, self.text)
        height += self.strip.height
        self.size = self.strip.width, height + height % 2
        self._page = np.full((*self.size[::-1], 3), BACKGROUND, np.uint8)
        self._file = new_video(Path(path), self.size, fps)
        self._n_frames = 0

    def __enter__(self) -> "TubeVideoWriter":
        self._encode = self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def write(self, image: np.ndarray, people: Sequence[Person]) -> None:
        """Add the next frame, as from `resize_image`, and its people."""
        number = self._n_frames
        self._n_frames += 1
        if number == self.strip.start + self.strip.page:
            self.strip.turn(number)
        self.strip.mark(number, people)
        height, width = image.shape[:2]
        left = (self.size[0] - width) // 2
        shown = self._page[:height, left : left + width]
        shown[:] = image
        draw_boxes(
            shown,
            np.array([person.box for person in people]).reshape(-1, 4) * self.scale,
            [colour_of(person.person_id) for person in people],
            [self._caption(person) for person in people],
            self.text,
        )
        self._page[height : height + self.strip.height] = self.strip.image(number)
        self._encode(self._page)

    def _caption(self, person: Person) -> str:
        if 0 <= person.label < len(self.labels):
            actions = ((person.label, person.score), *person.others)
            return f"{person.person_id} " + ", ".join(f"{self.labels[label]} {score:.2f}" for label, score in actions)
        return str(person.person_id)
