"""Features of whole frames, for the action heads that ask with them: X3D-XS, or DETR's backbone."""

import itertools
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.detectors import Detector
from models.detr import DETR
from models.frozen import Started, fetch_later, run_frozen
from models.person_queries import batch_size, detector_of
from models.weights import weights_hash
from models.x3d import X3D_FRAMES, X3D_SIZE, X3D_STRIDE, X3D_WIDTH, load_x3d, normalize_x3d
from utils.box_ops import Track
from utils.misc import InputError
from utils.storage.tars import TarStore
from utils.storage.video_cache import fill_cache

if TYPE_CHECKING:
    from datasets.frame_batches import SubsetVideos


class BackboneFeatures:
    """DETR's backbone features, averaged over the frame: (b, 3, H, W) uint8 -> (b, c)."""

    def __init__(self, detector: Detector) -> None:
        if not isinstance(detector.detr, DETR):
            raise InputError(f"{detector.source}: the backbone's features are those of DETR alone; use an x3d head")
        self.key, self.device = f"res-{detector.key}", detector.device
        self.image_size, self.batch_size = detector.frame_size, detector.batch_size
        self.width, self._detector = detector.detr.backbone[0].num_channels, detector

    def start(self, batches: Iterable[Tensor]) -> Started:
        """Start on one video's frames, in order: how many each batch has, and a function that waits for a list of their
        features, float32 (b, width), alone."""
        for images in batches:
            yield len(images), fetch_later(self._detector.backbone(images).mean((2, 3)))


class X3DFeatures:
    """X3D-XS after its pool, a clip around each frame: (b, 3, H, W) uint8 -> (b, 2048).

    `clip` "centre": the clip's `X3D_FRAMES` frames, `X3D_STRIDE` apart, lie around the frame, and stop at the video's
    ends; "repeat": the frame itself, repeated. Whole frames, squeezed to `X3D_SIZE` pixels square.
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
        """As `BackboneFeatures.start`, for runs of frames. Holds no more frames than a clip spans."""
        window: deque[Tensor] = deque()  # frames `first`, `first + 1`, ...
        first = done = read = 0
        for images in itertools.chain(batches, [None]):  # None: the video's end
            if images is not None:
                frames = images.to(self.device, non_blocking=True).float()
                small = F.interpolate(frames, (X3D_SIZE, X3D_SIZE), mode="bilinear", antialias=True)
                window.extend(normalize_x3d(small.round().clamp(0, 255).to(torch.uint8)))
                read += len(images)
            limit = read if images is None else read - self.offsets[-1]  # the clips before it are complete
            while done < limit:
                stop = min(done + self.batch_size, limit)
                indices = np.clip(np.arange(done, stop)[:, None] + self.offsets, 0, read - 1) - first
                clips = torch.stack([torch.stack([window[i] for i in clip], 1) for clip in indices.tolist()])
                yield stop - done, fetch_later(self.model.features(clips).float())
                done = stop
                while first < done + self.offsets[0]:
                    window.popleft()
                    first += 1


Extractor = BackboneFeatures | X3DFeatures


def frame_extractor(
    kind: str, args: Namespace, device: torch.device, detector: dict, trained_key: str | None = None
) -> Extractor:
    """The model of the features that a head of this `kind` ("x3d" or "res") needs; `detector` as `Detector.config()`.

    InputError where it has another key than `trained_key`, that of the features that a head was trained with.
    """
    if kind == "res":
        extractor = BackboneFeatures(detector_of(args, device, detector))
    else:
        n = batch_size(args, device)
        extractor = X3DFeatures(args.x3d_weights, args.x3d_clip, device, args.checkpoint_root, n)
    if trained_key not in (None, extractor.key):
        remedy = "repeat its --x3d_clip and --x3d_weights" if kind == "x3d" else "repeat its --amp and detector flags"
        reason = f"was trained with frame features {trained_key}, not {extractor.key}"
        raise InputError(f"the action head {reason}; {remedy}")
    return extractor


def features_of_tracks(folder: Path, videos: "SubsetVideos", extractor: Extractor) -> Callable[[Track], np.ndarray]:
    """A function that gives the features of a track's frames, float32 (T, width).

    They come from the subset's tar of frame features in `folder`, which is made first where it is missing.
    """
    path = Path(folder) / f"{videos.subset}-{extractor.key}.tar"
    sources = videos.sources()
    with fill_cache(path, sources, {"extractor": extractor.key}, videos.skip_bad, keep=True) as cache:
        opened = videos.open(cache.missing, extractor.image_size, extractor.batch_size, extractor.device.type == "cuda")
        what = f"{extractor.key.split('-')[0]} over {videos.subset}"
        for video, batches in run_frozen(what, cache.missing, opened, lambda video: extractor.start(video.batches)):
            with cache.sample(video.name) as sample:
                for _, (features,) in batches:
                    sample.append({"features": features})
    store = TarStore(path, "cache of frame features", sources)
    return lambda track: store.read(track.video, "features", track.frames)
