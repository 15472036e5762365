"""Stage 4: train the action head on the tracks that eval_qmm.py kept for the training subset.

    python eval_qmm.py --dataset jhmdb21 --qmm_name noskip_sr:4 --subset train
    python train_action_head.py --dataset jhmdb21 --qmm_name noskip_sr:4

Leaves checkpoint/<dataset>/<qmm_name>/head/<head_name>/epoch_<n>.pth. `--preset published` trains as the published
runs did (docs/protocol.md).
"""

import argparse
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

from models.head_types import HEAD_TYPES, TIME_ENCODINGS, add_head_flags, head_folder
from models.link_settings import LinkSettings, add_linking_flags, existing_tar, link_settings, open_tracks
from utils import flags
from utils.cli import Parser, not_negative, positive_int, run, run_name, share, tell_left_out

MAX_WEIGHT = 100  # of an action's presence


def make_parser() -> Parser:
    parser = Parser("Train the action head on the decoder queries of tracks.")
    flags.add_data_flags(parser)
    parser.flag("data", "subset", default="train", help="subset to train on")
    parser.flag("data", "val_subset", default="val", help="subset to validate on, where it has tracks")
    parser.flag("data", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    add_linking_flags(parser)
    add_head_flags(parser)
    help_text = "published: sinusoids of base --time_cycle, which never repeat; periodic: harmonics of --time_cycle"
    parser.flag("model", "time_encoding", choices=TIME_ENCODINGS, default="published", help=help_text)
    help_text = f"period (or base) of the time encoding in frames {flags.OF_DATA}"
    parser.flag("model", "time_cycle", type=positive_int, help=help_text)
    parser.flag("model", "time_d", type=positive_int, default=32, help="width of the time where it is appended")
    parser.flag("model", "n_layers", type=positive_int, default=2, help="transformer layers")
    parser.flag("model", "nhead", type=positive_int, default=8, help="attention heads")
    parser.flag("model", "dim_feedforward", type=positive_int, default=256, help="width of feed-forward layers")
    parser.flag("model", "dropout", type=share, default=0.1, help="dropout")
    flags.add_frame_flags(parser)
    flags.add_detector_flags(parser, detr=None)
    help_text = "tracks of a forward pass, padded to the longest; changes speed and memory, not the gradient"
    flags.add_training_flags(parser, epochs=20, batch_size=16, lr=1e-3, lr_drop=15, batch_help=help_text)
    help_text = "maximum frames of a forward pass, padding included; a longer track has a pass of its own"
    parser.flag("training", "max_frames_in_batch", type=positive_int, default=20_000, help=help_text)
    help_text = "tracks of an optimizer step and process, whose gradients are accumulated"
    parser.flag("training", "iter_update", type=positive_int, default=64, help=help_text)
    parser.flag("training", "class_weights", choices=("none", "balanced"), default="none",
                help="multi_label data: weight of an action's presence in its binary cross-entropy; balanced: frames "
                f"without the action / with it, from 1 to {MAX_WEIGHT}")  # fmt: skip
    help_text = f"weight of 'no action' in the cross-entropy {flags.OF_DATA}"
    parser.flag("training", "no_action_weight", type=not_negative, help=help_text)
    flags.add_run_flags(parser)
    return parser


if __name__ == "__main__":  # PyTorch takes seconds to import: --help and mistyped flags are answered before
    make_parser().parse_args()

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.annotations import read_annotations
from datasets.config import Project, load_project
from datasets.frame_batches import SubsetVideos
from datasets.likely_mistakes import warn_of_shared_videos
from datasets.presets import parse_with_preset
from datasets.track_batches import TrackBatches
from datasets.use_shards import epoch_batches
from models.action_head import build_action_head
from models.frame_features import features_of_tracks, frame_extractor
from utils.distributed import per_rank, process_group, rank, rank_mean, world_size
from utils.misc import InputError, start, tell
from utils.storage.tracks import TrackStore
from utils.training.run import TrainingRun


def classify(head: nn.Module, batch: dict, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Classify the frames of a padded batch of B tracks (`TrackBatches.batch`).

    Returns:
        Logits float32 (B, T, c); labels int64 (B, T), or where they are sets uint8 (B, T, c); and bool (B, T), which
        frames count: those of tracks whose labels are known.
    """
    on = {key: value if value is None else value.to(device, non_blocking=True) for key, value in batch.items()}
    logits = head(on["queries"], on["times"], on["padding"], on["features"]).float()
    labels = on["labels"]
    return logits, labels, (labels > 0).any(-1) if labels.dim() == 3 else ~on["padding"] & (labels >= 0)


def frame_losses(logits: Tensor, labels: Tensor, counts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and hits of what `classify` gives.

    Where labels are sets, the cross-entropy is binary, `weight` (n_classes,) is that of a class's presence, and in a
    frame with labels every other class is absent.

    Returns:
        The weighted mean cross-entropy of each track's frames (B,), the number of frames whose most probable class is
        right, and the number of frames.
    """
    if labels.dim() == 3:
        sets = labels.float()
        losses = F.binary_cross_entropy_with_logits(logits, sets, pos_weight=weight, reduction="none").mean(-1)
        right = sets.gather(-1, logits.argmax(-1, keepdim=True)).sum()
        return (losses * counts).sum(1) / counts.sum(1).clamp(min=1), right, counts.sum()
    losses = F.cross_entropy(logits.transpose(1, 2), labels, weight, ignore_index=-1, reduction="none")
    weights = weight[labels] * counts
    right = ((logits.argmax(-1) == labels) & counts).sum()
    return (losses * counts).sum(1) / weights.sum(1).clamp(min=1e-12), right, counts.sum()


def top_k_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label, or one of a set, is among the `k` highest logits: float (n, c), int64 (n,) or uint8 (n, c) ->
    bool (n,)."""
    top = logits.topk(min(k, logits.shape[1])).indices
    return (labels.gather(1, top) > 0).any(1) if labels.dim() == 2 else (top == labels[:, None]).any(1)


@torch.inference_mode()
def validate(
    head: nn.Module, data: TrackBatches, batch_size: int, weight: Tensor, max_frames: float = math.inf
) -> dict[str, float]:
    """The metrics of held-out tracks.

    Returns:
        `val_loss`, the mean over tracks; `val_accuracy`, the share of frames whose most probable class is right;
        `val_top5`, of those whose label is among the five most probable, "no action" being a class as any other;
        `val_action_top1` and `val_action_top5`, of the frames that have an action, among the actions alone. What has no
        frame is left out. Of sets of labels one must be right, and the last class is an action too.
    """
    total = right = frames = 0.0
    hits: dict[str, list[Tensor]] = {"val_top5": [], "val_action_top1": [], "val_action_top5": []}
    for tracks in data.chunks(range(len(data)), math.ceil(len(data) / batch_size), max_frames):
        logits, labels, counts = classify(head, data.batch(tracks), weight.device)
        losses, right_of_chunk, n = frame_losses(logits, labels, counts, weight)
        total, right, frames = total + float(losses.sum()), right + int(right_of_chunk), frames + int(n)
        logits, labels = logits[counts], labels[counts]
        acts = slice(0) if labels.dim() == 2 else labels < logits.shape[1] - 1
        hits["val_top5"].append(top_k_hits(logits, labels, 5))
        for k in (1, 5):
            hits[f"val_action_top{k}"].append(top_k_hits(logits[acts, :-1], labels[acts], k))
    shares = {name: float(torch.cat(h).float().mean()) for name, h in hits.items() if sum(map(len, h))}
    return {"val_loss": total / len(data), "val_accuracy": right / frames, **shares}


def class_weights(data: TrackBatches, kind: str) -> Tensor:
    """The weight of each action's presence in sets of labels, float32 (n_classes,); `kind` as of `--class_weights`."""
    if kind == "none":
        return torch.ones(data.tracks[0].labels.shape[1])
    sets = np.concatenate([track.labels[track.labels.any(1)] for track in data.tracks])
    present = sets.sum(0, dtype=np.int64)
    weights = (len(sets) - present) / np.maximum(present, 1)
    return torch.from_numpy(weights.clip(1, MAX_WEIGHT).astype(np.float32))


def subset_tracks(
    args: argparse.Namespace, project: Project, linking: LinkSettings, path: Path, subset: str, bad: dict | None
) -> TrackStore:
    """A subset's tracks. InputError where `eval_qmm.py` would make them of something else now."""
    annotations = read_annotations(project, project.split(subset), bad)
    videos = SubsetVideos(project, subset, args.workers, args.skip_bad)
    return open_tracks(path, linking, project, videos, annotations, bad)


def validation_tracks(
    args: argparse.Namespace, project: Project, linking: LinkSettings, store: TrackStore, bad: dict | None
) -> TrackStore | None:
    """The tracks of `--val_subset` that go with the training subset's in `store`.

    None where there are none, or with a note where they cannot be used, such as those of something else.
    """
    path = store.path.parents[1] / args.val_subset / store.path.name
    if not path.is_file():
        return None
    try:
        tracks = subset_tracks(args, project, linking, path, args.val_subset, bad)
        if (key := tracks.settings["detector"].get("key")) != store.settings["detector"].get("key"):
            raise InputError(f"{path}: was made by another detector, {key}, than {store.path}")
    except InputError as error:
        if rank() == 0:
            tell(f"note: {error}; until then nothing is validated")
        return None
    return tracks


def main() -> None:
    """The command line."""
    args = parse_with_preset(make_parser(), "train_action_head")
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        if args.class_weights != "none" and not project.multi_label:
            raise InputError(f"--class_weights {args.class_weights}: goes with a project file of multi_label: true")
        root = Path(args.checkpoint_root) / project.name / args.qmm_name
        linking = link_settings(args, project, root)
        warn_of_shared_videos(project, args.val_subset, args.subset)
        of_data = {n: project.default(n, given=getattr(args, n)) for n in ("time_cycle", "no_action_weight")}

        bad: dict[str, str] | None = {} if args.skip_bad else None
        tar = existing_tar(args, linking, root, args.subset)
        store = subset_tracks(args, project, linking, tar, args.subset, bad)
        kind = HEAD_TYPES[args.head_type].frames
        extractor = frame_extractor(kind, args, device, store.settings["detector"]) if kind else None
        data = TrackBatches(store, args.seed)
        if not len(data):
            labelled = " with a label" if project.multi_label else ""
            text = f"no track in {args.subset!r}{labelled}; lower --psn_score_th or --filter_length of eval_qmm.py"
            raise InputError(f"{store.path}: {text}")
        if project.multi_label:
            weight = class_weights(data, args.class_weights).to(device)
        else:
            weight = torch.ones(len(project.labels) + 1, device=device)
            weight[-1] = of_data["no_action_weight"]
        names = ("n_layers", "nhead", "dim_feedforward", "dropout", "time_d", "time_encoding")
        head_settings = {name: getattr(args, name) for name in names} | {"frame_d": extractor.width if extractor else 0}
        head_settings |= {"time_cycle": of_data["time_cycle"], "multi_label": project.multi_label}
        head = build_action_head(args.head_type, len(project.labels), store.width, **head_settings)
        subsets, metrics_of_val = [(args.subset, data)], None
        val_store = validation_tracks(args, project, linking, store, bad)
        if val_store and len(val := TrackBatches(val_store, args.seed)):
            subsets.append((args.val_subset, val))
            metrics_of_val = partial(validate, head, val, args.batch_size, weight, args.max_frames_in_batch)

        config = {
            "head": head.config,
            "labels": project.labels,
            "settings": store.settings,
            "min_tube_length": project.default("min_tube_length"),
            "frames": extractor.key if extractor else None,
        }
        settings = asdict(linking) | of_data
        frozen = {"person encoder": store.settings["encoder"], "detector": store.settings["detector"]["key"]}
        if extractor:
            frozen["model of frame features"] = extractor.key
        folder = head_folder(args, root)
        training = TrainingRun(
            "train_action_head", folder, head, config, args, device, data.checksum(), settings, frozen=frozen
        )
        for subset, batches in subsets if extractor else ():  # takes long where they are not cached
            videos = SubsetVideos(project, subset, args.workers, args.skip_bad)
            batches.features_of = features_of_tracks(root.parent / "features", videos, extractor)
        with training:
            for epoch in training.epochs():
                steps = epoch_batches(data, epoch, args.iter_update, rank(), world_size())
                for step in training.batches(steps[training.batches_done :], len(steps)):
                    indices = [index for _, index in step]
                    n_tracks = sum(per_rank(len(indices))) / world_size()  # a mean: DDP averages gradients
                    right = n_frames = torch.zeros((), device=device)
                    n_chunks = math.ceil(len(indices) / args.batch_size)
                    chunks = data.chunks(indices, n_chunks, args.max_frames_in_batch)
                    chunks += [[]] * (max(per_rank(len(chunks))) - len(chunks))  # as many in every process
                    for tracks in chunks:
                        real = bool(tracks)  # an empty chunk classifies another track, which counts nothing
                        batch = data.batch(tracks or data.tracks[:1])
                        with training.autocast:
                            losses, hits, n = frame_losses(*classify(training.model, batch, device), weight)
                        training.backward(losses.sum() * real / n_tracks)  # each track counts alike, however long
                        right, n_frames = right + hits * real, n_frames + n * real
                    names = [f"{data.tracks[i].video} track {data.tracks[i].person_id}" for i in indices]
                    training.step(names, accuracy=right / rank_mean(n_frames.float()).clamp(min=1e-9))
                training.end_epoch(metrics_of_val)
        if rank() == 0:
            tell_left_out(bad or {})


if __name__ == "__main__":
    run(main, "try a smaller --max_frames_in_batch; a track that is too long by itself, a smaller --dim_feedforward")
