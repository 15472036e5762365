"""The frames of many videos in batches, decoded ahead by threads: what the frozen models read."""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue

import numpy as np
import torch
from torch import Tensor

from datasets.config import Project
from datasets.dataset import VideoFrames
from datasets.transforms import resize
from utils.misc import InputError
from utils.storage.video_cache import BadVideo

AHEAD = 3  # batches of a video that wait for the model


@dataclass(frozen=True)
class VideoBatches:
    """A video: its `name`, `size` (width, height) in pixels of the file, `fps`, and its frames in order as uint8 RGB
    (b, 3, H, W), channels last in memory, resized. Where a video cannot be used, `batches` raises."""

    name: str
    size: tuple[int, int]
    fps: float
    batches: Iterator[Tensor]


class _Decoder:
    """A thread that decodes one video, never more than `AHEAD` batches ahead."""

    def __init__(self, path: Path, image_size: int, batch_size: int, pin: bool) -> None:
        self.path, self.image_size, self.batch_size, self.pin = path, image_size, batch_size, pin
        self.queue: Queue = Queue(AHEAD)
        self.stopped = threading.Event()
        self.frames: VideoFrames | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _put(self, item: object) -> None:
        while not self.stopped.is_set():
            try:
                return self.queue.put(item, timeout=0.1)
            except Full:
                continue
        return None

    def _run(self) -> None:
        try:
            frames = VideoFrames(self.path)
            self._put(frames)
            group: list[np.ndarray] = []
            for frame in frames:
                if self.stopped.is_set():
                    return
                group.append(resize(frame, self.image_size) if self.image_size else frame)
                if len(group) == self.batch_size:
                    self._put(self._batch(group))
                    group = []
            if group:
                self._put(self._batch(group))
            self._put(None)
        except BaseException as error:  # handed to the reader, whose mistake or bug it is
            self._put(error)

    def _batch(self, group: list[np.ndarray]) -> Tensor:
        images = torch.empty((len(group), *group[0].shape), dtype=torch.uint8, pin_memory=self.pin)
        np.stack(group, out=images.numpy())
        return images.permute(0, 3, 1, 2)

    def get(self) -> object:
        item = self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def batches(self) -> Iterator[Tensor]:
        while (batch := self.get()) is not None:
            yield batch


def open_videos(
    paths: Sequence[tuple[str, Path]],
    image_size: int,
    batch_size: int,
    workers: int = 2,
    pin: bool = False,
    skip_bad: bool = False,
) -> Iterator[VideoBatches]:
    """The videos `(name, file or folder)` in order; `workers` of them decode at a time.

    Frames have their longer side `image_size` (0: as they are). The batches of one video must be read before
    the next video. Memory does not grow with a video's length. InputError, naming the file, for a damaged video;
    with `skip_bad` its batches raise BadVideo, and the next video follows.
    """
    left = deque(paths)
    ahead: deque[tuple[str, _Decoder]] = deque()
    try:
        while left or ahead:
            while left and len(ahead) < max(workers, 1):
                name, path = left.popleft()
                ahead.append((name, _Decoder(path, image_size, batch_size, pin)))
            name, decoder = ahead[0]
            try:
                frames = decoder.get()
                size, fps, batches = frames.size, frames.fps, decoder.batches()
            except InputError as error:
                if not skip_bad:
                    raise
                size, fps, batches = (0, 0), 0.0, _fail(error)
            yield VideoBatches(name, size, fps, _bad(batches) if skip_bad else batches)
            ahead.popleft()
    finally:
        for _, decoder in ahead:
            decoder.stopped.set()
        for _, decoder in ahead:
            decoder.thread.join()


def _fail(error: InputError) -> Iterator[Tensor]:
    raise error
    yield


def _bad(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    try:
        yield from batches
    except InputError as error:
        raise BadVideo(str(error)) from None


class SubsetVideos:
    """The videos of a project's subset, in its order: what a frozen model goes through once.

    `workers` of them decode at a time. InputError for a name that leads out of the data's folder; with `skip_bad` it
    is left out and entered in `bad` (name -> why), and the batches of a video that cannot be read raise BadVideo.
    """

    def __init__(self, project: Project, subset: str, workers: int = 2, skip_bad: bool = False) -> None:
        self.subset, self.workers, self.skip_bad = subset, workers, skip_bad
        self.paths: dict[str, Path] = {}
        self.bad: dict[str, str] = {}
        for name in project.split(subset):
            try:
                self.paths[name] = project.frames_path(name)
            except InputError as error:
                if not skip_bad:
                    raise
                self.bad[name] = str(error)

    def sources(self) -> dict[str, list[int]]:
        """What tells one version of a video's file from another: number of files and bytes in all."""
        return {name: _measure(path) for name, path in self.paths.items()}

    def open(self, names: Sequence[str], image_size: int, batch_size: int, pin: bool) -> Iterator[VideoBatches]:
        """These videos in batches; see `open_videos`."""
        paths = [(name, self.paths[name]) for name in names]
        return open_videos(paths, image_size, batch_size, self.workers, pin, self.skip_bad)


def _measure(path: Path) -> list[int]:
    if path.is_dir():
        with os.scandir(path) as entries:
            sizes = [entry.stat().st_size for entry in entries if entry.is_file()]
        return [len(sizes), sum(sizes)]
    return [1, path.stat().st_size if path.is_file() else 0]
