"""Tracks in padded batches: what the action head trains on."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from utils.box_ops import Track
from utils.misc import checksum
from utils.storage.tracks import TrackStore


class TrackBatches:
    """The tracks of a subset; `len` is their number. Query vectors are read where they are used.

    Tracks without a label in any frame are left out: nothing is known about them.

    `features_of(track)`, if any, gives the features of a track's frames, float32 (T, f), for heads that need them.
    """

    def __init__(self, store: TrackStore, seed: int) -> None:
        self.store, self.seed = store, seed
        self.features_of: Callable[[Track], np.ndarray] | None = None
        self.tracks = [track for track in store if track.labels.max() > (0 if track.labels.ndim == 2 else -1)]

    def __len__(self) -> int:
        return len(self.tracks)

    def checksum(self) -> str:
        """A checksum of the tracks' frames, boxes and labels, for a resumed run."""
        return checksum(*(part for t in self.tracks for part in (t.video, t.frames, t.boxes, t.labels)))

    def chunks(self, which: Sequence[int], n: int, max_frames: float = math.inf) -> list[list[Track]]:
        """The tracks `which` in chunks, sorted by length so that little is padding.

        Args:
            which: indices of tracks.
            n: number of chunks, of like numbers of tracks; the last are empty where there are fewer tracks.
            max_frames: most frames of a chunk, padding included: where that takes more chunks, there are more. A longer
                track is a chunk by itself.
        """
        tracks = sorted((self.tracks[i] for i in which), key=len)
        chunks: list[list[Track]] = []
        for part in np.array_split(np.arange(len(tracks)), n):
            chunks.append([])
            for track in (tracks[i] for i in part):
                if chunks[-1] and (len(chunks[-1]) + 1) * len(track) > max_frames:  # the others are padded to this one
                    chunks.append([])
                chunks[-1].append(track)
        return chunks

    def batch(self, tracks: Sequence[Track]) -> dict[str, Tensor | None]:
        """Tracks padded to the longest: `queries` float32 (B, T, d), `times` int64 (B, T) since each one's first frame,
        `labels` int64 (B, T) or uint8 (B, T, C), `padding` bool (B, T) True on padding, `features` float32 (B, T, f) or
        None."""

        def padded(parts: list[np.ndarray]) -> Tensor:
            return pad_sequence([torch.from_numpy(part) for part in parts], batch_first=True)

        lengths = torch.tensor([len(track) for track in tracks])
        return {
            "queries": padded([self.store.queries(track) for track in tracks]),
            "times": padded([track.frames - track.frames[0] for track in tracks]),
            "labels": padded([track.labels for track in tracks]),
            "padding": torch.arange(int(lengths.max())) >= lengths[:, None],
            "features": None if self.features_of is None else padded([self.features_of(track) for track in tracks]),
        }
