"""Stage 5: action tubes from tracks, and their metrics.

    python eval_map.py --dataset jhmdb21 --qmm_name noskip_sr:4 --metric v-mAP --tiou_th 0.2 0.5

Reads the tar of tracks of eval_qmm.py and a head of train_action_head.py; leaves
results/eval_map-<subset>-<settings>.json.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datasets.config import Project, load_project
from models.head_types import add_head_flags, head_folder
from models.link_settings import add_linking_flags, link_settings, settings_differences
from utils.box_ops import MOTION_CATEGORIES, Tube
from utils.cli import Parser, count, positive_int, run, run_name, tell_left_out, thresholds
from utils.flags import add_data_flags, add_detector_flags, add_frame_flags, add_log_flags, add_run_flags
from utils.gt_tubes import make_gt_tubes
from utils.misc import InputError, pick_device, progress, start
from utils.results import add_plot_video_flag, check_plot_video, print_table, write_results
from utils.storage.files import epoch_path
from utils.storage.tracks import TrackStore
from utils.video_map import PROTOCOLS, calc_frame_map, calc_motion_ap, calc_video_map, mean_ap

if TYPE_CHECKING:
    import torch

    from models.action_head import ActionHead


class Evaluation(NamedTuple):
    """What a metric compares: every video's action tubes, their scores in each of their frames, and ground truth."""

    pred: dict[str, list[Tube]]
    frame_scores: dict[str, list[np.ndarray]]
    gt: dict[str, list[Tube]]
    labels: list[str]
    thresholds: list[float]
    protocol: str
    count_duplicates: bool


def video_map(e: Evaluation) -> dict:
    """`v-mAP@T` and `AP@T` by class; printed as a table."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol, e.count_duplicates
    return ap_by_class("v-mAP", calc_video_map(*args), e)


def frame_map(e: Evaluation) -> dict:
    """`frame-mAP@T` and `AP@T` by class; printed as a table."""
    args = e.pred, e.gt, len(e.labels), e.thresholds, e.protocol, e.frame_scores
    return ap_by_class("frame-mAP", calc_frame_map(*args), e)


def motion_ap(e: Evaluation) -> dict:
    """`motion-AP@T` by motion category; printed as a table."""
    ap = calc_motion_ap(e.pred, e.gt, len(e.labels), e.thresholds, e.protocol)
    means = {category: [mean_ap(row) for row in ap[category]] for category in MOTION_CATEGORIES}
    print_thresholds("motion-AP", e.thresholds, means)
    return {
        f"motion-AP@{threshold:g}": {category: means[category][i] for category in MOTION_CATEGORIES}
        for i, threshold in enumerate(e.thresholds)
    }


METRICS: dict[str, Callable[[Evaluation], dict]] = {
    "v-mAP": video_map,
    "motion-AP": motion_ap,
    "frame-mAP": frame_map,
}


def ap_by_class(metric: str, ap: np.ndarray, e: Evaluation) -> dict:
    """The mean and the AP of every class, `ap` float64 (thresholds, classes), by their names in the results file."""
    metrics: dict = {}
    for threshold, row in zip(e.thresholds, ap, strict=True):
        metrics[f"{metric}@{threshold:g}"] = mean_ap(row)
        metrics[f"AP@{threshold:g}"] = dict(zip(e.labels, row, strict=True))
    by_class = dict(zip(e.labels, ap.T, strict=True))
    metrics["without_gt"] = [label for label, row in by_class.items() if np.isnan(row).all()]
    shown = {label: row for label, row in by_class.items() if label not in metrics["without_gt"]}
    print_thresholds("AP", e.thresholds, shown | {metric: [mean_ap(row) for row in ap]})
    if metrics["without_gt"]:
        print(f"left out, without ground truth: {', '.join(metrics['without_gt'])}")
    return metrics


def print_thresholds(title: str, levels: list[float], rows: Mapping) -> None:
    """A table of rows with a value for each threshold."""
    print_table([title, *(f"@{level:g}" for level in levels)], [[name, *values] for name, values in rows.items()])


def parse_args() -> argparse.Namespace:
    parser = Parser("Classify the frames of tracks and evaluate the action tubes.")
    add_data_flags(parser)
    parser.flag("data", "subset", default="val", help="subset to evaluate on")
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
                help="minimum frames of an action tube (default: the data set's, else 9)")  # fmt: skip
    parser.flag("evaluation", "metric", choices=METRICS, default="v-mAP", help="metric")
    parser.flag("evaluation", "protocol", choices=PROTOCOLS, default="voc", help="evaluation protocol of AP")
    parser.flag("evaluation", "count_duplicates", action="store_true",
                help="v-mAP as published: a second detection of a ground-truth tube is correct too")  # fmt: skip
    parser.flag("evaluation", "tiou_th", nargs="+", default=["0.2", "0.5"],
                help="thresholds of 3D IoU (frame-mAP: of IoU), or ranges such as 0.5:0.95")  # fmt: skip
    add_log_flags(parser)
    add_plot_video_flag(parser)
    add_run_flags(parser)
    return parser.parse_args()


def check_head(path: Path, config: dict, project: Project, tracks: TrackStore) -> None:
    """Compare what a head was trained for and on with what it is evaluated on.

    Raises InputError where labels, detector, link cue or the encoder (of one epoch) differ; other settings of linking
    are a note on stderr.
    """
    if config["labels"] != project.labels:
        raise InputError(f"{path}: was trained for other labels than those of {project.path}; train the head again")
    trained, used = ({**settings, **settings["detector"]} for settings in (config["settings"], tracks.settings))
    for name, noun in (("encoder", "encoder"), ("key", "detector"), ("link_cues", "link_cues")):
        other_epoch = name == "encoder" and trained["load_epoch"] != used["load_epoch"]  # is in the note
        if trained[name] != used[name] and not other_epoch:
            other, remedy = f"another {noun} than", "train it again"
            if name == "key" and trained["weights"] == used["weights"]:
                other = f"{trained[name]}, not by {used[name]} as"
                remedy = "run eval_qmm.py with the same --amp, --image_size and --pad_square for both, or " + remedy
            raise InputError(f"{path}: was trained on tracks linked by {other} {tracks.path}; {remedy}")
    differences = settings_differences(trained, used)
    if differences:
        print(f"note: {path} was trained on tracks of other settings: {differences}", file=sys.stderr)


def frame_features(
    args: argparse.Namespace,
    project: Project,
    root: Path,
    kind: str,
    trained_with: str,
    tracks: TrackStore,
    device: "torch.device",
) -> Callable:
    """A function from a track to its frame features, float32 (T, d), for the heads that use them."""
    from datasets.frame_batches import SubsetVideos
    from models.frame_features import features_of_tracks, frame_extractor

    extractor = frame_extractor(kind, args, device, tracks.settings["detector"])
    if extractor.key != trained_with:
        raise InputError(f"the action head was trained with frame features {trained_with}, not {extractor.key}")
    videos = SubsetVideos(project, args.subset, args.workers, args.skip_bad)
    return features_of_tracks(root.parent / "features", videos, extractor)


def classify(
    head: "ActionHead", tracks: TrackStore, features_of: Callable | None, topk: int, min_tube_length: int
) -> tuple[dict[str, list[Tube]], dict[str, list[np.ndarray]]]:
    """The action tubes of every video, and each one's score in each of its frames."""
    from models.action_head import action_probabilities
    from models.tube import action_tubes

    tubes: dict[str, list[Tube]] = {name: [] for name in tracks.names}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in tracks.names}
    for track in progress(list(tracks), desc="actions", unit="track", leave=False):
        features = features_of(track) if features_of else None
        probabilities = action_probabilities(head, tracks.queries(track), track.frames - track.frames[0], features)
        for tube, frame_scores in action_tubes(
            track.frames, track.boxes, probabilities, topk, min_tube_length, track.person_id
        ):
            tubes[track.video].append(tube)
            scores[track.video].append(frame_scores)
    return tubes, scores


def plot(folder: Path, e: Evaluation, project: Project, video: str | None) -> list[Path]:
    """The plots of `--plot`, in `folder`; `video` in detail."""
    from datasets.dataset import VideoFrames
    from utils.drawing.evaluation_plots import detailed_video, precision_recall_plots, tube_plots

    video = video or detailed_video({name: e.gt[name] for name in e.pred if name in e.gt})
    frames = VideoFrames(project.frames_path(video))
    return [
        *precision_recall_plots(folder, e.pred, e.gt, e.labels, e.thresholds, e.protocol),
        *tube_plots(folder, video, e.pred[video], e.gt[video], e.labels, frames),
    ]


def main() -> None:
    """The command line."""
    args = parse_args()
    levels = thresholds(args.tiou_th)
    if args.count_duplicates and args.metric != "v-mAP":
        raise InputError(f"--count_duplicates: only goes with --metric v-mAP, not {args.metric}")
    if args.count_duplicates and args.plot:
        raise InputError("--plot: a second detection is a false positive in the curves; leave --count_duplicates out")

    from models.action_head import load_head

    start(args)
    device = pick_device(args.device)
    project = load_project(args.dataset, args.data_root)
    root = Path(args.checkpoint_root) / project.name / args.qmm_name
    settings = link_settings(args, project, root)
    min_tube_length = args.min_tube_length or project.default("min_tube_length")

    bad: dict[str, str] | None = {} if args.skip_bad else None
    gt = make_gt_tubes(project, args.subset, bad=bad)
    tracks = TrackStore(settings.tar(root, args.subset), f"eval_qmm.py --subset {args.subset}", bad)
    gt = {name: tubes for name, tubes in gt.items() if name not in (bad or {})}
    check_plot_video(args, gt.keys() & tracks.names)

    folder = head_folder(args, root)
    path = epoch_path(folder, args.load_epoch_head, "action head", "train_action_head.py", beside=True)
    head, config, epoch = load_head(path, device)
    check_head(path, config, project, tracks)
    features_of = None
    if head.needs_frames:
        features_of = frame_features(args, project, root, head.needs_frames, config["frames"], tracks, device)
    pred, scores = classify(head, tracks, features_of, args.topk, min_tube_length)

    evaluation = Evaluation(pred, scores, gt, project.labels, levels, args.protocol, args.count_duplicates)
    metrics: dict = {"tubes": sum(map(len, pred.values())), "gt_tubes": sum(map(len, gt.values())), "videos": len(gt)}
    metrics |= METRICS[args.metric](evaluation) | {"videos_left_out": len(bad or {})}
    tell_left_out(bad or {})
    name = f"{settings.name}-{folder.name}{epoch}-top{args.topk}-min{min_tube_length}-{args.metric}"
    name += "-act" * (args.protocol == "act") + "-duplicates" * args.count_duplicates
    used = vars(args) | asdict(settings) | {"tiou_th": levels, "min_tube_length": min_tube_length}
    used |= {"load_epoch_head": epoch, "head_settings": config["settings"]}
    plots = (lambda folder: plot(folder, evaluation, project, args.plot_video)) if args.plot else None
    print(f"results: {write_results(root, 'eval_map', args.subset, name, used, metrics, epoch, plots)}")


if __name__ == "__main__":
    run(main)
