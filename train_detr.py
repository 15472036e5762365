"""Stage 1: train or fine-tune DETR, the person detector, on single frames of a data set's shards.

    python train_detr.py --dataset ucf101-24 --detr coco-r101-dc5 --epochs 20

Leaves checkpoint/<dataset>/<ex_name>/detr/epoch_<n>.pth. `--preset published` trains as the published
runs did (docs/protocol.md).
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from models.detr_config import DETR_CONFIG
from utils import flags
from utils.cli import Parser, not_negative, number_or_name, positive, positive_int, run, run_name

ARCHITECTURE = {
    "backbone": "resnet18, 34, 50 or 101",
    "dilation": "DC5: the last stage keeps its resolution",
    "norm": "frozen (pretrained backbones) or bn (from scratch)",
    "stages": "stages of the ResNet that are kept, 1 to 4",
    "hidden_dim": "width of queries",
    "nheads": "attention heads",
    "enc_layers": "encoder layers",
    "dec_layers": "decoder layers",
    "dim_feedforward": "width of feed-forward layers",
    "num_queries": "object queries a frame",
    "temperature": "temperature of the position embedding",
    "position_in_features": "add the position embedding to the features too, which shortens training",
    "pre_norm": "normalise before each layer, not after",
}
TRAINING = {
    "class_loss_coef": (2.0, "weight of the class loss"),
    "bbox_loss_coef": (5.0, "weight of the L1 box loss"),
    "giou_loss_coef": (2.0, "weight of the GIoU box loss"),
    "set_cost_class": (2.0, "weight of the class in matching"),
    "set_cost_bbox": (5.0, "weight of L1 in matching"),
    "set_cost_giou": (2.0, "weight of GIoU in matching"),
    "eos_coef": (0.1, "weight of 'no object' in the class loss"),
    "dropout": (0.1, "dropout of the transformer"),
}
"""DETR's losses, matching and dropout: flag -> default, help."""
AUXILIARY = {
    "id": "weight of the auxiliary identity loss on decoder queries; needs --n_frames above 1",
    "action": "weight of the auxiliary action loss on decoder queries",
    "place": "weight of the auxiliary person/action classification loss on feature-map cells",
}
"""Losses of `models.auxiliary_losses`: name -> help."""


def make_parser() -> Parser:
    parser = Parser("Train or fine-tune DETR on single frames of a data set's shards.")
    flags.add_data_flags(parser, needs_videos=False)
    parser.flag("data", "subset", default="train", help="subset to train on")
    parser.flag("data", "val_subset", default="val", help="subset to validate boxes on, where it has shards")
    flags.add_clip_flags(parser, n_frames=1, frames_help="; --batch_size counts frames")
    parser.flag("model", "ex_name", type=run_name, default="detr", help="name of the run")
    parser.flag("model", "detr", default="coco-r101-dc5",
                help="initial weights: an official name, a checkpoint, 'scratch', or hf:<name or folder> of a detector "
                "of transformers, which trains by its own loss")  # fmt: skip
    parser.flag("model", "image_size", type=positive_int,
                help="longer side of frames in pixels (default: the checkpoint's, else 512)")  # fmt: skip
    parser.flag("model", "pad_square", action="store_true",
                help="pad frames to squares without a mask and divide boxes by the square's side, as published "
                "(default: the checkpoint's)")  # fmt: skip
    flags.add_person_flag(parser, "model")
    for name, what in ARCHITECTURE.items():
        if isinstance(DETR_CONFIG[name], bool):
            parser.flag("model", name, action="store_true", default=None, help=f"{what}, with 'scratch'")
        else:
            kind = {int: positive_int, float: positive, str: str}[type(DETR_CONFIG[name])]
            parser.flag("model", name, type=kind, help=f"{what}, with 'scratch' (default: {DETR_CONFIG[name]})")
    flags.add_training_flags(
        parser, epochs=20, batch_size=32, lr=1e-4, lr_drop=20, batch_help="frames of a batch and process"
    )
    parser.flag("training", "lr_backbone", type=not_negative, default=1e-5,
                help="learning rate of the backbone; 0 freezes it")  # fmt: skip
    for name, (default, what) in TRAINING.items():
        parser.flag("training", name, type=not_negative, default=default, help=what)
    parser.flag("training", "box_overlap", choices=("giou", "iou"),
                help="overlap in box loss and matching; published: iou (default: as trained, else giou)")  # fmt: skip
    parser.flag("training", "no_aux_loss", action="store_true",
                help="no losses on the earlier decoder layers, as published")  # fmt: skip
    for name, what in AUXILIARY.items():
        parser.flag("from scratch", f"{name}_loss_coef", type=not_negative, default=0.0, help=what)
    parser.flag("from scratch", "id_loss_tau", type=positive, default=0.1, help="temperature of the identity loss")
    parser.flag("from scratch", "id_loss_same_clip", type=not_negative, default=0.0,
                help="X: negatives of the same clip weigh e^X times in the identity loss")  # fmt: skip
    flags.add_run_flags(parser)
    return parser


if __name__ == "__main__":  # PyTorch takes seconds to import: --help and mistyped flags are answered before
    make_parser().parse_args()

import numpy as np
import torch
from torch import Tensor, nn

from datasets.compare_shards import check_index, clips_of_flags, stored_clips
from datasets.config import load_project
from datasets.likely_mistakes import warn_of_shared_videos
from datasets.make_shards import is_url, read_shards, shards_folder
from datasets.presets import parse_with_preset
from datasets.use_shards import ClipDataset, Clips, epoch_batches, make_loader
from models import hf_detector
from models.auxiliary_losses import QueryLosses
from models.detectors import is_hf
from models.detr import build_model, full_config, normalize
from models.detr_loss import SetCriterion
from models.hf_detector import HFTraining, holds_hf
from models.weights import build_detr, read_detector
from utils.box_ops import Tube, box_cxcywh_to_xyxy, paired_iou
from utils.distributed import process_group, rank, world_size
from utils.misc import InputError, start, tell
from utils.training.run import TrainingRun
from utils.video_map import calc_frame_map


class Trained(NamedTuple):
    """A detector in training.

    `detr` is what checkpoints hold, `model` what a step calls with `inputs(batch)`; without a `criterion` its outputs
    are the losses. `config` is the checkpoint's, `about` has `image_size`, `pad_square`, `person_label` and
    `num_queries`; `detect(batch)` gives person scores (N, n) and boxes (N, n, 4) cxcywh.
    """

    detr: nn.Module
    model: nn.Module
    criterion: SetCriterion | None
    config: dict
    about: dict
    inputs: Callable[[dict], tuple]
    detect: Callable[[dict], tuple[Tensor, Tensor]]


def build(args: argparse.Namespace, device: torch.device) -> Trained:
    """The detector to train, DETR or one of `transformers`, and its loss."""
    from_scratch, checkpoint = args.detr == "scratch", None
    if not (from_scratch or is_hf(args.detr)):
        path, checkpoint = read_detector(args.detr, args.checkpoint_root)
    if is_hf(args.detr) or holds_hf(checkpoint):
        return build_hf(args, checkpoint, device)
    architecture, changes = architecture_of(args)
    if from_scratch:
        if args.person_label is not None:
            raise InputError("--person_label: a detector from scratch has people as label 1; leave the flag out")
        config = {"num_classes": 2, **architecture}
    else:
        loaded, config = build_detr(path, checkpoint, person_label=number_or_name(args.person_label))
        for name, value in architecture.items():
            if config[name] != value:
                text = f"--{name} {value}: {args.detr} has {config[name]}; leave the flag out or use --detr scratch"
                raise InputError(text)
    config = full_config(config | changes)
    detr, criterion, _ = build_model(config)
    if not from_scratch:
        detr.load_state_dict(loaded.state_dict())

    def inputs(batch: dict) -> tuple:
        return normalize(batch["images"]), batch["mask"]

    def detect(batch: dict) -> tuple[Tensor, Tensor]:
        out = detr(*inputs(batch))
        return out["pred_logits"].softmax(-1)[..., config["person_label"]], out["pred_boxes"]

    return Trained(detr, detr, criterion.to(device), config, config, inputs, detect)


def architecture_of(args: argparse.Namespace) -> tuple[dict, dict]:
    """DETR's settings that the flags give: of its architecture, and all others."""
    changes = {name: getattr(args, name) for name in TRAINING} | {"aux_loss": not args.no_aux_loss}
    changes["ce_loss_coef"] = changes.pop("class_loss_coef")
    for name in ("image_size", "pad_square", "box_overlap"):  # without the flag, the checkpoint's value
        if getattr(args, name):
            changes[name] = getattr(args, name)
    return {name: getattr(args, name) for name in ARCHITECTURE if getattr(args, name) is not None}, changes


def build_hf(args: argparse.Namespace, checkpoint: dict | None, device: torch.device) -> Trained:
    """A detector of `transformers`, by name or out of a checkpoint of this script."""
    of_detr = [*ARCHITECTURE, *TRAINING, *(f"{name}_loss_coef" for name in AUXILIARY)]
    refuse_flags(args, [*of_detr, "pad_square", "box_overlap", "no_aux_loss", "compile"])
    detector = hf_detector.load(args.detr, checkpoint, device, args.image_size or 0, number_or_name(args.person_label))
    about = {"image_size": 0, "pad_square": False}  # frames as they are stored
    about |= {"person_label": detector.person_label, "num_queries": detector.num_queries}

    def inputs(batch: dict) -> tuple:
        return *detector.prepare(batch["images"], batch["mask"]), batch["targets"]

    def detect(batch: dict) -> tuple[Tensor, Tensor]:
        out = detector(*detector.prepare(batch["images"], batch["mask"]))
        return out["scores"], out["pred_boxes"]

    model, config = HFTraining(detector), detector.config()
    return Trained(detector.model, model, None, config, about, inputs, detect)


def refuse_flags(args: argparse.Namespace, names: Sequence[str]) -> None:
    """InputError for flags of DETR alone, on the command line or in a preset."""
    parser = make_parser()
    if given := [name for name in names if getattr(args, name) != parser.action_of(name).default]:
        shown = ", ".join(f"--{name}" for name in given)
        remedy = f"add --preset_except {' '.join(given)}" if args.preset else "leave that out"
        raise InputError(f"{shown}: not with {args.detr}, which has its own architecture and loss; {remedy}")


def parameter_groups(model: nn.Module, lr: float, lr_backbone: float) -> list[dict]:
    """AdamW's groups: the backbone with a learning rate of its own, frozen at 0."""
    others, backbone = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if "backbone" in name.split(".") else others).append(parameter)
    groups = [{"params": others, "lr": lr}]
    if lr_backbone > 0:
        return [*groups, {"params": backbone, "lr": lr_backbone}]
    for parameter in backbone:
        parameter.requires_grad_(False)
    return groups


def warn(args: argparse.Namespace, data: Clips, num_queries: int) -> None:
    """Warn of settings that raise no error but do not have the effect that was asked for."""
    if args.id_loss_coef and not data.anybody_twice():
        reason = "no clip shows a person in two frames; choose --n_frames 2 or more, or a lower --sampling_rate"
        tell(f"warning: --id_loss_coef {args.id_loss_coef:g} has no effect: {reason}")
    people = data.most_people()
    if people > num_queries:
        reason = "the others cannot be detected; train one with more --num_queries"
        tell(f"warning: a frame has {people} people, but the detector {num_queries} queries: {reason}")


@torch.inference_mode()
def validate(detect: Callable, data: ClipDataset, args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """The `box_metrics` of a detector (`Trained.detect`) over a subset."""
    scores, boxes, people = [], [], []
    for batch in make_loader(data, epoch_batches(data, 0, args.batch_size, shuffle=False), args.workers, device):
        person_scores, predicted = detect(batch)
        scores += list(person_scores.cpu().numpy())
        boxes += list(box_cxcywh_to_xyxy(predicted).cpu().numpy())
        people += [box_cxcywh_to_xyxy(target["boxes"]).cpu().numpy() for target in batch["targets"]]
    return box_metrics(scores, boxes, people)


def box_metrics(scores: list[np.ndarray], boxes: list[np.ndarray], people: list[np.ndarray]) -> dict[str, float]:
    """How well person boxes are detected, frame by frame.

    Args:
        scores: person scores (N,) of each frame's queries.
        boxes: their boxes (N, 4) xyxy.
        people: ground-truth boxes (n, 4) of each frame.

    Returns:
        `val_AP50`, the frame AP of person boxes at IoU 0.5, and `val_recall50`, the share of people with a box of at
        least IoU 0.5 and score 0.5; empty where there is nobody.
    """
    pred: dict[str, list[Tube]] = {}
    gt: dict[str, list[Tube]] = {}
    detected = 0
    for frame, (score, box, person) in enumerate(zip(scores, boxes, people, strict=True)):
        gt[str(frame)] = [Tube([0], b[None], 0) for b in person]
        ranked = score > 0  # not NaN, of a detector that has diverged
        pred[str(frame)] = [Tube([0], b[None], 0, float(s)) for b, s in zip(box[ranked], score[ranked], strict=True)]
        hit = (paired_iou(person[:, None], box[None]) >= 0.5) & (score >= 0.5)
        detected += int(hit.any(1).sum())
    total = sum(map(len, people))
    if not total:
        return {}
    return {"val_AP50": float(calc_frame_map(pred, gt, 1, 0.5)[0]), "val_recall50": detected / total}


def main() -> None:
    """The command line."""
    args = parse_with_preset(make_parser(), "train_detr")
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        streamed = is_url(args.shards_path)
        folder_of = partial(shards_folder, None if streamed else args.shards_path, project, data_root=args.data_root)
        if not streamed:  # a mistake here stops the run before weights are downloaded
            check_index(folder_of(args.subset), project, args.subset)
            next(read_shards(folder_of(args.subset)), None)
        detr, model, criterion, config, about, inputs, detect = build(args, device)
        detr.to(memory_format=torch.channels_last)  # as the images come; convolutions are faster

        size = {"image_size": about["image_size"], "pad_square": about["pad_square"]}
        data, metrics_of_val = clips_of_flags(args, project, **size), None
        if (folder_of(args.val_subset) / "index.json").is_file():
            more = {"train": False, "clips_per_video": 4, "seed": args.seed, **size}
            warn_of_shared_videos(project, args.val_subset, args.subset)
            val = stored_clips(folder_of(args.val_subset), project, args.val_subset, **more)
            metrics_of_val = partial(validate, detect, val, args, device)
        if rank() == 0:
            warn(args, data, about["num_queries"])

        auxiliary, weights = None, {f"loss_{name}": getattr(args, f"{name}_loss_coef") for name in AUXILIARY}
        if any(weights.values()):
            model = auxiliary = QueryLosses(detr, len(project.labels), args.id_loss_tau, args.id_loss_same_clip)
        groups = parameter_groups(model, args.lr, args.lr_backbone)
        folder = Path(args.checkpoint_root) / project.name / args.ex_name / "detr"
        settings = {name: about[name] for name in about.keys() & vars(args).keys()}  # of the file at --detr, or flags
        with TrainingRun(
            "train_detr", folder, model, config, args, device, data.checksum(), settings, groups, exported=detr
        ) as training:
            for epoch in training.epochs():
                batches = epoch_batches(data, epoch, max(args.batch_size // args.n_frames, 1), rank(), world_size())
                loader = make_loader(data, batches[training.batches_done :], args.workers, device)
                for batch in training.batches(loader, len(batches)):
                    for target in batch["targets"]:
                        target["labels"].fill_(about["person_label"])
                    with training.autocast:
                        outputs = training.model(*inputs(batch))
                    if criterion is None:
                        losses, loss = outputs, outputs["loss"]
                    else:
                        matches = criterion.match(outputs, batch["targets"])
                        losses = criterion(outputs, batch["targets"], matches)
                        loss = criterion.total(losses)
                    if auxiliary is not None:
                        losses |= auxiliary.losses(outputs, batch["targets"], matches[0], batch["clip"])
                        loss = loss + sum(weight * losses[name] for name, weight in weights.items())
                    training.backward(loss)
                    last_layer = {name: value for name, value in losses.items() if not name[-1].isdigit()}
                    training.step(batch["names"], **last_layer)
                training.end_epoch(metrics_of_val)


if __name__ == "__main__":
    run(main)
