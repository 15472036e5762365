"""The frames of many videos in batches, decoded ahead by threads: what the frozen models read."""

import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.annotations import annotated_boxes
from datasets.dataset import VideoFrames
from datasets.transforms import choose_erased, erase, resize
from utils.gt_tubes import tubes_checksum
from utils.misc import InputError, checksum, rng
from utils.storage.video_cache import BadVideo

if TYPE_CHECKING:
    from datasets.annotations import Video
    from datasets.config import Project

AHEAD = 3  # batches of a video that wait for the model
VIEWS = ("plain", "mirrored", "erased")  # a subset's frames as they are; mirrored; one of several people painted over
BLOCK = 2**16  # bytes of a file's start, middle and end that `measure` reads: little, as videos may lie on a network
END = object()


class Ahead(Iterator):
    """Iterates over `items` in a thread of its own, `AHEAD` items ahead of the reader, who gets its errors too."""

    def __init__(self, items: Iterable) -> None:
        self._items, self._thread = iter(items), ThreadPoolExecutor(1, "ahead")
        self._waiting = deque(self._thread.submit(next, self._items, END) for _ in range(AHEAD))

    def __next__(self) -> Any:
        item = self._waiting[0].result()  # an error stays the next item
        if item is END:
            raise StopIteration
        self._waiting.append(self._thread.submit(next, self._items, END))
        self._waiting.popleft()
        return item

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def batches(frames: Iterable[np.ndarray], image_size: int, batch_size: int, pin: bool = False) -> Iterator[Tensor]:
    """Frames, uint8 RGB (H, W, 3) of one size, in batches uint8 (b, 3, H', W'), channels last in memory.

    Args:
        image_size: longer side that they are resized to; 0: as they are.
        pin: in pinned memory, from which copies to a GPU run beside its work.
    """
    resized = (resize(frame, image_size) if image_size else frame for frame in frames)
    while group := list(islice(resized, batch_size)):
        images = torch.empty((len(group), *group[0].shape), dtype=torch.uint8, pin_memory=pin)
        np.stack(group, out=images.numpy())
        yield images.permute(0, 3, 1, 2)


class VideoBatches(NamedTuple):
    """A video's `name`, `size` (width, height) in pixels, `fps`, and its frames as `batches` gives them, which raise
    InputError where the video cannot be used."""

    name: str
    size: tuple[int, int]
    fps: float
    batches: Iterator[Tensor]


class SubsetVideos:
    """The videos of a project's subset, in its order: what a frozen model goes through once.

    Attributes:
        paths: file or folder of each video's name.
        bad: with `skip_bad`, the names that lead out of the data's folder, and why they are left out.
        workers: how many videos decode at a time.
        view: an entry of `VIEWS`; where it is "erased", `annotations` say who may be painted over.
    """

    def __init__(
        self,
        project: "Project",
        subset: str,
        workers: int = 1,
        skip_bad: bool = False,
        view: str = "plain",
        annotations: "Mapping[str, Video] | None" = None,
    ) -> None:
        self.subset, self.workers, self.skip_bad, self.sampling = subset, workers, skip_bad, project.sampling
        self.view, self.annotations = view, dict(annotations) if view == "erased" else {}
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
        """Each video's `measure`, followed by a checksum of the frames used where these are not all, and of the
        annotation where people are erased by it."""
        sampled = [] if self.sampling.all_frames else [int(checksum(repr(self.sampling)), 16)]
        erased = {name: [tubes_checksum(video.tubes, True)] for name, video in self.annotations.items()}
        return {name: measure(path) + sampled + erased.get(name, []) for name, path in self.paths.items()}

    def open(self, names: Sequence[str], image_size: int, batch_size: int, pin: bool) -> Iterator[VideoBatches]:
        """Open these videos in order, `workers` of them decoding at a time. Memory does not grow with a video's length.

        Arguments as for `batches`. A video's batches must be read before the next video. Of a video that cannot be used
        they raise InputError, or with `skip_bad` BadVideo, after which the next video follows.
        """
        waiting, decoding = deque(names), deque()
        try:
            while waiting or decoding:
                while waiting and len(decoding) < max(self.workers, 1):
                    name = waiting.popleft()
                    decoding.append((name, Ahead(self._decode(name, image_size, batch_size, pin))))
                name, items = decoding[0]
                try:
                    size, fps = next(items)
                except BadVideo:  # which the batches raise again
                    size, fps = (0, 0), 0.0
                yield VideoBatches(name, size, fps, items)
                items.close()
                decoding.popleft()
        finally:
            for _, items in decoding:
                items.close()

    def _decode(self, name: str, image_size: int, batch_size: int, pin: bool) -> Iterator[tuple | Tensor]:
        """A video's size and rate, and then its batches."""
        try:
            frames = VideoFrames(self.paths[name], self.sampling)
            yield frames.size, frames.fps
            shown = (cv2.flip(frame, 1) for frame in frames) if self.view == "mirrored" else frames
            if name in self.annotations:
                shown = erase_people(frames, self.annotations[name])
            yield from batches(shown, image_size, batch_size, pin)
        except InputError as error:
            raise (BadVideo if self.skip_bad else InputError)(str(error)) from None


def erase_people(frames: Iterable[np.ndarray], video: "Video") -> Iterator[np.ndarray]:
    """Frames, uint8 (H, W, 3), with one of several annotated people painted over, in every run the same one."""
    numbers, boxes, _ = annotated_boxes(video)
    draw = rng(zlib.crc32(video.name.encode()))
    for number, frame in enumerate(frames):
        in_frame = boxes[slice(*np.searchsorted(numbers, [number, number + 1]))]
        row = choose_erased(in_frame, draw)
        if row >= 0:
            frame = frame.copy()
            erase(frame, in_frame[row])
        yield frame


def measure(path: Path) -> list[int]:
    """What tells one version of a video from another: number of files, bytes in all, and a checksum.

    The checksum is of a video file's start, middle and end; of a folder's names and sizes, and so much of its first,
    middle and last file. Not of times, which a copy changes. A video that cannot be read has [1, 0, 0].
    """
    try:
        if not path.is_dir():
            return [1, path.stat().st_size, _crc_of_blocks(path)] if path.is_file() else [1, 0, 0]
        files = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(path) if entry.is_file())
        crc = zlib.crc32(repr(files).encode())
        for number in sorted({0, len(files) // 2, len(files) - 1}) if files else ():
            crc = _crc_of_blocks(path / files[number][0], crc)
        return [len(files), sum(size for _, size in files), crc]
    except OSError:  # who opens the video says what is wrong with it
        return [1, 0, 0]


def _crc_of_blocks(path: Path, crc: int = 0) -> int:
    """crc32 of a file's start, middle and end, going on from `crc`."""
    with path.open("rb", buffering=0) as file:
        last = max(os.fstat(file.fileno()).st_size - BLOCK, 0)
        for at in sorted({0, last // 2, last}):
            crc = zlib.crc32(os.pread(file.fileno(), BLOCK, at), crc)
    return crc
