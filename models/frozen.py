"""Frozen models over the frames of many videos: the next batches are computed while the last are being written."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.distributed import rank
from utils.misc import progress
from utils.storage.video_cache import BadVideo

AHEAD = 2  # batches that wait on the device while the host is busy with an earlier one, of this video or the last
Item = TypeVar("Item")
Started = Iterator[tuple[int, Callable]]
"""A video's batches as they are started: how many frames each has, and a function that waits for its outputs."""


def fetch_later(*parts: Tensor) -> Callable[[], list[np.ndarray]]:
    """Start to copy tensors to the host. The function waits for the copies and gives them as arrays.

    A copy that is waited for at once would keep the next batch from being started.
    """
    device = parts[0].device
    if device.type != "cuda":
        return lambda: [part.numpy() for part in parts]
    copies = [torch.empty(p.shape, dtype=p.dtype, pin_memory=True).copy_(p, non_blocking=True) for p in parts]
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))  # not that of the current GPU, which may be another one

    def fetch() -> list[np.ndarray]:
        arrived.synchronize()
        return [part.numpy() for part in copies]

    return fetch


def run_ahead(items: Iterable[Item], n: int = AHEAD) -> Iterator[Item]:
    """Yield the items in order, each once `n` more have been drawn. Items drawn before an error still come."""
    waiting: deque[Item] = deque()
    try:
        for item in items:
            waiting.append(item)
            if len(waiting) > n:
                yield waiting.popleft()
    except Exception:
        yield from waiting
        raise
    yield from waiting


def run_frozen(
    what: str, names: Sequence[str], videos: Iterable, start: Callable[[Any], Started]
) -> Iterator[tuple[Any, Iterator[tuple[int, Any]]]]:
    """Run a frozen model over videos and yield each with its batches, (number of frames, outputs).

    `start` starts the model on a video. `AHEAD` more batches, of this video or the next, are started before the outputs
    of one are waited for. A video's batches must be read before the next video; where it cannot be used, they raise
    BadVideo. The progress bar says `what` is done to the videos `names`.
    """
    with progress(desc=what, unit="frame", disable=rank() != 0 or not names) as bar:
        for done, (video, batches) in enumerate(groupby(run_ahead(_started(videos, start)), key=itemgetter(0)), 1):
            yield video, _outputs(batches, bar)
            bar.set_postfix_str(f"video {done}/{len(names)}", refresh=False)  # shown with the next line


def _started(videos: Iterable, start: Callable[[Any], Started]) -> Iterator[tuple]:
    """(video, frames, function that waits for the outputs) of each batch; the last may be a BadVideo."""
    for video in videos:
        try:
            yield from ((video, *batch) for batch in start(video))
        except BadVideo as error:
            yield video, 0, error


def _outputs(batches: Iterable[tuple], bar: tqdm) -> Iterator[tuple[int, Any]]:
    for _, n_frames, fetch in batches:
        if isinstance(fetch, BadVideo):
            raise fetch
        yield n_frames, fetch()
        bar.update(n_frames)
