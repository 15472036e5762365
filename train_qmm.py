"""Stage 2: train the query matching module's person encoder on the queries of a frozen DETR.

    python train_qmm.py --dataset jhmdb21 --qmm_name noskip_sr:4

Leaves checkpoint/<dataset>/<qmm_name>/encoder/epoch_<n>.pth. DETR sees each frame once, ever: its queries are kept in
checkpoint/<dataset>/queries. Defaults are those of the published runs.
"""

import argparse
from collections.abc import Callable, Iterator, Sized
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.annotations import read_annotations
from datasets.config import Project, load_project
from datasets.frame_batches import SubsetVideos
from datasets.make_shards import shards_folder
from datasets.query_clips import QueryClips
from datasets.use_shards import ClipDataset, epoch_batches, make_loader
from models.person_encoder import NPairLoss, PersonEncoder
from models.person_queries import CachedDetections, Detector, cache_queries, detector_of, match_people
from utils.box_ops import box_cxcywh_to_xyxy
from utils.cli import Parser, not_negative, positive, positive_int, run, run_name, share, tell_left_out
from utils.distributed import gather_rows, process_group, rank, world_size
from utils.flags import add_data_flags, add_detector_flags, add_run_flags, add_training_flags
from utils.misc import InputError, start
from utils.training.loop import fit

ID_STEP = 2**32  # between the person ids of two processes


def parse_args() -> argparse.Namespace:
    parser = Parser("Train the person encoder of query matching on the queries of a frozen DETR.")
    add_data_flags(parser)
    parser.flag("data", "shards_path", help="shards, for --no_query_cache (default: <data_root>/<dataset>/shards)")
    parser.flag("data", "subset", default="train", help="subset to train on")
    parser.flag("data", "n_frames", type=positive_int, default=8, help="frames of a clip")
    parser.flag("data", "sampling_rate", type=positive_int, default=4, help="frames from one of a clip to the next")
    parser.flag("data", "clips_per_video", type=positive_int, default=1, help="random clips of a video an epoch")
    parser.flag("data", "no_query_cache", action="store_true", help="run DETR on augmented clips in each step instead")
    parser.flag(
        "data", "jitter", type=not_negative, default=0.2, help="--no_query_cache: brightness, contrast, saturation"
    )
    parser.flag("data", "jitter_hue", type=not_negative, default=0.1, help="--no_query_cache: change of hue")
    parser.flag("model", "qmm_name", type=run_name, default="qmm", help="name of the run")
    parser.flag("model", "is_skip", action="store_true", help="add the query to the encoder's output")
    parser.flag("model", "hidden_d", type=positive_int, help="width of the encoder's inner layers (default: a query's)")
    parser.flag("model", "dropout", type=share, default=0.1, help="dropout of the encoder")
    add_detector_flags(parser)
    of_data = "(default: the data set's)"
    parser.flag("matching", "psn_score_th", type=share, help=f"person score of a query that counts {of_data}")
    parser.flag("matching", "iou_th", type=share, help=f"IoU of that query with the person it stands for {of_data}")
    add_training_flags(parser, epochs=20, batch_size=8, lr=1e-4, lr_drop=10, unit="clips", lr_flag="lr_en")
    parser.flag("training", "tau", type=positive, default=1.0, help="temperature of the N-pair loss")
    add_run_flags(parser)
    return parser.parse_args()


Steps = tuple[Sized, Callable[[list], Iterator[tuple[Tensor, Tensor, list]]]]
"""What an epoch is dealt from, and `load`: batches of its keys -> queries (M, d), person ids (M,), names."""


def cached_steps(args: argparse.Namespace, project: Project, detector: Detector, bad: dict[str, str]) -> Steps:
    """Queries out of the cache; DETR runs first for the videos that are not in it. Those left out enter `bad`."""
    videos = SubsetVideos(project, args.subset, args.workers, args.skip_bad)
    store = cache_queries(Path(args.checkpoint_root) / project.name / "queries", videos, detector, args.psn_score_th)
    bad |= videos.bad | store.bad
    usable = [name for name in store.names if name not in bad]
    data = QueryClips(
        read_annotations(project, usable, bad if args.skip_bad else None),
        partial(CachedDetections, store, psn_score_th=args.psn_score_th),
        partial(match_people, iou_th=args.iou_th),
        args.n_frames,
        args.sampling_rate,
        args.seed,
        args.clips_per_video,
    )
    if not len(data):
        raise InputError(
            f"{store.path}: no query of {args.subset!r} stands for an annotated person at --psn_score_th "
            f"{args.psn_score_th} and --iou_th {args.iou_th}; lower them, or train the detector longer"
        )
    if rank() == 0:
        print(f"{data.n_matched} queries stand for {data.n_boxes} annotated boxes, {len(data)} clips an epoch")

    def load(batches: list) -> Iterator[tuple[Tensor, Tensor, list]]:
        for keys in batches:
            queries, ids = data.pack(keys)
            yield torch.from_numpy(queries).to(detector.device), torch.from_numpy(ids).to(detector.device), keys

    return data, load


def augmented_steps(args: argparse.Namespace, project: Project, detector: Detector, bad: dict[str, str]) -> Steps:
    """DETR on clips that are mirrored and change colour, in each step. The shards have left out what is in `bad`."""
    data = ClipDataset(
        shards_folder(args.shards_path, project, args.subset, args.data_root),
        args.n_frames,
        args.sampling_rate,
        detector.image_size,
        seed=args.seed,
        clips_per_video=args.clips_per_video,
        jitter=[args.jitter] * 3 + [args.jitter_hue],
        pad_square=detector.square,
    )

    def load(batches: list) -> Iterator[tuple[Tensor, Tensor, list]]:
        for batch in make_loader(data, batches, args.workers, detector.device):
            found = detector.on_batch(batch["images"], batch["mask"], args.psn_score_th)
            counts = np.array([len(target["boxes"]) for target in batch["targets"]])
            wanted = torch.cat([target["boxes"] for target in batch["targets"]])
            place = np.repeat(np.arange(len(counts)), counts)
            corners = box_cxcywh_to_xyxy(wanted).cpu().numpy()
            matched = match_people(found.frames, found.boxes, place, corners, args.iou_th)
            ids = torch.cat([target["person_ids"] for target in batch["targets"]])
            rows = np.flatnonzero(matched >= 0)
            person = ids[torch.from_numpy(matched[rows]).to(ids.device)]
            yield torch.from_numpy(found.queries[rows]).to(detector.device), person, batch["names"]

    return data, load


def losses(criterion: NPairLoss, model: nn.Module, group: list) -> Iterator[tuple[Tensor, dict]]:
    """The N-pair loss of one batch. Several processes contrast the joined batch: each has the others' features as they
    are, and the gradient through its own; DistributedDataParallel's mean of these is the joined gradient over the
    number of processes, hence the factor."""
    for queries, ids, _ in group:
        features = model(queries)
        if world_size() > 1:
            parts = gather_rows(features)
            parts[rank()] = features
            all_ids = torch.cat(gather_rows(ids + rank() * ID_STEP))
            value = criterion(torch.cat(parts), all_ids)
            value = value + (world_size() - 1) * (value - value.detach())
        else:
            value = criterion(features, ids)
        yield value, {"queries": float(len(queries)), "nearest_is_same": _nearest_is_same(features.detach(), ids)}


def _nearest_is_same(features: Tensor, ids: Tensor) -> Tensor | float:
    """The share of features, of people seen more than once, whose most similar other one is the same person's."""
    if len(ids) < 2:
        return 0.0
    unit = nn.functional.normalize(features.float(), dim=1)
    with torch.autocast(features.device.type, enabled=False):
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    again = (ids[:, None] == ids).sum(1) > 1
    return ((ids[nearest] == ids) & again).sum() / again.sum().clamp(min=1)


def main() -> None:
    """The command line."""
    args = parse_args()
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        project.fill(args, psn_score_th="qmm_psn_score_th psn_score_th", iou_th="qmm_iou_th iou_th")
        project.split(args.subset)  # a mistake there is told before a detector is built
        detector = detector_of(args, device)
        bad: dict[str, str] = {}
        data, load = (augmented_steps if args.no_query_cache else cached_steps)(args, project, detector, bad)
        width = {"in_d": detector.d, "out_d": detector.d, "hidden_d": args.hidden_d}
        encoder = {**width, "skip": args.is_skip, "dropout": args.dropout}
        model = PersonEncoder(**encoder)

        def epoch_of(epoch: int, first: int = 0) -> list:
            return epoch_batches(data, epoch, args.batch_size, rank(), world_size())[first:]

        fit(
            stage="train_qmm",
            folder=Path(args.checkpoint_root) / project.name / args.qmm_name / "encoder",
            model=model,
            parameters=[{"params": list(model.parameters()), "lr": args.lr}],
            config={"encoder": encoder, "detector": detector.config()},
            args=args,
            device=device,
            n_batches=lambda epoch: len(epoch_of(epoch)),
            batches=lambda epoch, first: load(epoch_of(epoch, first)),
            losses=partial(losses, NPairLoss(args.tau)),
            keys=lambda batch: batch[2],
        )
        if rank() == 0:
            tell_left_out(bad)


if __name__ == "__main__":
    run(main)
