"""Frozen models over the frames of many videos: the next batches are being computed while the last are written."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.distributed import rank
from utils.misc import progress
from utils.storage.tars import RowSpool
from utils.storage.video_cache import BadVideo

AHEAD = 2  # batches that a device has before it while the host is busy with an earlier one, of this video or the last
Item = TypeVar("Item")
Started = Iterator[tuple[int, Callable]]
"""A video's batches as they are started: how many frames each has, and a function that waits for what was found."""


def fetch_later(*parts: Tensor) -> Callable[[], list[np.ndarray]]:
    """Send tensors on their way to the host; the function waits until they are there, and gives them as arrays.

    A copy that is waited for at once would keep the next batch from being started.
    """
    device = parts[0].device
    if device.type != "cuda":
        return lambda: [part.numpy() for part in parts]
    held = [torch.empty(p.shape, dtype=p.dtype, pin_memory=True).copy_(p, non_blocking=True) for p in parts]
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(device))  # that of another GPU would tell nothing

    def fetch() -> list[np.ndarray]:
        there.synchronize()
        return [part.numpy() for part in held]

    return fetch


def held_back(items: Iterable[Item], n: int = AHEAD) -> Iterator[Item]:
    """The same items, each once `n` more have been drawn or there are no more; those held come before an error."""
    held: deque[Item] = deque()
    try:
        for item in items:
            held.append(item)
            if len(held) > n:
                yield held.popleft()
    except Exception:
        yield from held
        raise
    yield from held


def _steps(opened: Iterable, start: Callable) -> Iterator[tuple]:
    """(video, frames, function that waits for their rows) for each batch; at a video's end (video, 0, its BadVideo)."""
    for video in opened:
        bad = None
        try:
            for n_frames, fetch in start(video):
                yield video, n_frames, fetch
        except BadVideo as error:
            bad = error
        yield video, 0, bad


def found_in_videos(
    what: str,
    names: Sequence[str],
    opened: Iterable,
    start: Callable[..., Started],
    nothing: dict[str, np.ndarray],
    spool_of: Callable[[str], RowSpool],
) -> Iterator[tuple[object, dict]]:
    """What a model finds in each of the videos `names`, `opened` one after another: for `utils.storage.video_cache`.

    `start(video)` starts the model on its batches, and its functions give rows, a mapping from name to array, which are
    appended to the video's spool; `nothing` is such rows without any. Yields each video when it is whole, with its
    `n_frames`, and where it could not be used `bad`, which says why. `what` stands beside the progress bar.
    """
    spool, n_frames, done = None, 0, 0
    with progress(desc=what, unit="frame", disable=rank() != 0) as bar:
        for video, n, found in held_back(_steps(opened, start)):
            if spool is None or isinstance(found, BadVideo):
                spool, n_frames = spool_of(video.name), 0
                spool.append(nothing)
            if callable(found):
                spool.append(found())
                n_frames += n
                bar.update(n)
                continue
            done += 1
            bar.set_postfix_str(f"video {done}/{len(names)}", refresh=False)  # shown with the next line
            yield video, {"n_frames": n_frames} | ({"bad": str(found)} if found else {})
            spool = None
