"""Frames -> person queries: the one place where DETR is run for the later stages."""

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from models.detr import PERSON, for_inference, normalize, pad_square
from models.frozen import Started, fetch_later, found_in_videos
from models.weights import OFFICIAL, checkpoint_path, load_detr, weights_hash
from utils.box_ops import box_cxcywh_to_xyxy, paired_iou
from utils.flags import DETECTOR_BATCH
from utils.misc import InputError, amp_type
from utils.storage.tars import Rows, RowSpool, TarStore
from utils.storage.video_cache import video_cache

FLOOR = 0.05  # person score down to which queries are kept: lower thresholds are hardly ever of use


class Videos(Protocol):
    """The videos of a subset: `sources` maps each name to what identifies its file; `open` yields for each of `names`
    its `name`, `size` (width, height), `fps` and `batches`, uint8 (b, 3, H, W), which raise BadVideo for one that
    cannot be used where such are to be left out, `skip_bad`."""

    subset: str
    skip_bad: bool

    def sources(self) -> dict[str, list[int]]: ...

    def open(self, names: Sequence[str], image_size: int, batch_size: int, pin: bool) -> Iterable: ...


class PersonQueries(NamedTuple):
    """What DETR says of a run of frames, flat: `frame` int64 (M,) rising, `scores` float32 (M,), `boxes` float32
    (M, 4) xyxy in pixels of the original frame, `queries` float32 (M, d) of the last decoder layer."""

    frame: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    queries: np.ndarray


class Detector:
    """A frozen DETR, ready for inference; `key` names its weights and settings, `image_size` the longer side it takes.

    `batch_size` frames go through it at a time. `source` as in `models.weights.load_detr`; `amp` a dtype (bfloat16,
    float16) or None; `image_size` 0 takes the size that the checkpoint was trained for; `square` pads frames to
    squares, which a checkpoint that was trained so asks for itself.
    """

    def __init__(
        self,
        source: str | Path,
        device: torch.device,
        checkpoint_root: str | Path = "checkpoint",
        amp: torch.dtype | None = None,
        compiled: bool = False,
        image_size: int = 0,
        batch_size: int = 8,
        square: bool = False,
    ) -> None:
        self.source, self.device, self.batch_size = str(source), device, batch_size
        detr, config = load_detr(source, checkpoint_root, device)
        self.weights = weights_hash(detr.state_dict())
        self.d = config["hidden_dim"]
        self.image_size = image_size or config["image_size"]
        self.square = square or config["pad_square"]
        kind = "" if amp is None else f"-{str(amp).removeprefix('torch.')}"
        self.key = f"{self.weights}-{self.image_size}{'-square' if self.square else ''}{kind}"
        self.detr = for_inference(detr, amp)
        if compiled:
            self.detr.compile()

    def config(self) -> dict:
        """What a later stage needs to find the same detector: its file, what its weights are, and the frames' form."""
        names = ("source", "weights", "image_size", "square", "key")
        return {name: getattr(self, name) for name in names}

    def _input(self, images: Tensor) -> Tensor:
        """uint8 frames (b, 3, H, W) as the network takes them."""
        images = images.to(self.device, non_blocking=True)
        return normalize(pad_square(images) if self.square else images)

    @torch.inference_mode()
    def backbone(self, images: Tensor) -> Tensor:
        """Features of images uint8 (b, 3, H, W) before the transformer: float32 (b, c, h, w)."""
        dtype = self.detr.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.detr.backbone(self._input(images)).float()

    @torch.inference_mode()
    def _launch(self, images: Tensor, mask: Tensor | None = None) -> Callable[[], list[np.ndarray]]:
        """Start a batch float (b, 3, H, W); the function waits for its person scores (b, N), boxes (b, N, 4) xyxy from
        0 to 1, and queries (b, N, d). Nothing in here may make the host wait."""
        out = self.detr(images, mask)
        scores = out["pred_logits"].softmax(-1)[..., PERSON]
        return fetch_later(scores, box_cxcywh_to_xyxy(out["pred_boxes"]), out["queries"])

    def on_batch(self, images: Tensor, mask: Tensor | None, floor: float) -> PersonQueries:
        """A training batch uint8 (N, 3, H, W), `mask` (N, H, W) True on padding -> its queries whose person score is at
        least `floor`; `frame` is the place in the batch, `boxes` are xyxy from 0 to 1, as the batch's targets are."""
        return _collect(self._launch(normalize(images), mask), 0, (1, 1), floor)

    def start(self, batches: Iterable[Tensor], size: tuple[int, int], floor: float) -> Started:
        """Start on one video's frames, batches uint8 (b, 3, H, W) in order: how many each batch has, and a function
        that waits for its queries whose person score is at least `floor`, `PersonQueries`.

        `size` (width, height) in pixels of the original frame. Frames count from 0.
        """
        first = 0
        for images in batches:
            scale = size
            if self.square:  # what the square's sides are in pixels of the original frame
                scale = [max(images.shape[2:]) * n / m for n, m in zip(size, images.shape[:1:-1], strict=True)]
            yield len(images), partial(_collect, self._launch(self._input(images)), first, scale, floor)
            first += len(images)


def _collect(fetch: Callable, first: int, size: Sequence[float], floor: float) -> PersonQueries:
    """What `fetch` waits for, of the frames from `first` on, with boxes in pixels of `size` (width, height)."""
    scores, boxes, queries = fetch()
    frame, query = np.nonzero(scores >= floor)
    found = boxes[frame, query] * np.float32([*size, *size])
    return PersonQueries(frame + first, scores[frame, query], found, queries[frame, query])


def batch_size(args: Namespace, device: torch.device) -> int:
    """How many frames go through a frozen model at a time (`utils.flags.add_detector_flags`)."""
    return args.detr_batch or DETECTOR_BATCH[device.type]


def detector_of(args: Namespace, device: torch.device, known: dict | None = None) -> Detector:
    """The detector that the flags name; without `--detr` that of `known`, a checkpoint's `Detector.config()`.

    InputError when its weights are not those of `known`.
    """
    source = args.detr or known["source"]
    if not args.detr and source not in OFFICIAL and not checkpoint_path(source, "detr").is_file():
        raise InputError(f"{source}: the detector that the encoder was trained with is not there; name it with --detr")
    size = args.image_size or (known["image_size"] if known else 0)
    square = args.pad_square or bool(known and known.get("square"))
    amp = amp_type(args.amp)
    batch = batch_size(args, device)
    detector = Detector(source, device, args.checkpoint_root, amp, args.compile, size, batch, square)
    if known and detector.weights != known["weights"]:
        raise InputError(
            f"{source}: not the detector that the encoder was trained with ({known['source']}, weights "
            f"{known['weights']}, here {detector.weights}); name that one with --detr"
        )
    return detector


class CachedQueries:
    """A video's queries in the cache: `frame`, `scores`, `boxes` of those at or above a threshold are in memory,
    `queries` (M, d) are read where they are used; `meta` is the entry's json (n_frames, width, height, fps)."""

    def __init__(self, store: TarStore, name: str, psn_score_th: float) -> None:
        self.name, self.meta = name, store.json(name)
        floor = self.meta["made_from"]["settings"]["floor"]
        if psn_score_th < floor:
            raise InputError(f"{store.path}: holds person scores from {floor}; {psn_score_th} needs a new extraction")
        arrays = store.arrays(name)
        scores = arrays["scores"][:]
        self.rows = np.flatnonzero(scores >= psn_score_th)
        self.frame, self.scores = arrays["frame"][:][self.rows].astype(np.int64), scores[self.rows]
        self.boxes = arrays["boxes"][:][self.rows]
        self._queries: Rows = arrays["queries"]

    def __len__(self) -> int:
        return len(self.rows)

    def queries(self, chosen: slice | np.ndarray) -> np.ndarray:
        """float32 (k, d) of the chosen members, e.g. those of a run of frames."""
        return self._queries[self.rows[chosen]]

    def blocks(self, n: int = 4096) -> Iterator[PersonQueries]:
        """All queries in order, about `n` at a time, frames never divided."""
        edges = np.searchsorted(self.frame, self.frame[n::n], "left") if len(self) > n else []
        edges = np.unique([0, *edges, len(self)])
        for a, b in itertools.pairwise(edges):
            yield PersonQueries(self.frame[a:b], self.scores[a:b], self.boxes[a:b], self.queries(slice(a, b)))


def cache_queries(folder: Path, videos: Videos, detector: Detector, psn_score_th: float) -> TarStore:
    """The tar of a subset's person queries; DETR runs for the videos that are not in it yet.

    Queries are kept down to a person score of `FLOOR` (all of them where `psn_score_th` is lower). A video that is left
    out has an entry without queries, whose json says why (`bad`).
    """
    floor = FLOOR if psn_score_th >= FLOOR else 0.0
    path = Path(folder) / f"{videos.subset}-{detector.key}{'' if floor else '-all'}.tar"

    def make(names: Sequence[str], spool_of: Callable[[str], RowSpool]) -> Iterator[tuple[str, dict]]:
        opened = videos.open(names, detector.image_size, detector.batch_size, detector.device.type == "cuda")
        nothing = _columns(PersonQueries(*_empty(detector.d)))
        what = f"DETR over {videos.subset}"
        for video, meta in found_in_videos(what, names, opened, start, nothing, spool_of):
            width, height = video.size
            yield video.name, {**meta, "width": width, "height": height, "fps": video.fps}

    def start(video: Any) -> Started:
        for n_frames, fetch in detector.start(video.batches, video.size, floor):
            yield n_frames, lambda fetch=fetch: _columns(fetch())

    settings = {"detector": detector.key, "floor": floor}
    return video_cache(path, videos.sources(), make, settings, "query cache", videos.skip_bad)


def match_people(
    frame: np.ndarray, boxes: np.ndarray, gt_frame: np.ndarray, gt_boxes: np.ndarray, iou_th: float
) -> np.ndarray:
    """Which annotated box each query stands for, -1 for none: int64 (M,).

    `frame` int64 (M,) and `boxes` (M, 4) of the queries, `gt_frame` int64 (G,) and `gt_boxes` (G, 4), xyxy in one unit;
    both frames rising. In each frame the pair with the highest IoU goes first, each box and query once, down to
    `iou_th` (inclusive).
    """
    start, stop = np.searchsorted(gt_frame, frame), np.searchsorted(gt_frame, frame, "right")
    counts = stop - start
    query = np.repeat(np.arange(len(frame)), counts)
    truth = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts - start, counts)
    iou = paired_iou(boxes[query], gt_boxes[truth])
    matched, free = np.full(len(frame), -1), np.ones(len(gt_frame), bool)
    close = np.flatnonzero(iou >= iou_th)
    for pair in close[np.argsort(-iou[close], kind="stable")].tolist():
        q, t = query[pair], truth[pair]
        if matched[q] < 0 and free[t]:
            matched[q], free[t] = t, False
    return matched


def _columns(found: PersonQueries) -> dict[str, np.ndarray]:
    return {**found._asdict(), "frame": found.frame.astype(np.int32)}


def _empty(d: int) -> tuple[np.ndarray, ...]:
    return np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), np.zeros((0, d), np.float32)
