"""The frames of many videos in batches, decoded ahead by threads: what the frozen models read."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from datasets.dataset import VideoFrames
from datasets.sampling import ALL_FRAMES, Sampling
from datasets.transforms import resize
from utils.misc import InputError, checksum
from utils.storage.video_cache import BadVideo

if TYPE_CHECKING:
    from datasets.config import Project

AHEAD = 3  # batches of a video that wait for the model
Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Iterates over `items` in a thread of its own, up to `n` items ahead of the reader, who gets its errors too.

    `close` ends the thread.
    """

    def __init__(self, items: Iterable[Item], n: int = AHEAD) -> None:
        self._queue: Queue = Queue(n)
        self._closed, self._end = Event(), None
        self._thread = Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[Item]) -> None:
        end: BaseException = StopIteration()
        try:
            for item in items:
                self._put((item, None))
                if self._closed.is_set():
                    return
        except BaseException as error:  # the reader's to handle
            end = error
        self._put((None, end))

    def _put(self, item: tuple[Item | None, BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except Full:
                continue
        return None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._end is None:
            item, self._end = self._queue.get()
        if self._end is not None:
            raise self._end
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


def batches(frames: Iterable[np.ndarray], image_size: int, batch_size: int, pin: bool = False) -> Iterator[Tensor]:
    """Frames in batches.

    Args:
        frames: uint8 RGB (H, W, 3), all of one size.
        image_size: longer side that they are resized to; 0: as they are.
        batch_size: frames of a batch; the last one may have fewer.
        pin: in pinned memory, from which copies to a GPU run beside its work.

    Yields:
        uint8 (b, 3, H', W'), channels last in memory.
    """
    group: list[np.ndarray] = []
    for frame in frames:
        group.append(resize(frame, image_size) if image_size else frame)
        if len(group) == batch_size:
            yield _stack(group, pin)
            group = []
    if group:
        yield _stack(group, pin)


def _stack(group: list[np.ndarray], pin: bool) -> Tensor:
    images = torch.empty((len(group), *group[0].shape), dtype=torch.uint8, pin_memory=pin)
    np.stack(group, out=images.numpy())
    return images.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class VideoBatches:
    """A video's `name`, `size` (width, height) in pixels, `fps`, and its frames as `batches` gives them, which raise
    where the video cannot be used."""

    name: str
    size: tuple[int, int]
    fps: float
    batches: Iterator[Tensor]


def open_videos(
    paths: Sequence[tuple[str, Path]],
    image_size: int,
    batch_size: int,
    workers: int = 1,
    pin: bool = False,
    skip_bad: bool = False,
    sampling: Sampling = ALL_FRAMES,
) -> Iterator[VideoBatches]:
    """Open videos in order, `workers` of them decoding at a time. Memory does not grow with a video's length.

    Args:
        paths: (name, file or folder) of each video.
        image_size, batch_size, pin: as for `batches`.
        workers: threads, each of which decodes a video.
        skip_bad: a video that cannot be used raises BadVideo from its batches, and the next one follows.
        sampling: which of the frames are read.

    Yields:
        Each video; its batches must be read before the next video.

    Raises:
        InputError: a video cannot be used.
    """
    waiting = deque(paths)
    decoding: deque[tuple[str, Ahead]] = deque()
    try:
        while waiting or decoding:
            while waiting and len(decoding) < max(workers, 1):
                name, path = waiting.popleft()
                frames = partial(VideoFrames, path, sampling)
                decoding.append((name, Ahead(_header_and_batches(frames, image_size, batch_size, pin))))
            name, items = decoding[0]
            size, fps = (0, 0), 0.0
            try:
                size, fps = next(items)
            except InputError:
                if not skip_bad:
                    raise
            yield VideoBatches(name, size, fps, _as_bad_video(items) if skip_bad else items)
            items.close()
            decoding.popleft()
    finally:
        for _, items in decoding:
            items.close()


def _header_and_batches(
    open_video: Callable[[], VideoFrames], image_size: int, batch_size: int, pin: bool
) -> Iterator[tuple | Tensor]:
    frames = open_video()
    yield frames.size, frames.fps
    yield from batches(frames, image_size, batch_size, pin)


def _as_bad_video(items: Iterator[Tensor]) -> Iterator[Tensor]:
    try:
        yield from items
    except InputError as error:
        raise BadVideo(str(error)) from None


class SubsetVideos:
    """The videos of a project's subset, in its order: what a frozen model goes through once.

    Attributes:
        paths: file or folder of each video's name.
        bad: with `skip_bad`, the names that lead out of the data's folder, and why they are left out.
        workers: how many videos decode at a time.
    """

    def __init__(self, project: "Project", subset: str, workers: int = 1, skip_bad: bool = False) -> None:
        self.subset, self.workers, self.skip_bad, self.sampling = subset, workers, skip_bad, project.sampling
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
        """What tells one version of a video's file from another: number of files and bytes in all, and, where not all
        frames are used, a checksum of which."""
        sampled = [] if self.sampling.all_frames else [int(checksum(repr(self.sampling)), 16)]
        return {name: _measure(path) + sampled for name, path in self.paths.items()}

    def open(self, names: Sequence[str], image_size: int, batch_size: int, pin: bool) -> Iterator[VideoBatches]:
        """These videos in batches; see `open_videos`."""
        paths = [(name, self.paths[name]) for name in names]
        return open_videos(paths, image_size, batch_size, self.workers, pin, self.skip_bad, self.sampling)


def _measure(path: Path) -> list[int]:
    if path.is_dir():
        with os.scandir(path) as entries:
            sizes = [entry.stat().st_size for entry in entries if entry.is_file()]
        return [len(sizes), sum(sizes)]
    return [1, path.stat().st_size if path.is_file() else 0]
