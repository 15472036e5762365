"""Frames a second that a query cache is made at when DETR costs nothing, against decoding the same videos alone.

A GPU that is faster than that waits for the host. Decoding runs in `THREADS` threads in both cases, and
what the host does beside it (taking the people out, writing each video) in one more.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import Row, one_thread, seconds, show
from datasets.config import load_project
from datasets.frame_batches import SubsetVideos
from datasets.synthetic.videos import make_synthetic
from models.detectors import Detections
from models.frozen import Started
from models.person_queries import cache_queries

SIZE, IMAGE_SIZE, BATCH, PEOPLE, D, THREADS = (320, 240), 512, 32, 10, 256, 2
LENGTHS = {"JHMDB's": (60, (15, 40)), "UCF101-24's": (12, (100, 250))}  # videos and their frames


class NoDetector:
    """Stands for `models.detectors.Detector`: finds people at once, the same in every frame."""

    key, frame_size, batch_size, d, device = "none", IMAGE_SIZE, BATCH, D, torch.device("cpu")

    def start(self, batches: Iterable[Tensor], size: tuple[int, int], floor: float) -> Started:
        """`PEOPLE` queries a frame, without a look at it."""
        first = 0
        for images in batches:
            frame = np.repeat(np.arange(first, first + len(images)), PEOPLE)
            boxes, queries = np.ones((len(frame), 4), np.float32), np.ones((len(frame), D), np.float32)
            detections = Detections(frame, np.ones(len(frame), np.float32), boxes, queries)
            yield len(images), lambda detections=detections: detections
            first += len(images)


def _decode(videos: SubsetVideos) -> int:
    opened = videos.open(list(videos.paths), IMAGE_SIZE, BATCH, False)
    return sum(len(batch) for video in opened for batch in video.batches)


def _cache(videos: SubsetVideos) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        cache_queries(Path(folder), videos, NoDetector(), 0.5)


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    rows = []
    cv2.setNumThreads(0)
    for name, (n, length) in LENGTHS.items():
        with one_thread(), tempfile.TemporaryDirectory() as folder:
            make_synthetic(Path(folder, "synthetic"), n, 1, *SIZE, length)
            videos = SubsetVideos(load_project("synthetic", folder), "train", THREADS)
            frames = _decode(videos)
            cached, decoded = (frames / seconds(partial(what, videos)) for what in (_cache, _decode))
        what = f"query cache but for DETR, videos of {name} lengths, {THREADS} decoding threads / decoding alone"
        rows.append(Row(what, cached, decoded, "frames/s"))
    return rows


if __name__ == "__main__":
    show(__doc__, measure)
