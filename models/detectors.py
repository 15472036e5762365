"""Frozen detectors on frames: `Detector`, and one class for each kind, which `open_detector` chooses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models import hf_detector
from models.detr import PERSON, for_inference, normalize, pad_square
from models.frozen import Started, fetch_later
from models.weights import build_detr, dilation_is_unknown, read_detector, weights_hash
from utils.box_ops import box_cxcywh_to_xyxy
from utils.misc import InputError, counted


class Settings(NamedTuple):
    """How a detector is used; 0, False and None leave it to the detector. `query_layer`: decoder layer of the query
    vectors, from 1; `person_label`: its label of people; `amp`: a dtype (bfloat16, float16) or None; `batch_size`:
    frames that go through it at a time."""

    image_size: int = 0
    square: bool = False
    query_layer: int | None = None
    person_label: int | str | None = None
    amp: torch.dtype | None = None
    batch_size: int = 8


class Detections(NamedTuple):
    """The detections of a run of frames: `frames` int64 (M,) non-decreasing, person `scores` float32 (M,), `boxes`
    float32 (M, 4) xyxy in pixels of the original frame, `queries` float32 (M, d) of a decoder layer, and where that is
    known `slots` int64 (M,), which of its frame's queries each is."""

    frames: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    queries: np.ndarray
    slots: np.ndarray | None = None


class Detector(ABC):
    """A frozen detector, ready for inference.

    Attributes:
        source: the name or path that it was opened by.
        detr: the module: images and mask of `prepare` -> a dict of `pred_boxes` (b, N, 4) cxcywh from 0 to 1, `queries`
            (b, N, d) and what `scores` takes.
        weights: a checksum. key: names weights, and all settings that change a number.
        d: width of queries. n_layers: decoder layers. image_size, square, query_layer, person_label: as it is used.
        frame_size: longer side that frames are resized to before `prepare`; 0: as they are.
        batch_size: frames that go through it at a time.
    """

    def __init__(self, source: str, device: torch.device, settings: Settings) -> None:
        self.source, self.device, self.batch_size = source, device, settings.batch_size

    @abstractmethod
    def prepare(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames uint8 (b, 3, H, W), `mask` (b, H, W) True on padding -> images float (b, 3, h, w) and their mask."""

    @abstractmethod
    def scores(self, out: dict) -> Tensor:
        """Outputs of `detr` -> person scores (b, N)."""

    def config(self) -> dict:
        """What a later stage needs to find the same detector: its file, what its weights are, and how it is used."""
        names = ("source", "weights", "square", "query_layer", "person_label", "key", "image_size")
        return {name: getattr(self, name) for name in names}

    def inputs(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Frames uint8 (b, 3, H, W), `mask` (b, H, W) True on padding, as `detr` takes them, on its device."""
        return self.prepare(images.to(self.device, non_blocking=True), mask)

    @torch.inference_mode()
    def backbone(self, images: Tensor) -> Tensor:
        """Features of images uint8 (b, 3, H, W) before the transformer: float32 (b, c, h, w)."""
        dtype = self.detr.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.detr.backbone(self.inputs(images)[0]).float()

    @torch.inference_mode()
    def launch(self, images: Tensor, mask: Tensor | None = None) -> Callable[[], list[np.ndarray]]:
        """Start a batch uint8 (b, 3, H, W); the function waits for its person scores (b, N), boxes (b, N, 4) xyxy from
        0 to 1, and queries (b, N, d). Nothing in here may make the host wait."""
        out = self.detr(*self.inputs(images, mask))
        return fetch_later(self.scores(out), box_cxcywh_to_xyxy(out["pred_boxes"]), out["queries"])

    def on_batch(self, images: Tensor, mask: Tensor | None, floor: float) -> Detections:
        """The detections of a training batch uint8 (N, 3, H, W), `mask` (N, H, W) True on padding, with a person score
        of at least `floor`; `frames` index the batch, `boxes` xyxy from 0 to 1, as the batch's targets are."""
        return _collect(self.launch(images, mask), 0, (1, 1), floor)

    def start(self, batches: Iterable[Tensor], size: tuple[int, int], floor: float) -> Started:
        """Start on one video's frames, batches uint8 (b, 3, H, W) in order: how many each batch has, and a function
        that waits for its `Detections` with a person score of at least `floor`.

        `size` (width, height) in pixels of the original frame. Frames count from 0.
        """
        first = 0
        for images in batches:
            scale = size
            if self.square:  # what the square's sides are in pixels of the original frame
                scale = [max(images.shape[2:]) * n / m for n, m in zip(size, images.shape[:1:-1], strict=True)]
            yield len(images), partial(_collect, self.launch(images), first, scale, floor)
            first += len(images)


def _collect(fetch: Callable, first: int, size: Sequence[float], floor: float) -> Detections:
    """The detections that `fetch` waits for: frames count from `first`, boxes in pixels of `size` (width, height)."""
    scores, boxes, queries = fetch()
    frame, query = np.nonzero(scores >= floor)
    in_pixels = boxes[frame, query] * np.float32([*size, *size])
    return Detections(frame + first, scores[frame, query], in_pixels, queries[frame, query], query)


class DETRDetector(Detector):
    """DETR, of the official release or trained by this project."""

    def __init__(self, source: str, path: Path, checkpoint: object, device: torch.device, settings: Settings) -> None:
        super().__init__(source, device, settings)
        detr, config = build_detr(path, checkpoint, device, settings.person_label)
        self.d, self.n_layers, self.person_label = config["hidden_dim"], config["dec_layers"], config["person_label"]
        self.query_layer = detr.query_layer = _layer(settings, self.n_layers, path)
        self.image_size = self.frame_size = settings.image_size or config["image_size"]
        self.square = settings.square or config["pad_square"]
        self.weights = weights_hash(detr.state_dict()) + "-undilated" * dilation_is_unknown(path, checkpoint)
        changed = "-square" * self.square + f"-layer{self.query_layer}" * (self.query_layer != self.n_layers)
        changed += f"-person{self.person_label}" * (self.person_label != PERSON)
        self.key = f"{self.weights}-{self.image_size}{changed}{_amp(settings)}"
        self.detr = for_inference(detr, settings.amp)

    def prepare(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return normalize(pad_square(images) if self.square else images), mask

    def scores(self, out: dict) -> Tensor:
        return out["pred_logits"].softmax(-1)[..., self.person_label]


class LibraryDetector(Detector):
    """A detector of `transformers`: by its name (`checkpoint` None), or out of a checkpoint of this project."""

    frame_size, square = 0, False

    def __init__(
        self, source: str, path: str | Path, checkpoint: object, device: torch.device, settings: Settings
    ) -> None:
        super().__init__(source, device, settings)
        name = str(path)
        if settings.square:
            reason = f"{name} is given frames as its own image processor says"
            raise InputError(f"--pad_square: {reason}; leave the flag out")
        detr = hf_detector.load(name, checkpoint, device, settings.image_size, settings.person_label)
        self.d, self.n_layers, self.person_label = detr.d, detr.n_layers, detr.person_label
        self.query_layer = _layer(settings, self.n_layers, name)
        if self.query_layer != self.n_layers:
            detr.take_layer(self.query_layer)
        self.image_size, self.weights = settings.image_size, weights_hash(detr.model.state_dict())
        changed = f"-person{self.person_label}" + f"-layer{self.query_layer}" * (self.query_layer != self.n_layers)
        self.key = f"{self.weights}-{detr.settings_key()}{changed}{_amp(settings)}"
        self.detr = hf_detector.for_inference(detr, settings.amp)

    def prepare(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.detr.prepare(images, mask)

    def scores(self, out: dict) -> Tensor:
        return out["scores"]


def _amp(settings: Settings) -> str:
    return "" if settings.amp is None else f"-{str(settings.amp).removeprefix('torch.')}"


def _layer(settings: Settings, n_layers: int, name: str | Path) -> int:
    if (settings.query_layer or n_layers) > n_layers:
        raise InputError(f"--query_layer {settings.query_layer}: {name} has {counted(n_layers, 'decoder layer')}")
    return settings.query_layer or n_layers


def open_detector(
    source: str | Path,
    device: torch.device,
    checkpoint_root: str | Path = "checkpoint",
    compiled: bool = False,
    **settings: Any,
) -> Detector:
    """The detector that `source` names, `hf:<name or folder>` or as in `models.weights.read_detector`; `settings` are
    the fields of `Settings`."""
    path, checkpoint = (source, None) if is_hf(source) else read_detector(source, checkpoint_root)
    kind = LibraryDetector if is_hf(source) or hf_detector.holds_hf(checkpoint) else DETRDetector
    detector = kind(str(source), path, checkpoint, device, Settings(**settings))
    if compiled:
        detector.detr.compile()
    return detector


def is_hf(source: str | Path) -> bool:
    """Whether `source` names a detector of `transformers`."""
    return str(source).startswith(hf_detector.PREFIX)
