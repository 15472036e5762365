"""Which detector's queries tell people apart: each decoder layer of each detector under one budget.

    python -m benchmarks.query_identity --dataset jhmdb21 --detr coco-r50 hf:ustc-community/dfine-nano-coco

For each detector and layer the person encoder is trained on the queries of `--subset` (N-pair loss, `--steps`) and
`--val_subset` is linked with its features. Person scores of different detectors are not on one scale, so each takes
the threshold with the best F1 of person boxes on `--subset`. Query caches are those of the stages: a detector runs once
a layer.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rows import seconds
from datasets.annotations import Video, annotated_boxes, keep_fitting, read_annotations
from datasets.config import Project, load_project
from datasets.frame_batches import SubsetVideos
from datasets.query_clips import QueryClips
from models.detectors import Detector, open_detector
from models.held_out import held_out_metrics
from models.linkers import LINKERS
from models.person_encoder import NPairLoss, PersonEncoder, encode
from models.person_queries import FLOOR, CachedDetections, cache_queries, match_people
from models.tube import Linker
from utils.cli import Parser, positive, positive_int, run
from utils.flags import add_data_flags, add_run_flags
from utils.metrics.tracking import tracking_metrics
from utils.metrics.tube_recall import tube_precision_recall
from utils.misc import InputError, amp_type, pick_device, start
from utils.results import print_table
from utils.storage.tars import TarStore

MATCH_IOU, SIM_TH, CLIPS, GAPS = 0.5, 0.5, 8, (1, 16, 64)
HEAD = ("detector", "layer", "d", "score >=", *(f"rank-1 +{gap}" for gap in GAPS), "AssA", "IDF1", "recall large",
        "GFLOP", "frames/s")  # fmt: skip


def make_parser() -> Parser:
    parser = Parser("Compare how well the queries of detectors, layer by layer, tell people apart.")
    add_data_flags(parser, presets=False)
    parser.flag("data", "subset", default="train", help="subset to train person encoders on")
    parser.flag("data", "val_subset", default="val", help="subset to link")
    parser.flag("detector", "detr", nargs="+", required=True, help="detectors, as --detr of train_qmm.py names one")
    parser.flag("detector", "layers", nargs="+", type=positive_int, help="decoder layers, from 1 (default: all)")
    parser.flag("detector", "detr_batch", type=positive_int, default=8, help="frames a batch")
    parser.flag("training", "steps", type=positive_int, default=300, help=f"steps of {CLIPS} clips of 8 frames")
    parser.flag("training", "lr", type=positive, default=5e-4, help="learning rate of the person encoder")
    parser.flag("training", "tau", type=positive, default=0.1, help="temperature of the N-pair loss")
    add_run_flags(parser)
    return parser


def annotations_of(store: TarStore, project: Project) -> dict[str, Video]:
    """The ground truth of the videos of a query cache."""
    decoded = {name: store.json(name) for name in store.names}
    return keep_fitting(project, read_annotations(project, store.names), decoded)


def best_threshold(store: TarStore, videos: dict[str, Video]) -> float:
    """The person score with the best F1 of person boxes at IoU `MATCH_IOU`."""
    scores, right, n_boxes = [], [], 0
    for name, video in videos.items():
        detections, (frames, boxes, _) = CachedDetections(store, name, FLOOR), annotated_boxes(video)
        scores.append(detections.scores)
        right.append(match_people(detections.frames, detections.boxes, frames, boxes, MATCH_IOU) >= 0)
        n_boxes += len(frames)
    scores, right = np.concatenate(scores), np.concatenate(right)
    if not right.any():
        raise InputError(f"{store.path}: no detection of a score of {FLOOR} meets a person")
    order = np.argsort(-scores, kind="stable")
    hits = right[order].cumsum()
    return float(scores[order][(hits / (np.arange(len(order)) + 1 + n_boxes)).argmax()])


def clips(store: TarStore, videos: dict[str, Video], threshold: float) -> QueryClips:
    """Clips of a subset's cached queries."""

    def match(detections: CachedDetections, frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return match_people(detections.frames, detections.boxes, frames, boxes, MATCH_IOU)

    return QueryClips(videos, [partial(CachedDetections, store, psn_score_th=threshold)], match, 8, 4, seed=0)


def train(encoder: PersonEncoder, criterion: NPairLoss, data: QueryClips, steps: int, lr: float) -> None:
    """AdamW on batches of `CLIPS` clips."""
    device = next(encoder.parameters()).device
    optimizer = torch.optim.AdamW(encoder.train().parameters(), lr, weight_decay=0.05)
    for step in range(steps):
        queries, ids = data.pack([divmod(CLIPS * step + i, len(data)) for i in range(CLIPS)])
        optimizer.zero_grad()
        criterion(encoder(torch.from_numpy(queries).to(device)), torch.from_numpy(ids).to(device)).backward()
        optimizer.step()


def linked(
    store: TarStore, videos: dict[str, Video], threshold: float, encoder: PersonEncoder, min_length: int
) -> list[float]:
    """AssA, IDF1 and recall of large motion of a subset's tracks, linked by the published rule."""
    pred, gt = {}, {name: video.tubes for name, video in videos.items()}
    for name in videos:
        linker = Linker(SIM_TH, 8, "feature", LINKERS["published"])
        for frames, scores, boxes, queries in CachedDetections(store, name, threshold).blocks():
            linker.extend(frames, boxes, scores, encode(encoder, queries))
        pred[name] = [track.tube() for track in linker.finish() if len(track) >= min_length]
    metrics, (rates,) = tracking_metrics(pred, gt), tube_precision_recall(pred, gt, [0.5])
    return [metrics["AssA"], metrics["IDF1"], rates["motion_recall"]["large"]]


@torch.inference_mode()
def cost(detector: Detector, videos: SubsetVideos) -> tuple[float, float]:
    """GFLOP of a frame, and frames a second of the detector alone on a batch of a video's frames."""
    opened = videos.open([next(iter(videos.paths))], detector.frame_size, detector.batch_size, pin=False)
    images = next(next(opened).batches)
    opened.close()
    prepared = detector.inputs(images)
    with FlopCounterMode(display=False) as counter:
        detector.detr.forward(*prepared)  # not as a call: kernels of --compile are not counted
    rate = len(images) / seconds(lambda: detector.launch(images)())
    return counter.get_total_flops() / len(images) / 1e9, rate


def rows_of(source: str, project: Project, args: argparse.Namespace, device: torch.device) -> list[list]:
    """The table's rows of one detector."""
    folder, rows, threshold = Path(args.checkpoint_root) / project.name / "queries", [], None
    load = partial(open_detector, source, device, args.checkpoint_root, args.compile, amp=amp_type(args.amp))
    subsets = [SubsetVideos(project, subset, args.workers) for subset in (args.subset, args.val_subset)]
    for layer in args.layers or range(1, load().n_layers + 1):
        detector = load(batch_size=args.detr_batch, query_layer=layer)
        stores = [cache_queries(folder, videos, detector) for videos in subsets]
        (store, val_store), (gt, val_gt) = stores, [annotations_of(store, project) for store in stores]
        threshold = threshold or best_threshold(store, gt)
        torch.manual_seed(args.seed)
        encoder, criterion = PersonEncoder(detector.d, detector.d, skip=True).to(device), NPairLoss(args.tau)
        train(encoder, criterion, clips(store, gt, threshold), args.steps, args.lr)
        metrics = held_out_metrics(encoder.eval(), criterion, clips(val_store, val_gt, threshold), CLIPS)
        ranks = [metrics.get(f"val_rank1@{gap}", float("nan")) for gap in GAPS]
        tracks = linked(val_store, val_gt, threshold, encoder, int(project.default("filter_length")))
        gflop, rate = cost(detector, subsets[1])
        cells = [f"{gflop:.1f}", f"{rate:.3g}"]
        rows.append([source, f"{layer}/{detector.n_layers}", detector.d, f"{threshold:.2f}", *ranks, *tracks, *cells])
    return rows


def main() -> None:
    """The command line."""
    args = make_parser().parse_args()
    start(args)
    project, device = load_project(args.dataset, args.data_root), pick_device(args.device)
    print_table(HEAD, [row for source in args.detr for row in rows_of(source, project, args, device)])


if __name__ == "__main__":
    run(main)
