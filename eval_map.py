"""Stage 5: action tubes from linked queries, and how good they are.

    python eval_map.py --dataset jhmdb21 --qmm_name noskip_sr:4 --metric v-mAP --tiou_th 0.2 0.5

Reads the tar of eval_qmm.py and a head of train_action_head.py; leaves results/eval_map-<subset>-<settings>.json.
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.config import Project, load_project
from datasets.dataset import VideoFrames
from datasets.frame_batches import SubsetVideos
from models.action_head import ActionHead, action_probabilities, load_head
from models.frame_features import features_of_tracks, frame_extractor
from models.head_types import add_head_flags, head_folder
from models.link_settings import add_linking_flags, link_settings, settings_differences
from models.tube import action_tubes
from utils.box_ops import MOTION_CATEGORIES, Tube
from utils.cli import Parser, count, positive_int, run, run_name, tell_left_out, thresholds
from utils.flags import add_data_flags, add_detector_flags, add_frame_flags, add_log_flags, add_run_flags
from utils.gt_tubes import make_gt_tubes
from utils.misc import InputError, pick_device, progress, start
from utils.results import add_plot_video_flag, check_plot_video, print_table, write_results
from utils.storage.files import epoch_path
from utils.storage.tracks import TrackStore
from utils.video_map import PROTOCOLS, calc_frame_map, calc_motion_ap, calc_video_map, mean_ap

METRICS = ("v-mAP", "motion-AP", "frame-mAP")


def parse_args() -> argparse.Namespace:
    parser = Parser("Classify linked people frame by frame and measure the action tubes.")
    add_data_flags(parser)
    parser.flag("data", "subset", default="val", help="subset to measure on")
    parser.flag("data", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    add_linking_flags(parser, "load_epoch_qmm")
    add_head_flags(parser)
    parser.flag("model", "load_epoch_head", type=positive_int, help="epoch of the head (default: the last)")
    add_frame_flags(parser)
    add_detector_flags(parser, detr=None)
    parser.flag("detector", "n_frames", dest="detr_batch", type=count, default=argparse.SUPPRESS,
                help="the same as --detr_batch, as in eval_qmm.py (of the trainers: frames a clip)")  # fmt: skip
    parser.flag("action tubes", "topk", type=positive_int, default=1, help="classes of a frame that form action tubes")
    parser.flag("action tubes", "min_tube_length", type=positive_int,
                help="action tubes of fewer frames are dropped (default: the data set's, else 9)")  # fmt: skip
    parser.flag("measuring", "metric", choices=METRICS, default="v-mAP", help="what to measure")
    parser.flag("measuring", "protocol", choices=PROTOCOLS, default="voc", help="how AP is computed")
    parser.flag("measuring", "count_duplicates", action="store_true",
                help="v-mAP as published: a second detection of one tube is correct again")  # fmt: skip
    parser.flag("measuring", "tiou_th", nargs="+", default=["0.2", "0.5"],
                help="IoU thresholds, or ranges such as 0.5:0.95")  # fmt: skip
    add_log_flags(parser)
    add_plot_video_flag(parser)
    add_run_flags(parser)
    return parser.parse_args()


def load_fitting_head(
    args: argparse.Namespace, project: Project, root: Path, linked: TrackStore, device: torch.device
) -> tuple[ActionHead, dict, int]:
    """The head, its config and epoch; InputError when it does not fit the data set or the tracks.

    Tracks that were linked with other settings than those that it was trained on are a note on stderr.
    """
    path = epoch_path(head_folder(args, root), args.load_epoch_head, "action head", "train_action_head.py", beside=True)
    head, config, epoch = load_head(path, device)
    if config["labels"] != project.labels:
        raise InputError(f"{path}: was trained for other labels than those of {project.path}; train the head again")
    trained_on, given = ({**settings, **settings["detector"]} for settings in (config["settings"], linked.settings))
    for name, what in (("encoder", "encoder"), ("key", "detector"), ("link_cues", "link_cues")):
        other_epoch = name == "encoder" and trained_on["load_epoch"] != given["load_epoch"]  # one of the noted settings
        if trained_on[name] != given[name] and not other_epoch:
            by, remedy = f"another {what} than", "train it again"
            if name == "key" and trained_on["weights"] == given["weights"]:
                by = f"{trained_on[name]}, not by {given[name]} as"
                remedy = "run eval_qmm.py with the same --amp, --image_size and --pad_square for both, or " + remedy
            raise InputError(f"{path}: was trained on people linked by {by} {linked.path}; {remedy}")
    differences = settings_differences(trained_on, given)
    if differences:
        print(f"note: {path} was trained on tracks of other settings: {differences}", file=sys.stderr)
    return head, config, epoch


def classify(
    args: argparse.Namespace,
    project: Project,
    root: Path,
    linked: TrackStore,
    head: ActionHead,
    frames: str | None,
    min_length: int,
    device: torch.device,
) -> tuple[dict[str, list[Tube]], dict[str, list[np.ndarray]]]:
    """The action tubes of every video, and each one's score in each of its frames.

    `frames` is the key of the frame features that the head was trained with.
    """
    features_of = None
    if head.needs_frames:
        extractor = frame_extractor(head.needs_frames, args, device, linked.settings["detector"])
        if extractor.key != frames:
            raise InputError(f"the head was trained with frame features {frames}, not {extractor.key}")
        features_of = features_of_tracks(
            root.parent / "features", SubsetVideos(project, args.subset, args.workers, args.skip_bad), extractor
        )
    tubes: dict[str, list[Tube]] = {name: [] for name in linked.names}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in linked.names}
    for person in progress(list(linked), desc="actions", unit="person", leave=False):
        features = features_of(person) if features_of else None
        found = action_probabilities(head, linked.queries(person), person.frames - person.frames[0], features)
        actions = action_tubes(person.frames, person.boxes, found, args.topk, min_length, person.person_id)
        tubes[person.video] += [tube for tube, _ in actions]
        scores[person.video] += [each for _, each in actions]
    return tubes, scores


def measure(
    args: argparse.Namespace, labels: list[str], pred: dict[str, list[Tube]], scores: dict, gt: dict[str, list[Tube]]
) -> dict:
    """The figures of `docs/protocol.md`, by the names of the results file; printed as tables."""
    levels, n = args.tiou_th, len(labels)
    metrics: dict = {"tubes": sum(map(len, pred.values())), "gt_tubes": sum(map(len, gt.values())), "videos": len(gt)}
    columns = [f"@{level:g}" for level in levels]
    if args.metric == "motion-AP":
        by_kind = calc_motion_ap(pred, gt, n, levels, args.protocol)
        means = {kind: [mean_ap(row) for row in by_kind[kind]] for kind in MOTION_CATEGORIES}
        for i, column in enumerate(columns):
            metrics[f"motion-AP{column}"] = {kind: means[kind][i] for kind in MOTION_CATEGORIES}
        print_table([args.metric, *columns], [[kind, *means[kind]] for kind in MOTION_CATEGORIES])
        return metrics
    if args.metric == "v-mAP":
        ap = calc_video_map(pred, gt, n, levels, args.protocol, args.count_duplicates)
    else:
        ap = calc_frame_map(pred, gt, n, levels, args.protocol, scores)
    for column, row in zip(columns, ap, strict=True):
        metrics[f"{args.metric}{column}"] = mean_ap(row)
        metrics[f"AP{column}"] = dict(zip(labels, row, strict=True))
    metrics["without_gt"] = [label for label, row in zip(labels, ap.T, strict=True) if np.isnan(row).all()]
    rows = [[label, *row] for label, row in zip(labels, ap.T, strict=True) if label not in metrics["without_gt"]]
    print_table(["AP", *columns], [*rows, [args.metric, *map(mean_ap, ap)]])
    if metrics["without_gt"]:
        print(f"left out, without ground truth: {', '.join(metrics['without_gt'])}")
    return metrics


def draw(
    args: argparse.Namespace, project: Project, pred: dict[str, list[Tube]], gt: dict[str, list[Tube]], folder: Path
) -> list[Path]:
    """The plots of `--plot`, in `folder`."""
    from utils.drawing.evaluation_plots import detailed_video, precision_recall_plots, tube_plots

    video = args.plot_video or detailed_video({name: gt[name] for name in pred if name in gt})
    frames = VideoFrames(project.frames_path(video))
    return [
        *precision_recall_plots(folder, pred, gt, project.labels, args.tiou_th, args.protocol),
        *tube_plots(folder, video, pred[video], gt[video], project.labels, frames),
    ]


def main() -> None:
    """The command line."""
    args = parse_args()
    args.tiou_th = thresholds(args.tiou_th)
    if args.count_duplicates and args.metric != "v-mAP":
        raise InputError(f"--count_duplicates: is of v-mAP alone, not of --metric {args.metric}")
    if args.count_duplicates and args.plot:
        raise InputError("--plot: draws curves in which a second detection is wrong; leave --count_duplicates out")
    start(args)
    device = pick_device(args.device)
    project = load_project(args.dataset, args.data_root)
    root = Path(args.checkpoint_root) / project.name / args.qmm_name
    settings = link_settings(args, project, root)
    min_tube_length = args.min_tube_length or project.default("min_tube_length")
    bad: dict[str, str] | None = {} if args.skip_bad else None
    gt = make_gt_tubes(project, args.subset, bad=bad)
    linked = TrackStore(settings.tar(root, args.subset), None, f"eval_qmm.py --subset {args.subset}", bad)
    gt = {name: tubes for name, tubes in gt.items() if name not in (bad or {})}
    check_plot_video(args, gt.keys() & linked.names)
    head, config, epoch = load_fitting_head(args, project, root, linked, device)
    pred, scores = classify(args, project, root, linked, head, config["frames"], min_tube_length, device)
    metrics = measure(args, project.labels, pred, scores, gt) | {"videos_left_out": len(bad or {})}
    tell_left_out(bad or {})
    name = f"{settings.name}-{head_folder(args, root).name}{epoch}-top{args.topk}-min{min_tube_length}-{args.metric}"
    name += "-act" * (args.protocol == "act") + "-duplicates" * args.count_duplicates
    given = vars(args) | asdict(settings) | {"min_tube_length": min_tube_length, "load_epoch_head": epoch}
    given["head_settings"] = config["settings"]
    pictures = partial(draw, args, project, pred, gt) if args.plot else None
    path = write_results(root, "eval_map", args.subset, name, given, metrics, epoch, pictures)
    print(f"results: {path}")


if __name__ == "__main__":
    run(main)
