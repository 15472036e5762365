"""An annotated video: boxes with person numbers and actions, and a strip below that shows each person's actions."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
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


@contextmanager
def annotated_video(
    path: str | Path, size: tuple[int, int], fps: float, labels: Sequence[str], n_frames: int = 0
) -> Iterator[Callable[[np.ndarray, Sequence[Person]], None]]:
    """A function that adds the next frame, as from `resize_image`, and its people: H.264 that browsers play.

    The file appears when the block ends without an error. Memory does not grow with the number of frames.

    Args:
        path: the mp4 file.
        size: (width, height) of the video's frames in pixels, which boxes refer to.
        labels: the actions' names.
        n_frames: the video's number of frames, an estimate, so that a short video's strip is as long as the video; 0
            where unknown. The strip turns pages of at most `PAGE_SECONDS`.

    Raises:
        InputError: a size or rate that no video has, or no frame was written.
        OSError: the file cannot be written, e.g. since the disk is full.
    """
    if not (0 < fps < 1000 and min(size) > 0):
        raise InputError(f"{path}: no video has {size[0]} x {size[1]} pixels at {fps} frames a second")
    width, height = fitted_size(size, MAX_SIDE, MIN_SIDE)
    scale = np.divide((width, height) * 2, size * 2)  # of boxes
    text = max(12, round(6 + 0.016 * math.sqrt(width * height)))
    limit = max(round(PAGE_SECONDS * fps), 1)
    page = math.ceil(n_frames / math.ceil(n_frames / limit)) if n_frames > 0 else limit
    strip = Strip(max(width, MIN_STRIP), ROWS, labels, fps, page, text)
    end = height + strip.height
    canvas = np.full((end + end % 2, strip.width, 3), BACKGROUND, np.uint8)
    left = (strip.width - width) // 2
    shown, below, numbers = canvas[:height, left : left + width], canvas[height:end], count()
    with new_video(Path(path), canvas.shape[1::-1], fps) as encode:

        def write(image: np.ndarray, people: Sequence[Person]) -> None:
            number = next(numbers)
            if number == strip.start + page:
                strip.turn(number)
            strip.mark(number, people)
            shown[:] = image
            boxes = np.array([person.box for person in people]).reshape(-1, 4) * scale
            colours = [colour_of(person.person_id) for person in people]
            draw_boxes(shown, boxes, colours, [_caption(person, labels) for person in people], text)
            below[:] = strip.image(number)
            encode(canvas)

        yield write


def _caption(person: Person, labels: Sequence[str]) -> str:
    if 0 <= person.label < len(labels):
        actions = ((person.label, person.score), *person.others)
        return f"{person.person_id} " + ", ".join(f"{labels[label]} {score:.2f}" for label, score in actions)
    return str(person.person_id)
