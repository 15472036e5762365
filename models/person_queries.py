"""Frames -> detections: the one place where a detector is run for the later stages.

    python -m models.person_queries --dataset ucf101-24 --subset train --detr coco-r101-dc5

runs DETR over a subset's videos, once, and leaves checkpoint/<dataset>/queries/<subset>-<detector>.tar. The later
stages do the same where the tar is missing. A stopped run goes on from the last finished video, and the processes
of `torchrun`, on machines that share the folder, share the videos.
"""

import itertools
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.cli import Parser, number_or_name, run, tell_left_out
from utils.flags import DETECTOR_BATCH, add_data_flags, add_detector_flags, add_run_flags


def make_parser() -> Parser:
    parser = Parser("Run DETR over a subset's videos and fill the query cache, which the later stages read.")
    add_data_flags(parser)
    parser.flag("data", "subset", default="train", help="subset to run DETR over")
    parser.flag("data", "view", choices=("plain", "mirrored", "erased"), default="plain",
                help="frames as they are; mirrored, for train_qmm.py --mirror_frames; or with one of several people "
                "painted over, for --erase_people")  # fmt: skip
    add_detector_flags(parser)
    add_run_flags(parser)
    return parser


if __name__ == "__main__":  # PyTorch takes seconds to import: --help and mistyped flags are answered before
    make_parser().parse_args()

import numpy as np
import torch

from models.detectors import Detector, is_hf, open_detector
from models.frozen import Started, run_frozen
from models.weights import OFFICIAL, checkpoint_path
from utils.box_ops import box_xyxy_to_cxcywh, paired_iou
from utils.distributed import process_group, rank
from utils.misc import InputError, amp_type, counted, start
from utils.storage.tars import TarStore
from utils.storage.video_cache import fill_cache

if TYPE_CHECKING:
    from datasets.frame_batches import SubsetVideos

FLOOR = 0.05  # minimum person score of cached queries; a lower threshold gets a cache of all of them


def batch_size(args: Namespace, device: torch.device) -> int:
    """How many frames go through a frozen model at a time (`utils.flags.add_detector_flags`)."""
    return args.detr_batch or DETECTOR_BATCH[device.type]


def detector_of(args: Namespace, device: torch.device, trained: dict | None = None) -> Detector:
    """The detector that the flags name; without `--detr` that of `trained`, a checkpoint's `Detector.config()`.

    InputError when its weights or the layer of its queries are not those of `trained`.
    """
    trained = trained or {}
    source, label = args.detr or trained["source"], number_or_name(args.person_label)
    named = source in OFFICIAL or is_hf(source)
    if not args.detr and not named and not checkpoint_path(source, "detr").is_file():
        raise InputError(f"{source}: the detector that the encoder was trained with is not there; name it with --detr")
    detector = open_detector(
        source,
        device,
        args.checkpoint_root,
        args.compile,
        batch_size=batch_size(args, device),
        image_size=args.image_size or trained.get("image_size", 0),
        square=args.pad_square or trained.get("square", False),
        query_layer=args.query_layer or trained.get("query_layer"),
        person_label=trained.get("person_label") if label is None else label,
        amp=amp_type(args.amp),
    )
    if trained and detector.weights != trained["weights"]:
        raise InputError(
            f"{source}: not the detector that the encoder was trained with ({trained['source']}, weights "
            f"{trained['weights']}, here {detector.weights}); name that one with --detr"
        )
    if trained and detector.query_layer != trained["query_layer"]:
        raise InputError(
            f"--query_layer {detector.query_layer}: the encoder was trained with queries of decoder layer "
            f"{trained['query_layer']}; leave the flag out, or train another encoder"
        )
    return detector


class CachedDetections:
    """A video's detections at a minimum person score, out of the query cache.

    `frames`, `scores` and `boxes` as in `Detections` are in memory; query vectors are read where they are used. `meta`
    is the sample's json (n_frames, width, height, fps).
    """

    def __init__(self, store: TarStore, name: str, psn_score_th: float) -> None:
        self.name, self.meta, self._store = name, store.json(name), store
        floor = self.meta["made_from"]["settings"]["floor"]
        if psn_score_th < floor:
            raise InputError(f"{store.path}: holds person scores of at least {floor:g} alone, not of {psn_score_th:g}")
        scores = store.read(name, "scores")
        self.rows = np.flatnonzero(scores >= psn_score_th)
        self.frames, self.scores = store.read(name, "frames")[self.rows], scores[self.rows]
        self.boxes = store.read(name, "boxes")[self.rows]

    def queries(self, chosen: slice | np.ndarray) -> np.ndarray:
        """float32 (k, d) of the chosen detections, e.g. those of a run of frames."""
        return self._store.read(self.name, "queries", self.rows[chosen])

    @property
    def slots(self) -> np.ndarray:
        """int64 (M,), which of its frame's queries each detection is."""
        return self._store.read(self.name, "slots", self.rows)

    def blocks(self, n: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Frames, scores, boxes and queries of all detections in order, about `n` at a time, frames never divided."""
        edges = np.unique([0, *np.searchsorted(self.frames, self.frames[n::n]), len(self.frames)])
        for a, b in itertools.pairwise(edges):
            yield self.frames[a:b], self.scores[a:b], self.boxes[a:b], self.queries(slice(a, b))


def query_cache_path(folder: Path, subset: str, key: str, psn_score_th: float = FLOOR, view: str = "plain") -> Path:
    """The tar of a subset's queries; `key` as of `Detector`, `view` as of `SubsetVideos`. It holds all
    queries where `psn_score_th` is below `FLOOR`, else those of a person score of at least that."""
    name = f"{subset}-{key}" + ("" if view == "plain" else f"-{view}") + "-all" * (psn_score_th < FLOOR)
    return Path(folder) / f"{name}.tar"


def cache_queries(folder: Path, videos: "SubsetVideos", detector: Detector, psn_score_th: float = FLOOR) -> TarStore:
    """Run DETR over a subset: the tar of its queries, in which a video that is already there stays as it is.

    The tar may hold videos of former lists too, which the store that is returned does not name.
    Queries of a person score of at least `FLOOR` are kept (all of them where `psn_score_th` is lower). A video that is
    left out has a sample without arrays, whose json says why (`bad`). Under `torchrun` the processes share the videos.
    Boxes of mirrored frames are mirrored back.
    """
    floor = FLOOR if psn_score_th >= FLOOR else 0.0
    sources = videos.sources()
    path = query_cache_path(folder, videos.subset, detector.key, psn_score_th, videos.view)
    settings = {"detector": detector.key, "floor": floor}
    with fill_cache(path, sources, settings, videos.skip_bad, keep=True) as cache:
        opened = videos.open(cache.missing, detector.frame_size, detector.batch_size, detector.device.type == "cuda")

        def start_batches(video: Any) -> Started:
            return detector.start(video.batches, video.size, floor)

        for video, batches in run_frozen(f"DETR over {videos.subset}", cache.missing, opened, start_batches):
            with cache.sample(video.name) as sample:
                total = 0
                for n_frames, detections in batches:
                    if videos.view == "mirrored":
                        x0, y0, x1, y1 = detections.boxes.T
                        back = np.stack([video.size[0] - x1, y0, video.size[0] - x0, y1], 1)
                        detections = detections._replace(boxes=back)
                    sample.append({name: x for name, x in detections._asdict().items() if x is not None})
                    total += n_frames
                size = {"width": video.size[0], "height": video.size[1]}
                sample.json |= {"n_frames": total, **size, "fps": video.fps}
    return TarStore(path, "query cache", sources)


def match_people(
    frames: np.ndarray, boxes: np.ndarray, gt_frames: np.ndarray, gt_boxes: np.ndarray, iou_th: float
) -> np.ndarray:
    """Assign detections to ground-truth boxes, greedily by IoU within each frame.

    The pair with the highest IoU is assigned first, each detection and each box once, until no IoU reaches `iou_th`.

    Args:
        frames: int64 (M,), non-decreasing, of the detections.
        boxes: (M, 4), xyxy.
        gt_frames: int64 (G,), non-decreasing.
        gt_boxes: (G, 4), xyxy in the same unit.
        iou_th: minimum IoU of a pair.

    Returns:
        int64 (M,): the ground-truth box of each detection, -1 for none.
    """
    start, stop = np.searchsorted(gt_frames, frames), np.searchsorted(gt_frames, frames, "right")
    counts = stop - start
    detection = np.repeat(np.arange(len(frames)), counts)
    gt_box = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts - start, counts)
    iou = paired_iou(boxes[detection], gt_boxes[gt_box])
    matched, free = np.full(len(frames), -1), np.ones(len(gt_frames), bool)
    close = np.flatnonzero(iou >= iou_th)
    for pair in close[np.argsort(-iou[close], kind="stable")].tolist():
        d, g = detection[pair], gt_box[pair]
        if matched[d] < 0 and free[g]:
            matched[d], free[g] = g, False
    return matched


def match_hungarian(
    frames: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    gt_frames: np.ndarray,
    gt_boxes: np.ndarray,
    iou_th: float,
    scale: Sequence[float] = (1, 1),
) -> np.ndarray:
    """Assign detections to ground-truth boxes as the published training does, by DETR's matching within each frame.

    The cost of a pair is 5 L1(cxcywh) - 2 score - 2 IoU. An assigned detection whose IoU with every ground-truth box
    stays below `iou_th` is dropped afterwards.

    Args:
        scores: float (M,), person scores.
        scale: width and height that divide the boxes in the cost.
        frames, boxes, gt_frames, gt_boxes: as in `match_people`, whose result this has too.
    """
    from scipy.optimize import linear_sum_assignment

    both = (torch.from_numpy(xyxy.astype(float)) for xyxy in (boxes, gt_boxes))
    centres, gt_centres = (box_xyxy_to_cxcywh(xyxy).numpy() / [*scale, *scale] for xyxy in both)
    matched = np.full(len(frames), -1)
    for frame in np.intersect1d(frames, gt_frames):
        rows, gt_rows = (np.arange(*np.searchsorted(column, [frame, frame + 1])) for column in (frames, gt_frames))
        iou = paired_iou(boxes[rows, None], gt_boxes[None, gt_rows])
        distance = np.abs(centres[rows, None] - gt_centres[None, gt_rows]).sum(-1)
        detected, assigned = linear_sum_assignment(5 * distance - 2 * scores[rows, None] - 2 * iou)
        matched[rows[detected]] = gt_rows[assigned]
        matched[rows[iou.max(1) < iou_th]] = -1
    return matched


def main() -> None:
    """The command line."""
    from datasets.annotations import read_annotations
    from datasets.config import load_project  # a script's imports: the module itself knows no data sets
    from datasets.frame_batches import SubsetVideos
    from datasets.presets import parse_with_preset

    args = parse_with_preset(make_parser(), "person_queries")
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        bad: dict[str, str] = {}
        annotations = None
        if args.view == "erased":
            annotations = read_annotations(project, project.split(args.subset), bad if args.skip_bad else None)
        videos = SubsetVideos(project, args.subset, args.workers, args.skip_bad, args.view, annotations)
        folder = Path(args.checkpoint_root) / project.name / "queries"
        store = cache_queries(folder, videos, detector_of(args, device))
        if rank() == 0:
            tell_left_out(bad | videos.bad | store.bad)
            print(f"queries of {counted(len(store.names) - len(store.bad), 'video')}: {store.path}")


if __name__ == "__main__":
    run(main)
