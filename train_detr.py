"""Stage 1: train or fine-tune DETR, the detector of people, on single frames of a data set's shards.

    python train_detr.py --dataset ucf101-24 --detr coco-r101-dc5 --epochs 20

Leaves checkpoint/<dataset>/<ex_name>/detr/epoch_<n>.pth. Defaults are those of the published runs.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.config import load_project
from datasets.make_shards import read_shards, shards_folder
from datasets.use_shards import ClipDataset, epoch_batches, make_loader
from models.auxiliary_losses import IDENTITY_TAU, QueryLosses
from models.detr import DETR_CONFIG, PERSON, build_model, full_config, normalize
from models.detr_loss import SetCriterion
from models.weights import load_detr
from utils.box_ops import Tube, box_cxcywh_to_xyxy, paired_iou
from utils.cli import Parser, not_negative, positive, positive_int, run, run_name
from utils.distributed import process_group, rank, world_size
from utils.flags import add_data_flags, add_run_flags, add_training_flags
from utils.misc import InputError, start
from utils.training.loop import fit
from utils.video_map import calc_frame_map

ARCHITECTURE = {
    "backbone": "resnet18, 34, 50 or 101",
    "dilation": "DC5: the last stage keeps its resolution",
    "norm": "frozen (pretrained backbones) or bn (from nothing)",
    "stages": "the ResNet is cut after so many stages",
    "hidden_dim": "width of queries",
    "nheads": "attention heads",
    "enc_layers": "encoder layers",
    "dec_layers": "decoder layers",
    "dim_feedforward": "width of feed-forward layers",
    "num_queries": "object queries a frame",
    "temperature": "temperature of the position embedding",
    "position_in_features": "add the position embedding to the features too, which shortens training",
    "pre_norm": "normalise before each step, not after",
}
LOSSES = {
    "ce_loss_coef": ("class_loss_coef", 2.0, "weight of the class loss"),
    "bbox_loss_coef": ("bbox_loss_coef", 5.0, "weight of the L1 loss of boxes"),
    "giou_loss_coef": ("giou_loss_coef", 2.0, "weight of the GIoU loss"),
    "set_cost_class": ("set_cost_class", 2.0, "weight of the class in matching"),
    "set_cost_bbox": ("set_cost_bbox", 5.0, "weight of L1 in matching"),
    "set_cost_giou": ("set_cost_giou", 2.0, "weight of GIoU in matching"),
    "eos_coef": ("eos_coef", 0.1, "weight of 'no object' in the class loss"),
    "dropout": ("dropout", 0.1, "dropout of the transformer"),
}
FROM_NOTHING = {
    "id": "weight of telling people apart by single queries",
    "action": "weight of telling actions apart by single queries",
    "place": "weight of telling whether somebody is at a place of the backbone's map, doing what",
}
"""What the losses of `models.auxiliary_losses` do."""


def parse_args() -> argparse.Namespace:
    parser = Parser("Train or fine-tune DETR on single frames of a data set's shards.")
    add_data_flags(parser, needs_videos=False)
    parser.flag("data", "shards_path", help="folder of the shards (default: <data_root>/<dataset>/shards)")
    parser.flag("data", "subset", default="train", help="subset to train on")
    parser.flag("data", "val_subset", default="val", help="subset to measure boxes on, where its shards are there")
    parser.flag("data", "clips_per_video", type=positive_int, default=1, help="random clips of a video an epoch")
    parser.flag("data", "n_frames", type=positive_int, default=1, help="frames of a clip; --batch_size counts frames")
    parser.flag("data", "sampling_rate", type=positive_int, default=4, help="frames from one of a clip to the next")
    parser.flag("data", "jitter", type=not_negative, default=0.2, help="change of brightness, contrast and saturation")
    parser.flag("data", "jitter_hue", type=not_negative, default=0.1, help="change of hue")
    parser.flag("model", "ex_name", type=run_name, default="detr", help="name of the run")
    parser.flag("model", "detr", default="coco-r101-dc5",
                help="what to start from: an official name, a checkpoint, or 'scratch'")  # fmt: skip
    parser.flag("model", "image_size", type=positive_int, help="longer side of frames in pixels (default: 512)")
    what = "pad frames to squares without a mask, boxes divided by them, as in the published runs"
    parser.flag("model", "pad_square", action="store_true", help=what)
    for name, what in ARCHITECTURE.items():
        kind = type(DETR_CONFIG[name])
        number = {int: positive_int, float: positive}.get(kind, kind)
        options = {"action": "store_true"} if kind is bool else {"type": number}
        shown = "" if kind is bool else f" (default: {DETR_CONFIG[name]})"
        parser.flag("model", name, default=None, help=f"{what}, with 'scratch'{shown}", **options)
    add_training_flags(parser, epochs=20, batch_size=32, lr=1e-4, lr_drop=20, unit="frames")
    parser.flag(
        "training", "lr_backbone", type=not_negative, default=1e-5, help="learning rate of the backbone; 0 freezes it"
    )
    for flag, default, what in LOSSES.values():
        parser.flag("training", flag, type=not_negative, default=default, help=what)
    for name, what in FROM_NOTHING.items():
        parser.flag("from nothing", f"{name}_loss_coef", type=not_negative, default=0.0, help=what)
    parser.flag(
        "from nothing", "id_loss_tau", type=positive, default=IDENTITY_TAU, help="temperature of --id_loss_coef"
    )
    parser.flag("training", "box_overlap", choices=("giou", "iou"),
                help="overlap in the box loss and in matching; published: iou (default: giou)")  # fmt: skip
    add_run_flags(parser)
    return parser.parse_args()


def build(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, SetCriterion, dict]:
    """The detector to train, its loss and its configuration."""
    changes = {name: getattr(args, flag) for name, (flag, _, _) in LOSSES.items()}
    for name in ("image_size", "pad_square", "box_overlap"):  # those of the checkpoint, where no flag says otherwise
        if getattr(args, name):
            changes[name] = getattr(args, name)
    asked = {name: getattr(args, name) for name in ARCHITECTURE if getattr(args, name) is not None}
    if args.detr == "scratch":
        config = full_config({"num_classes": 2, **asked, **changes})
        detr, criterion, _ = build_model(config)
        return detr, criterion.to(device), config
    loaded, config = load_detr(args.detr, args.checkpoint_root)
    for name, value in asked.items():
        if config[name] != value:
            raise InputError(
                f"--{name} {value}: {args.detr} has {config[name]}; leave the flag out or use --detr scratch"
            )
    config = full_config({**config, **changes})
    detr, criterion, _ = build_model(config)
    detr.load_state_dict(loaded.state_dict())
    return detr, criterion.to(device), config


def parameter_groups(detr: nn.Module, args: argparse.Namespace) -> list[dict]:
    """AdamW's groups: the backbone with a rate of its own."""
    named = [(name, p) for name, p in detr.named_parameters() if p.requires_grad]
    groups = [{"params": [p for name, p in named if not name.startswith("backbone.")], "lr": args.lr}]
    backbone = [p for name, p in named if name.startswith("backbone.")]
    if args.lr_backbone > 0:
        groups.append({"params": backbone, "lr": args.lr_backbone})
    else:
        for parameter in backbone:
            parameter.requires_grad_(False)
    return groups


def losses(
    criterion: SetCriterion,
    queries: QueryLosses | None,
    coefs: dict[str, float],
    model: nn.Module,
    group: list[dict],
) -> Iterator[tuple[Tensor, dict]]:
    """The weighted loss of one batch, and its parts of the last decoder layer."""
    for batch in group:
        out = model(normalize(batch["images"]), batch["mask"])
        with torch.autocast(batch["images"].device.type, enabled=False):
            matches = criterion.match(out, batch["targets"])
            parts = criterion(out, batch["targets"], matches)
            total = criterion.total(parts)
            if queries is not None:
                parts |= queries.losses(out, batch["targets"], matches[0])
                total = total + sum(coef * parts[name] for name, coef in coefs.items())
            yield total, {n: v.detach() for n, v in parts.items() if not n[-1].isdigit()}


@torch.inference_mode()
def evaluate(
    data: ClipDataset, batch_size: int, workers: int, device: torch.device, model: nn.Module, epoch: int
) -> dict:
    """`val_AP50` of person boxes, and `val_recall50`: the share of people with a box of IoU 0.5 and score 0.5."""
    pred: dict[str, list[Tube]] = {}
    gt: dict[str, list[Tube]] = {}
    found = there = 0
    for batch in make_loader(data, epoch_batches(data, 0, batch_size, shuffle=False), workers, device):
        out = model(normalize(batch["images"]), batch["mask"])
        scores = out["pred_logits"].softmax(-1)[..., PERSON].cpu().numpy()
        boxes = box_cxcywh_to_xyxy(out["pred_boxes"]).cpu().numpy()
        for i, target in enumerate(batch["targets"]):
            name, wanted = str(len(gt)), box_cxcywh_to_xyxy(target["boxes"]).cpu().numpy()
            gt[name] = [Tube([0], box[None], 0) for box in wanted]
            pred[name] = [Tube([0], b[None], 0, float(s)) for b, s in zip(boxes[i], scores[i], strict=True) if s > 0.05]
            close = paired_iou(wanted[:, None], boxes[i][None]) >= 0.5
            found += int((close & (scores[i] >= 0.5)).any(1).sum())
            there += len(wanted)
    if not there:
        return {}
    return {"val_AP50": float(calc_frame_map(pred, gt, 1, 0.5)[0]), "val_recall50": found / there}


def main() -> None:
    """The command line."""
    args = parse_args()
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        folder = partial(shards_folder, args.shards_path, project, data_root=args.data_root)
        next(read_shards(folder(args.subset)), None)  # a mistake there is told before weights are fetched
        detr, criterion, config = build(args, device)
        jitter = np.array([args.jitter] * 3 + [args.jitter_hue])
        clips = {name: config[name] for name in ("image_size", "pad_square")} | {"seed": args.seed}
        data = ClipDataset(
            folder(args.subset),
            args.n_frames,
            args.sampling_rate,
            clips_per_video=args.clips_per_video,
            jitter=jitter,
            **clips,
        )
        coefs = {f"loss_{name}": getattr(args, f"{name}_loss_coef") for name in FROM_NOTHING}
        detr.to(memory_format=torch.channels_last)  # as the images come; convolutions are faster
        queries = QueryLosses(detr, len(project.labels), args.id_loss_tau) if any(coefs.values()) else None
        model, groups = detr, parameter_groups(detr, args)
        if queries is not None:
            model = queries
            for part in (queries.identity, queries.action, queries.place):
                groups[0]["params"] += part.parameters()
        measure = None
        if (folder(args.val_subset) / "index.json").is_file():
            val = ClipDataset(folder(args.val_subset), train=False, clips_per_video=4, **clips)
            measure = partial(evaluate, val, args.batch_size, args.workers, device)

        def epoch_of(epoch: int, first: int = 0) -> list:
            clips_a_batch = max(args.batch_size // args.n_frames, 1)
            return epoch_batches(data, epoch, clips_a_batch, rank(), world_size())[first:]

        fit(
            stage="train_detr",
            folder=Path(args.checkpoint_root) / project.name / args.ex_name / "detr",
            model=model,
            exported=detr,
            parameters=groups,
            config=config,
            args=args,
            device=device,
            n_batches=lambda epoch: len(epoch_of(epoch)),
            batches=lambda epoch, first: make_loader(data, epoch_of(epoch, first), args.workers, device),
            losses=partial(losses, criterion, queries, coefs),
            keys=lambda batch: batch["names"],
            evaluate=measure,
        )


if __name__ == "__main__":
    run(main)
