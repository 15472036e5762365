"""Stage 4: train the action head on the linked queries that eval_qmm.py kept for the training subset.

    python eval_qmm.py --dataset jhmdb21 --qmm_name noskip_sr:4 --subset train
    python train_action_head.py --dataset jhmdb21 --qmm_name noskip_sr:4

Leaves checkpoint/<dataset>/<qmm_name>/head/<head_name>/epoch_<n>.pth. Defaults are those of the published runs.
"""

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.config import load_project
from datasets.frame_batches import SubsetVideos
from datasets.track_batches import TrackBatches
from datasets.use_shards import epoch_batches
from models.action_head import build_action_head
from models.frame_features import FRAME_KINDS, features_of_tracks, frame_extractor
from utils.cli import Parser, not_negative, positive_int, run, run_name, share, tell_left_out
from utils.distributed import process_group, rank, rank_mean, world_size
from utils.flags import (
    add_data_flags,
    add_detector_flags,
    add_frame_flags,
    add_head_flags,
    add_linking_flags,
    add_run_flags,
    add_training_flags,
)
from utils.misc import InputError, start
from utils.storage.tracks import (
    TrackStore,
    fill_linked_flags,
    head_folder,
    tar_path,
)
from utils.training.loop import fit


def parse_args() -> argparse.Namespace:
    parser = Parser("Train the action head on linked queries.")
    add_data_flags(parser)
    parser.flag("data", "subset", default="train", help="subset to train on")
    parser.flag("data", "val_subset", default="val", help="subset to measure on, where its linked queries are there")
    parser.flag("data", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    add_linking_flags(parser)
    add_head_flags(parser)
    parser.flag("model", "time_cycle", type=positive_int,
                help="period of the time encoding in frames (default: the data set's)")  # fmt: skip
    parser.flag("model", "time_d", type=positive_int, default=32, help="width of the time where it is appended")
    parser.flag("model", "n_layers", type=positive_int, default=2, help="transformer layers")
    parser.flag("model", "nhead", type=positive_int, default=8, help="attention heads")
    parser.flag("model", "dim_feedforward", type=positive_int, default=256, help="width of feed-forward layers")
    parser.flag("model", "dropout", type=share, default=0.1, help="dropout")
    add_frame_flags(parser)
    add_detector_flags(parser, detr=None)
    add_training_flags(parser, epochs=20, batch_size=16, lr=1e-3, lr_drop=15, unit="tubes padded together in")
    parser.flag("training", "iter_update", type=positive_int, default=64, help="tubes a step")
    parser.flag(
        "training", "no_action_weight", type=not_negative, help="weight of 'no action' (default: the data set's)"
    )
    add_run_flags(parser)
    return parser.parse_args()


def frame_losses(head: nn.Module, batch: dict, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each tube of a padded batch: the weighted mean of its frames' cross-entropies (B,), right frames, frames."""
    device = weight.device
    on = {key: value if value is None else value.to(device, non_blocking=True) for key, value in batch.items()}
    logits = head(on["queries"], on["times"], on["padding"], on["features"]).float()
    inside = ~on["padding"]
    ce = F.cross_entropy(logits.transpose(1, 2), on["labels"], weight, reduction="none")
    weights = weight[on["labels"]] * inside
    right = ((logits.argmax(-1) == on["labels"]) & inside).sum()
    return (ce * inside).sum(1) / weights.sum(1).clamp(min=1e-12), right, inside.sum()


def losses(
    data: TrackBatches, size: int, weight: Tensor, model: nn.Module, group: list[list]
) -> Iterator[tuple[Tensor, dict]]:
    """One step over the tubes of `group`, padded up to `size` at a time: each tube counts alike, however long.

    Processes differ by at most one tube, and DistributedDataParallel waits for as many parts from each: one that has
    too few tubes for that takes part with another, which counts nothing.
    """
    which = [index for step in group for _, index in step]
    tubes = float(len(which))
    if world_size() > 1:
        tubes = rank_mean(torch.tensor(tubes, device=weight.device)).item()
    chunks = data.chunks(which, math.ceil(math.ceil(tubes) / size))
    for people in chunks:
        each, right, frames = frame_losses(model, data.batch(people or data.tracks[:1]), weight)
        yield each.sum() * bool(people) / tubes, {"accuracy": right / frames / len(chunks)}


@torch.inference_mode()
def evaluate(data: TrackBatches, size: int, weight: Tensor, head: nn.Module, epoch: int) -> dict[str, float]:
    """`val_loss`, the mean over tubes, and `val_accuracy`, the share of frames whose action is right."""
    total = right = frames = 0.0
    for people in data.chunks(range(len(data)), math.ceil(len(data) / size)):
        each, hits, n = frame_losses(head, data.batch(people), weight)
        total, right, frames = total + float(each.sum()), right + int(hits), frames + int(n)
    return {"val_loss": total / len(data), "val_accuracy": right / frames}


def main() -> None:
    """The command line."""
    args = parse_args()
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        root = Path(args.checkpoint_root) / project.name / args.qmm_name
        fill_linked_flags(args, project, root)
        project.fill(args, time_cycle="time_cycle", no_action_weight="no_action_weight")
        bad: dict[str, str] | None = {} if args.skip_bad else None
        linked = TrackStore(tar_path(args, root, args.subset), None, f"eval_qmm.py --subset {args.subset}", bad)
        frames = None
        if args.head_type in FRAME_KINDS:
            frames = frame_extractor(args.head_type, args, device, linked.settings["detector"])

        def tubes_of(subset: str, people: TrackStore) -> TrackBatches:
            features = None
            if frames:
                videos = SubsetVideos(project, subset, args.workers, args.skip_bad)
                features = features_of_tracks(root.parent / "features", videos, frames)
            return TrackBatches(people, args.seed, features)

        data = tubes_of(args.subset, linked)
        if not len(data):
            raise InputError(
                f"{linked.path}: nobody was followed in {args.subset!r}; lower --psn_score_th of eval_qmm.py"
            )
        weight = torch.ones(len(project.labels) + 1, device=device)
        weight[-1] = args.no_action_weight
        measure, val_tar = None, tar_path(args, root, args.val_subset)
        if val_tar.is_file():
            val = tubes_of(args.val_subset, TrackStore(val_tar, bad=bad))
            measure = partial(evaluate, val, args.batch_size, weight) if len(val) else None
        names = ("head_type", "time_cycle", "time_d", "n_layers", "nhead", "dim_feedforward", "dropout")
        head = build_action_head(
            n_classes=len(project.labels),
            in_d=linked.width,
            frame_d=frames.width if frames else 0,
            **{name: getattr(args, name) for name in names},
        )

        def epoch_of(epoch: int, first: int = 0) -> list:
            return epoch_batches(data, epoch, args.iter_update, rank(), world_size())[first:]

        fit(
            stage="train_action_head",
            folder=head_folder(args, root),
            model=head,
            parameters=[{"params": list(head.parameters()), "lr": args.lr}],
            config={
                "head": head.config,
                "labels": project.labels,
                "settings": linked.settings,
                "frames": frames.key if frames else None,
            },
            args=args,
            device=device,
            n_batches=lambda epoch: len(epoch_of(epoch)),
            batches=lambda epoch, first: epoch_of(epoch, first),
            losses=partial(losses, data, args.batch_size, weight),
            keys=lambda step: [f"{data.tracks[i].video} person {data.tracks[i].person_id}" for _, i in step],
            evaluate=measure,
        )
        if rank() == 0:
            tell_left_out(bad or {})


if __name__ == "__main__":
    run(main)
