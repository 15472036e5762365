"""Features of whole frames, for the action heads that ask with them: X3D-XS, or DETR's backbone."""

from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.frozen import Started, fetch_later, found_in_videos
from models.person_queries import Detector, Videos, batch_size, detector_of
from models.weights import weights_hash
from models.x3d import X3D_FRAMES, X3D_SIZE, X3D_STRIDE, X3D_WIDTH, load_x3d, normalize_x3d
from utils.misc import InputError
from utils.storage.tars import RowSpool, TarStore
from utils.storage.tracks import LinkedPerson
from utils.storage.video_cache import video_cache

FRAME_KINDS = ("x3d", "res")  # of action heads


def _rows_later(features: Tensor) -> Callable[[], dict[str, np.ndarray]]:
    fetch = fetch_later(features)
    return lambda: {"features": fetch()[0]}


class BackboneFeatures:
    """DETR's backbone features, averaged over the picture: (b, 3, H, W) uint8 -> (b, c)."""

    def __init__(self, detector: Detector) -> None:
        self.key, self.device = f"res-{detector.key}", detector.device
        self.image_size, self.batch_size = detector.image_size, detector.batch_size
        self.width, self._detector = detector.detr.backbone[0].num_channels, detector

    def start(self, batches: Iterable[Tensor]) -> Started:
        """Start on one video's frames, in order: how many each batch has, and a function that waits for their
        `features`, float32 (b, width), in a dict."""
        for images in batches:
            yield len(images), _rows_later(self._detector.backbone(images).mean((2, 3)))


class X3DFeatures:
    """X3D-XS after its pool, a clip around each frame: (b, 3, H, W) uint8 -> (b, 2048).

    `clip` "centre": the clip's `X3D_FRAMES` frames, `X3D_STRIDE` apart, lie around the frame, and stop at the video's
    ends; "repeat": the frame itself, repeated. Whole pictures, squeezed to `X3D_SIZE` pixels square.
    """

    def __init__(
        self, weights: str | None, clip: str, device: torch.device, checkpoint_root: str | Path, batch_size: int = 8
    ) -> None:
        self.model = load_x3d(weights, checkpoint_root, device)
        self.key = f"x3d-{clip}-{weights_hash(self.model.state_dict())}"
        self.device, self.image_size, self.batch_size, self.width = device, 0, batch_size, X3D_WIDTH
        steps = np.arange(X3D_FRAMES) - (X3D_FRAMES - 1) / 2
        self.offsets = (steps * (X3D_STRIDE if clip == "centre" else 0)).astype(int).tolist()

    @torch.inference_mode()
    def start(self, batches: Iterable[Tensor]) -> Started:
        """Start on one video's frames, in order: how many each run of them has, and a function that waits for their
        `features`, float32 (b, width), in a dict. Holds no more frames than a clip spans."""
        size = (X3D_SIZE, X3D_SIZE)
        held: deque[Tensor] = deque()  # frames `first`, `first + 1`, ...
        first = done = read = 0

        def ready(limit: int) -> Started:
            nonlocal first, done
            while done < limit:
                stop = min(done + self.batch_size, limit)
                clips = []
                for t in range(done, stop):
                    places = np.clip(np.add(t, self.offsets), 0, read - 1).tolist()
                    clips.append(torch.stack([held[place - first] for place in places], 1))
                yield stop - done, _rows_later(self.model.features(torch.stack(clips)).float())
                done = stop
                while first < done + self.offsets[0]:
                    held.popleft()
                    first += 1

        for images in batches:
            pictures = images.to(self.device, non_blocking=True).float()
            small = F.interpolate(pictures, size, mode="bilinear", antialias=True)
            held.extend(normalize_x3d(small.round().clamp(0, 255).to(torch.uint8)))
            read += len(images)
            yield from ready(read - self.offsets[-1])
        yield from ready(read)


def cache_features(folder: Path, videos: Videos, extractor: BackboneFeatures | X3DFeatures) -> TarStore:
    """The tar of a subset's frame features, `features` float32 (n_frames, width) a video; made where it is missing."""

    def make(names: Sequence[str], spool_of: Callable[[str], RowSpool]) -> Iterator[tuple[str, dict]]:
        opened = videos.open(names, extractor.image_size, extractor.batch_size, extractor.device.type == "cuda")
        what = f"{extractor.key.split('-')[0]} over {videos.subset}"
        nothing = {"features": np.zeros((0, extractor.width), np.float32)}
        for video, meta in found_in_videos(what, names, opened, start, nothing, spool_of):
            yield video.name, meta

    def start(video: Any) -> Started:
        return extractor.start(video.batches)

    path = Path(folder) / f"{videos.subset}-{extractor.key}.tar"
    settings = {"extractor": extractor.key}
    return video_cache(path, videos.sources(), make, settings, "cache of frame features", videos.skip_bad)


def frame_extractor(kind: str, args: Namespace, device: torch.device, detector: dict) -> BackboneFeatures | X3DFeatures:
    """What gives the features that a head of this kind ("x3d" or "res") needs; `detector` as `Detector.config()`."""
    if kind == "res":
        return BackboneFeatures(detector_of(args, device, detector))
    return X3DFeatures(args.x3d_weights, args.x3d_clip, device, args.checkpoint_root, batch_size(args, device))


def features_of_people(
    folder: Path, videos: Videos, extractor: BackboneFeatures | X3DFeatures
) -> Callable[[LinkedPerson], np.ndarray]:
    """A function that gives the features of a person's frames, float32 (T, width), out of the subset's cache."""
    store = cache_features(folder, videos, extractor)

    def features_of(person: LinkedPerson) -> np.ndarray:
        if person.video in store.bad:  # it could still be read when its people were followed
            raise InputError(f"{store.bad[person.video]}; repair it, and follow its people again with eval_qmm.py")
        return store.arrays(person.video)["features"][person.frames]

    return features_of
