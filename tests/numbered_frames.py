"""A small project of videos whose frames tell their number: what the tests of shards and clips read."""

from pathlib import Path

import cv2
import numpy as np

from datasets.config import Project, load_project
from tests.test_annotations import own_project

LENGTHS = {"a.b c@!": 12, "x/[long]": 30, "one": 1, "nobody": 6}
WIDTH, HEIGHT = 64, 48


def draw_frame(number: int, at: int, width: int = WIDTH) -> np.ndarray:
    """A grey picture that tells its frame's number, with a white person at x = `at`."""
    frame = np.full((HEIGHT, width, 3), 20 + 5 * number, np.uint8)
    frame[10:40, at : at + 10] = 255
    return frame


def numbered_project(folder: Path) -> Project:
    """A project of videos of `LENGTHS`, folders of images, with one white person each but `nobody`."""
    videos = {}
    for k, (name, length) in enumerate(LENGTHS.items()):
        width = WIDTH + 16 * (name == "one")
        images = folder / "videos" / name
        images.mkdir(parents=True)
        for i in range(length):
            cv2.imwrite(str(images / f"{i}.png"), draw_frame(i, 4 + i, width))
        boxes = [[4 + i, 10, 14 + i, 40] for i in range(length)]
        tubes = [
            {"label": k % 2, "person_id": 5, "frames": list(range(length)), "boxes": boxes},
            {"label": 1, "person_id": 5, "frames": [0], "boxes": boxes[:1]},
        ]
        tubes = [] if name == "nobody" else tubes
        videos[name] = {"width": width, "height": HEIGHT, "n_frames": length, "tubes": tubes}
    return load_project(own_project(folder, videos))
