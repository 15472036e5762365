"""A video with what is annotated and what is predicted side by side, each in a panel with a title."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.box_ops import Tube, frames_and_boxes, person_numbers
from utils.drawing.draw import WHITE, colour_of, draw_boxes, fill, put_text, text_size
from utils.drawing.timeline import BACKGROUND
from utils.drawing.video_encoder import new_video

PANEL_WIDTH = 480  # pixels, at most 1,920 for all panels
TEXT = 15  # pixels


class Panel(NamedTuple):
    """What is drawn on one copy of the video: boxes (M, 4) xyxy in pixels of the original frame, and of each box the
    frame, the number that its colour goes by, and the caption."""

    title: str
    frames: np.ndarray
    boxes: np.ndarray
    numbers: np.ndarray
    captions: list[str]


def detections_panel(title: str, frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> Panel:
    """Detections with their scores: frames (M,), boxes (M, 4), scores (M,)."""
    return Panel(title, frames, boxes, np.zeros(len(frames), int), [f"{score:.2f}" for score in scores])


def tubes_panel(title: str, tubes: Sequence[Tube], labels: Sequence[str] = (), scored: bool = False) -> Panel:
    """Tubes, each person in a colour, captioned with the person's number, the name in `labels` if there is one, and the
    score if `scored`."""
    numbers, captions = person_numbers(tubes), []
    for number, tube in zip(numbers, tubes, strict=True):
        parts = [str(number), labels[tube.label] if 0 <= tube.label < len(labels) else ""]
        captions.append(" ".join(filter(None, [*parts, f"{tube.score:.2f}" if scored else ""])))
    of_rows = np.repeat(np.arange(len(tubes)), [len(tube) for tube in tubes])
    frames, boxes = frames_and_boxes(tubes)
    return Panel(title, frames, boxes, np.array(numbers, np.int64)[of_rows], [captions[i] for i in of_rows])


def write_side_by_side(
    path: str | Path,
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: float,
    panels: Sequence[Panel],
) -> Path:
    """Write the panels of a video beside each other as an MP4 file; returns its path.

    Args:
        frames: uint8 RGB (H, W, 3), in order.
        size: width and height in pixels of the original frames, which boxes refer to.

    Raises:
        InputError: there is no frame.
    """
    path = Path(path)
    width = min(PANEL_WIDTH, 1920 // len(panels)) // 2 * 2
    height, head = round(size[1] * width / size[0]), text_size("0", TEXT)[1] + 4
    page = np.empty(((height + head + 1) // 2 * 2, width * len(panels), 3), np.uint8)
    scale = np.array([width / size[0], height / size[1]] * 2)
    with new_video(path, page.shape[1::-1], fps) as encode:
        for number, frame in enumerate(frames):
            small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            fill(page, 0, 0, page.shape[1], page.shape[0], BACKGROUND)
            for k, panel in enumerate(panels):
                image = small.copy()
                rows = np.flatnonzero(panel.frames == number)
                colours = [colour_of(n) for n in panel.numbers[rows].tolist()]
                draw_boxes(image, panel.boxes[rows] * scale, colours, [panel.captions[i] for i in rows], TEXT)
                page[head : head + height, k * width : (k + 1) * width] = image
                put_text(page, panel.title, (k * width + 4, 2), TEXT, WHITE)
            encode(page)
    return path
