"""Stage 2: train the query matching module's person encoder on the queries of a frozen DETR.

    python train_qmm.py --dataset jhmdb21 --qmm_name noskip_sr:4

Leaves checkpoint/<dataset>/<qmm_name>/encoder/epoch_<n>.pth. DETR runs once on each frame: its queries are cached in
checkpoint/<dataset>/queries. `--preset published` trains as the published runs did (docs/protocol.md).
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from utils import flags
from utils.cli import Parser, positive, positive_int, run, run_name, share, tell_left_out

SLOTS = 2**16  # above the number of a detector's queries: clip * SLOTS + slot is unique


def make_parser() -> Parser:
    parser = Parser("Train the person encoder of query matching on the queries of a frozen DETR.")
    flags.add_data_flags(parser)
    parser.flag("data", "subset", default="train", help="subset to train on")
    parser.flag("data", "val_subset", help="subset for held-out metrics, before and during training (default: none)")
    help_text = "train between annotated key frames too, with interpolated boxes"
    parser.flag("data", "between_key_frames", action="store_true", help=help_text)
    parser.flag("data", "no_query_cache", action="store_true", help="run DETR on augmented clips in each step instead")
    flags.add_clip_flags(parser, n_frames=8, frames_help=", at least 2", used_with="--no_query_cache: ")
    parser.flag("model", "qmm_name", type=run_name, default="qmm", help="name of the run")
    parser.flag("model", "is_skip", action="store_true", help="skip connection: add the query to the encoder's output")
    parser.flag("model", "hidden_d", type=positive_int, help="width of the encoder's inner layers (default: a query's)")
    parser.flag("model", "dropout", type=share, default=0.1, help="dropout of the encoder")
    flags.add_detector_flags(parser)
    parser.flag("matching", "psn_score_th", type=share, help=f"minimum person score of a detection {flags.OF_DATA}")
    parser.flag("matching", "iou_th", type=share,
                help=f"minimum IoU between a detection and its ground-truth person {flags.OF_DATA}")  # fmt: skip
    flags.add_strict_flag(parser, "matching")
    parser.flag("matching", "matching", choices=("greedy", "hungarian"), default="greedy",
                help="assignment of detections to people: by falling IoU, or DETR's, as published")  # fmt: skip
    parser.flag("matching", "identity", choices=("person", "slot"), default="person",
                help="what positives share: the person, or the index of the object query, as published")  # fmt: skip
    flags.add_training_flags(
        parser, epochs=20, batch_size=8, lr=1e-4, lr_drop=10, batch_help="clips of a batch and process", lr_flag="lr_en"
    )
    parser.flag("training", "tau", type=positive, default=1.0, help="temperature of the N-pair loss")
    flags.add_run_flags(parser)
    return parser


if __name__ == "__main__":  # PyTorch takes seconds to import: --help and mistyped flags are answered before
    make_parser().parse_args()

import numpy as np
import torch
from torch import Tensor

from datasets.annotations import Video, keep_fitting, read_annotations
from datasets.compare_shards import clips_of_flags
from datasets.config import Project, load_project
from datasets.frame_batches import SubsetVideos
from datasets.likely_mistakes import warn_of_shared_videos
from datasets.presets import parse_with_preset
from datasets.query_clips import QueryClips
from datasets.use_shards import Clips, epoch_batches, make_loader
from models.detectors import Detections, Detector
from models.held_out import held_out_metrics, nearest_is_same
from models.person_encoder import NPairLoss, PersonEncoder, joined, joined_loss
from models.person_queries import FLOOR, CachedDetections, cache_queries, detector_of, match_hungarian, match_people
from utils.box_ops import box_cxcywh_to_xyxy
from utils.distributed import process_group, rank, world_size
from utils.misc import InputError, exceeding, start, tell
from utils.training.run import TrainingRun

Batches = Iterator[tuple[Tensor, Tensor, list[str]]]
"""Queries float32 (M, d), person ids int64 (M,), and the names of the clips' videos."""


def match(
    args: argparse.Namespace,
    minimum: dict[str, float],
    detections: Detections | CachedDetections,
    frames: np.ndarray,
    boxes: np.ndarray,
    scale: tuple[float, float] = (1, 1),
) -> np.ndarray:
    """The ground-truth box of each detection, int64 (M,), -1 for none, by `--matching`.

    Args:
        minimum: `psn_score_th` and `iou_th`, the lowest values that pass.
        frames: int64 (G,), non-decreasing, of the ground truth, boxes: (G, 4) xyxy.
        scale: width and height that the boxes count in.
    """
    d, iou_th = detections, minimum["iou_th"]
    if args.matching == "greedy":
        matched = match_people(d.frames, d.boxes, frames, boxes, iou_th)
    else:
        matched = match_hungarian(d.frames, d.boxes, d.scores, frames, boxes, iou_th, scale)
    return np.where(detections.scores >= minimum["psn_score_th"], matched, -1)


def query_clips(
    args: argparse.Namespace,
    minimum: dict[str, float],
    project: Project,
    detector: Detector,
    annotations: dict[str, Video],
    bad: dict[str, str],
    subset: str,
    train: bool = True,
) -> QueryClips:
    """Clips of a subset's cached queries; DETR runs first on the videos that are not cached.

    Videos left out enter `bad`. Without `train` there is one clip of each video, its frames are as they are, and
    identities are persons whatever `--identity` says.
    """
    floor = minimum["psn_score_th"]
    if args.matching == "hungarian":  # weaker queries can take a person away too
        floor = min(floor, FLOOR)
    folder, views = Path(args.checkpoint_root) / project.name / "queries", []
    augmented = ["mirrored"] * args.mirror_frames + ["erased"] * args.erase_people if train else []
    for view in ("plain", *augmented):
        videos = SubsetVideos(project, subset, args.workers, args.skip_bad, view, annotations)
        store = cache_queries(folder, videos, detector, floor)
        views.append(partial(CachedDetections, store, psn_score_th=floor))
        bad |= videos.bad | store.bad
    decoded = {name: store.json(name) for name in store.names if name not in bad}
    annotations = {name: annotations[name] for name in decoded if name in annotations}
    annotations = keep_fitting(project, annotations, decoded, bad if args.skip_bad else None)

    def match_video(detections: CachedDetections, frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        sides = [detections.meta[name] for name in ("width", "height")]
        return match(args, minimum, detections, frames, boxes, [max(sides)] * 2 if detector.square else sides)

    data = QueryClips(
        annotations,
        views,
        match_video,
        args.n_frames,
        args.sampling_rate,
        args.seed,
        clips_per_video=args.clips_per_video if train else 1,
        whole_videos=args.whole_videos,
        by_slot=train and args.identity == "slot",
        between=args.between_key_frames,
    )
    if not len(data):
        raise InputError(
            f"{store.path}: no detection of {subset!r} matches an annotated person at --psn_score_th "
            f"{minimum['psn_score_th']:g} and --iou_th {minimum['iou_th']:g}; lower them, or train the detector longer"
        )
    return data


def cached_batches(data: QueryClips, device: torch.device, batches: list) -> Batches:
    """Batches of clips of cached queries."""
    for clips in batches:
        queries, ids = (torch.from_numpy(array).to(device) for array in data.pack(clips))
        yield queries, ids, data.names(clips)


def augmented_batches(
    args: argparse.Namespace, minimum: dict[str, float], detector: Detector, data: Clips, batches: list
) -> Batches:
    """Batches of clips of frames that are mirrored and change colour, with DETR run on them."""
    floor = minimum["psn_score_th"] if args.matching == "greedy" else 0.0
    for batch in make_loader(data, batches, args.workers, detector.device):
        detections = detector.on_batch(batch["images"], batch["mask"], floor)
        counts = np.array([len(target["boxes"]) for target in batch["targets"]])
        boxes = box_cxcywh_to_xyxy(torch.cat([target["boxes"] for target in batch["targets"]])).cpu().numpy()
        matched = match(args, minimum, detections, np.repeat(np.arange(len(counts)), counts), boxes)
        rows = np.flatnonzero(matched >= 0)
        if args.identity == "slot":
            clip = batch["clip"].numpy()[detections.frames[rows]]
            ids = torch.from_numpy(clip * SLOTS + detections.slots[rows]).to(detector.device)
        else:
            persons = torch.cat([target["person_ids"] for target in batch["targets"]])
            ids = persons[torch.from_numpy(matched[rows]).to(persons.device)]
        yield torch.from_numpy(detections.queries[rows]).to(detector.device), ids, batch["names"]


def main() -> None:
    """The command line."""
    parser = make_parser()
    args = parse_with_preset(parser, "train_qmm")
    if args.n_frames == 1:
        raise InputError("--n_frames 1: clips of one frame show nobody twice, so nothing can be learnt; use at least 2")
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        names = ("psn_score_th", "iou_th")
        thresholds = {name: project.default(f"qmm_{name}", name, given=getattr(args, name)) for name in names}
        minimum = {name: exceeding(value) if args.strict else value for name, value in thresholds.items()}
        if (args.mirror_frames or args.erase_people) and args.identity == "slot":
            text = "go with --identity person; a person has another query in a changed frame"
            raise InputError(f"--mirror_frames, --erase_people: {text}")
        if args.between_key_frames and args.no_query_cache:
            raise InputError("--between_key_frames: goes with the query cache; leave --no_query_cache out")
        bad: dict[str, str] = {}
        annotations = {}  # mistakes in them stop the run before a detector runs
        for subset in filter(None, (args.subset, args.val_subset)):
            videos = project.split(subset)
            if subset == args.val_subset or not args.no_query_cache:  # shards have their own
                annotations[subset] = read_annotations(project, videos, bad if args.skip_bad else None)
        if args.val_subset:
            warn_of_shared_videos(project, args.val_subset, args.subset)
        detector = detector_of(args, device)
        if args.no_query_cache:
            data = clips_of_flags(args, project, detector.frame_size, detector.square)
            load = partial(augmented_batches, args, minimum, detector, data)
        else:
            data = query_clips(args, minimum, project, detector, annotations[args.subset], bad, args.subset)
            load = partial(cached_batches, data, device)
            if rank() == 0:
                of_shards = ("shards_path", "clips_per_epoch", "jitter", "jitter_hue", "no_flip")
                if unused := [f"--{name}" for name in of_shards if getattr(args, name) != parser.get_default(name)]:
                    tell(f"warning: {', '.join(unused)}: no effect without --no_query_cache")
                print(f"{data.n_matched} detections match {data.n_boxes} annotated boxes, {len(data)} clips an epoch")
        if args.identity == "person" and not data.anybody_twice():
            text = f"nobody of {args.subset!r} is in two frames of a clip, so nothing can be learnt"
            remedy = "give a person one person_id, or choose a lower --sampling_rate"
            raise InputError(f"{project.annotations}: {text}; {remedy}")

        encoder = {"in_d": detector.d, "out_d": detector.d, "hidden_d": args.hidden_d}
        encoder |= {"skip": args.is_skip, "dropout": args.dropout}
        model, criterion, validate = PersonEncoder(**encoder), NPairLoss(args.tau), None
        if args.val_subset:
            val_annotations = annotations[args.val_subset]
            val = query_clips(args, minimum, project, detector, val_annotations, bad, args.val_subset, train=False)
            validate = partial(held_out_metrics, model, criterion, val, args.batch_size * world_size())
        config, frozen = {"encoder": encoder, "detector": detector.config()}, {"detector": detector.key}
        folder = Path(args.checkpoint_root) / project.name / args.qmm_name / "encoder"
        with TrainingRun(
            "train_qmm", folder, model, config, args, device, data.checksum(), thresholds, frozen=frozen
        ) as training:
            training.measure_untrained(validate)
            for epoch in training.epochs():
                batches = epoch_batches(data, epoch, args.batch_size, rank(), world_size())
                for queries, ids, names in training.batches(load(batches[training.batches_done :]), len(batches)):
                    with training.autocast:
                        features, ids, _ = joined(training.model(queries), ids)
                        loss = joined_loss(criterion, features, ids)
                    training.backward(loss)
                    accuracy = nearest_is_same(features.detach(), ids)
                    training.step(names, queries=float(len(ids)), nearest_is_same=accuracy)
                training.end_epoch(validate)
        if rank() == 0:
            tell_left_out(bad)


if __name__ == "__main__":
    run(main)
