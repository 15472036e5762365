"""Stage 5: action tubes from tracks, and their metrics.

    python eval_map.py --dataset jhmdb21 --qmm_name noskip_sr:4 --metric v-mAP --tiou_th 0.2 0.5

Reads the tar of tracks of eval_qmm.py and a head of train_action_head.py; leaves
results/eval_map-<subset>-<settings>.json.
"""

import argparse
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets import predictions
from datasets.annotations import Video, frames_that_count, read_annotations
from datasets.config import Project, load_project
from datasets.export_predictions import EXPORTS, check_export, export
from datasets.formats.ava import csv_options, csv_writing
from datasets.likely_mistakes import warn_of_shared_videos
from datasets.predictions import FORMATS, USER_OPTIONS, recognise
from datasets.presets import parse_with_preset
from models.head_types import HEAD_TYPES, TIME_ENCODINGS, add_action_flags, add_head_flags, check_topk, head_folder
from models.link_settings import add_linking_flags, check_head, existing_tar, link_settings, open_tracks
from utils.ava_files import read_rows
from utils.box_ops import Tube
from utils.cli import Parser, count, positive_int, run, run_name, tell_left_out, thresholds
from utils.drawing.report import contents
from utils.flags import add_data_flags, add_detector_flags, add_evaluation_flags, add_frame_flags, add_run_flags
from utils.gt_tubes import on_key_frames
from utils.metrics.ava import rows_ap
from utils.metrics.average_precision import PROTOCOLS
from utils.metrics.compare import resamples_checksum, write_resamples
from utils.metrics.confusion import confusion
from utils.metrics.errors import errors, print_errors
from utils.metrics.evaluation import METRICS, PROTOCOL_NAMES, RESAMPLES, Evaluation, ap_by_class, check_metric, measure
from utils.misc import InputError, checksum, pick_device, progress, start, tell
from utils.results import Views, check_side_by_side, ground_truth_checksum, write_results
from utils.storage.files import epoch_path, plain, write_json
from utils.storage.tracks import TrackStore

if TYPE_CHECKING:
    from models.action_head import ActionHead


class Measured(NamedTuple):
    """The action tubes that are evaluated, from tracks or from a predictions file.

    pred: every video's action tubes, with `frame_scores`. sizes: every video's width, height and number of frames.
    root: the folder that `results/` lies in. name: of the results, with every setting that changes a tube. settings:
    what else the results' `args` hold. epoch: of the action head.
    """

    pred: dict[str, list[Tube]]
    sizes: dict[str, tuple[int, int, int]]
    root: Path
    name: str
    settings: dict
    epoch: int


def make_parser() -> Parser:
    parser = Parser("Classify the frames of tracks and evaluate the action tubes.")
    add_data_flags(parser)
    parser.flag("data", "subset", default="val", help="subset to evaluate on")
    parser.flag("data", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    add_linking_flags(parser, "load_epoch_qmm")
    add_head_flags(parser)
    parser.flag("linking", "load_epoch", type=positive_int, default=argparse.SUPPRESS,
                help="the same as --load_epoch_qmm")  # fmt: skip
    parser.flag("model", "load_epoch_head", type=positive_int, help="epoch of the head (default: the last)")
    parser.flag("model", "time_encoding", choices=TIME_ENCODINGS, help="fail unless the head has this time encoding")
    add_frame_flags(parser)
    add_detector_flags(parser, detr=None)
    parser.flag("detector", "n_frames", dest="detr_batch", type=count, default=argparse.SUPPRESS,
                help="the same as --detr_batch; not the trainers' --n_frames, frames of a clip")  # fmt: skip
    add_action_flags(parser)
    parser.flag("action tubes", "min_tube_length", type=positive_int,
                help="minimum frames of an action tube (default: the data set's, else 9)")  # fmt: skip
    parser.flag("predictions", "predictions",
                help="file or folder to evaluate in place of tracks; docs/protocol.md lists the formats")  # fmt: skip
    parser.flag("predictions", "predictions_format", choices=tuple(FORMATS),
                help="format of --predictions (default: recognised by content)")  # fmt: skip
    parser.flag("predictions", "predictions_options", nargs="+", default=(), metavar="KEY=VALUE",
                help=f"what the file does not say: {', '.join(USER_OPTIONS)} (default: the format's)")  # fmt: skip
    parser.flag("predictions", "save_predictions", action="store_true",
                help="keep the evaluated tubes as JSON, which --predictions reads")  # fmt: skip
    parser.flag("predictions", "export", choices=EXPORTS,
                help="format to write the evaluated tubes in; act, multisports, ava: of frame-mAP alone")  # fmt: skip
    parser.flag("evaluation", "metric", choices=tuple(METRICS), default="v-mAP", help="metric to compute")
    parser.flag("evaluation", "protocol", choices=PROTOCOL_NAMES, default="voc",
                help="rules of the metric; ava, ava-2019: frame-mAP alone; published: the other two")  # fmt: skip
    parser.flag("evaluation", "count_duplicates", action="store_true",
                help="v-mAP as published: a second detection of a ground-truth tube is correct too")  # fmt: skip
    parser.flag("evaluation", "bootstrap", type=count, default=0,
                help="bootstrap resamples of the videos for 95 %% intervals, such as 1000; 0: none")  # fmt: skip
    parser.flag("evaluation", "errors", action="store_true",
                help="v-mAP or frame-mAP lost to each cause of error (voc, act, multisports)")  # fmt: skip
    parser.flag("evaluation", "confusion", action="store_true", help="confusion matrix of the classes")
    parser.flag("evaluation", "tiou_th", nargs="+", default=["0.2", "0.5"],
                help="thresholds of 3D IoU (frame-mAP: of IoU), or ranges such as 0.5:0.95")  # fmt: skip
    add_evaluation_flags(parser)
    add_run_flags(parser)
    return parser


def classify(
    head: "ActionHead",
    tracks: TrackStore,
    features_of: Callable | None,
    topk: int,
    min_tube_length: int,
    action_th: float | None = None,
) -> dict[str, list[Tube]]:
    """The action tubes of every video."""
    from models.action_head import action_probabilities
    from models.tube import action_tubes

    tubes: dict[str, list[Tube]] = {name: [] for name in tracks.names}
    for track in progress(list(tracks), desc="actions", unit="track", leave=False):
        features = features_of(track) if features_of else None
        probabilities = action_probabilities(head, tracks.queries(track), track.frames - track.frames[0], features)
        tubes[track.video] += action_tubes(
            track.frames, track.boxes, probabilities, topk, min_tube_length, track.person_id, action_th
        )
    return tubes


def draw(e: Evaluation, metrics: dict, project: Project, folder: Path) -> list[Path]:
    """The plots of `--plot`, in `folder`."""
    from utils.drawing.error_plots import analysis_plots
    from utils.drawing.evaluation_plots import detailed_video, precision_recall_plots, tube_plots

    video = detailed_video(e.gt)
    paths = precision_recall_plots(folder, e.pred, e.gt, e.labels, e.thresholds, e.protocol)
    paths += analysis_plots(folder, metrics)
    if not project.frames_path(video).exists():  # predictions need no videos
        tell(f"note: {project.frames_path(video)}: no such video, so its tubes are not plotted")
        return paths
    return paths + tube_plots(folder, video, e.pred[video], e.gt[video], e.labels, project.open_video(video))


def panels(e: Evaluation, video: str) -> list:
    """A video's annotated and predicted action tubes, side by side."""
    from utils.drawing.side_by_side import tubes_panel

    pred = tubes_panel("action tubes", e.pred[video], e.labels, scored=True)
    return [tubes_panel("ground truth", e.gt[video], e.labels), pred]


def report(e: Evaluation, metrics: dict, lists: dict, about: dict, folder: Path) -> dict:
    """The page of `--report`: `about` says what was evaluated, `lists` (errors.json) gives the causes of errors."""
    level, protocol = e.thresholds[0], e.protocol if e.protocol in PROTOCOLS else "voc"
    wrong = contents.caused_errors(lists.get(f"v-mAP@{level:g}", ()))
    wrong = wrong or contents.wrong_tubes(e.pred, e.gt, len(e.labels), level, protocol)
    videos = [
        contents.video_entry(name, e.sizes[name], e.pred[name], tubes, wrong.get(name, ()))
        for name, tubes in e.gt.items()
    ]
    counted = f"at 3D IoU {level:g}" + f", by protocol voc, not {e.protocol}" * (protocol != e.protocol)
    counted += ", a second detection too" * e.count_duplicates
    facts = about | {"protocol": e.protocol, "settings": folder.name, "errors counted": counted}
    title = f"Action tubes of {about['data set']}, {about['subset']}"
    return contents.evaluation_page(title, facts, e.labels, metrics, contents.part_charts(metrics), videos)


def from_tracks(
    args: argparse.Namespace, project: Project, annotations: Mapping[str, Video], bad: dict[str, str] | None
) -> Measured:
    """The action tubes that an action head makes of the tracks of the videos `annotations`; those that cannot be used
    are entered in `bad` (name -> why), or are errors where it is None."""
    from datasets.frame_batches import SubsetVideos
    from models.action_head import load_head
    from models.frame_features import features_of_tracks, frame_extractor
    from models.weights import weights_hash

    start(args)
    device = pick_device(args.device)
    root = Path(args.checkpoint_root) / project.name / args.qmm_name
    settings = link_settings(args, project, root)
    min_tube_length = project.default("min_tube_length", given=args.min_tube_length)
    videos = SubsetVideos(project, args.subset, args.workers, args.skip_bad)
    path = existing_tar(args, settings, root, args.subset)
    tracks = open_tracks(path, settings, project, videos, annotations, bad)
    check_side_by_side(args, tracks.names)
    sizes = {name: tuple(tracks.json(name)[key] for key in ("width", "height", "n_frames")) for name in tracks.names}

    folder = head_folder(args, root)
    path = epoch_path(folder, args.load_epoch_head, "action head", "train_action_head.py")
    head, config, epoch = load_head(path, device)
    check_head(path, config, project, tracks)
    warn_of_shared_videos(project, args.subset)
    if head.config["head_type"] != args.head_type:
        tell(f"note: {path}: a head of type {head.config['head_type']}, whatever --head_type {args.head_type} says")
    encoding = head.config["time_encoding"]
    if args.time_encoding not in (None, encoding) and HEAD_TYPES[head.config["head_type"]].time:
        raise InputError(f"{path}: its time encoding is {encoding}, not {args.time_encoding}; train another head")
    check_topk(args.topk, project.labels)
    features_of = None
    if head.needs_frames:
        extractor = frame_extractor(head.needs_frames, args, device, tracks.settings["detector"], config["frames"])
        features_of = features_of_tracks(root.parent / "features", videos, extractor)
    topk = args.topk or (len(project.labels) if project.multi_label else 1)
    pred = classify(head, tracks, features_of, topk, min_tube_length, args.action_th)
    carried = f"top{topk}" if args.action_th is None else f"th{args.action_th:g}"
    name = f"{tracks.path.stem}-{folder.name}-epoch{epoch}-{carried}-min{min_tube_length}"
    used = asdict(settings) | {"min_tube_length": min_tube_length, "topk": topk}
    used |= {"load_epoch_head": epoch, "head_settings": config["settings"], "head_name": folder.name, **tracks.models}
    used |= {name: head.config[name] for name in ("head_type", "time_encoding")}  # not the flags' defaults
    used["head_hash"] = weights_hash(head.state_dict())
    return Measured(pred, sizes, root, name, used, epoch)


def from_predictions(
    args: argparse.Namespace, project: Project, videos: Mapping[str, Video], left_out: Container[str]
) -> Measured:
    """The tubes of a predictions file, which need no model; the ground truth of `videos` says what fits.

    `left_out`: videos of the subset that cannot be used. Files that name videos by their number count them too.
    """
    path = Path(args.predictions)
    of_heads = dict.fromkeys(("min_tube_length", "topk", "action_th"))
    if unused := [f"--{flag}" for flag in of_heads if getattr(args, flag) is not None]:
        tell(f"note: {', '.join(unused)}: not applied to the tubes of --predictions")
    format = args.predictions_format or recognise(path)
    sizes = {name: (video.width, video.height, video.n_frames) for name, video in videos.items()}
    check_side_by_side(args, sizes)
    given = csv_options(project.annotation_file) if format == "ava_csv" else {}
    given |= predictions.parse_options(args.predictions_options)
    numbered = {name: sizes.get(name, (1, 1, 0)) for name in project.split(args.subset)}
    options = FORMATS[format].defaults | predictions.data_set_options(format, project.labels, numbered, given)
    if format == "ava_csv" and not {"start", "rate"} <= given.keys():
        text = "frame 0 is taken as second {start:g}, {rate:g} frames a second".format_map(options)
        tell(f"note: {path}: {text}; else {predictions.SAY} start=SECOND rate=N")
    raw = predictions.read_predictions(path, format, options)
    raw = predictions.fit_to_data_set(raw, path, args.subset, sizes, options, left_out)
    missing = predictions.tell_missing({*raw.names}, path, list(sizes))
    if len(raw.video) and len(raw.video) == len(raw.tube):
        tell(f"note: {path}: no box is linked to another, each is a tube of one frame: only frame-mAP means something")
    content = checksum(*raw[2:-1], *raw.names)  # shapes are compared, not evaluated
    used = {"predictions_format": format, "predictions_checksum": content, "videos_missing": missing, **of_heads}
    root = Path(args.checkpoint_root) / project.name / "predictions"
    return Measured(predictions.as_tubes(raw, sizes), sizes, root, f"{path.stem}-{content}", used, 0)


def evaluate_submission(args: argparse.Namespace, project: Project, levels: list[float]) -> None:
    """A csv of detections against the csv of a data set in AVA's format, row by row as the official tool compares them:
    no tubes are made, and rows of any quality count."""
    for flag in ("confusion", "report", "export", "save_predictions", "side_by_side", "predictions_options"):
        if getattr(args, flag):
            raise InputError(f"--{flag}: does not go with a csv of detections by --protocol {args.protocol}")
    path, file = Path(args.predictions), project.annotation_file
    subset = project.split(args.subset)
    gt, excluded = file.videos.rows(subset)
    pred = read_rows(path)
    pred = pred.of_videos({*pred.videos} - ({*file.videos} - {*subset}))  # without other subsets' videos
    predictions.tell_missing({*pred.videos}, path, subset)
    rule = "2019" if args.protocol == "ava-2019" else "2020"
    ap = rows_ap(pred, gt, file.label_ids, excluded, rule, levels)
    e = Evaluation({}, {}, {}, [file.label_ids[i] for i in sorted(file.label_ids)], levels, args.protocol)
    metrics = {"videos": len(subset), "rows": len(pred.time), **ap_by_class("frame-mAP", ap, e)}
    name = f"{path.stem}-{checksum(*pred[2:7])}-{args.metric}-{args.protocol}"
    root = Path(args.checkpoint_root) / project.name / "predictions"
    write_results(root, "eval_map", args.subset, name, vars(args) | {"tiou_th": levels}, metrics, 0)


def check_flags(args: argparse.Namespace) -> None:
    """InputError for flags that do not go with each other."""
    if args.count_duplicates and args.metric != "v-mAP":
        raise InputError(f"--count_duplicates: only goes with --metric v-mAP, not {args.metric}")
    if args.plot and args.protocol not in PROTOCOLS:
        raise InputError(f"--plot: there are no curves of --protocol {args.protocol}; leave one of them out")
    if args.count_duplicates and args.plot:
        raise InputError("--plot: a second detection is a false positive in the curves; leave --count_duplicates out")
    if args.count_duplicates and args.errors:
        raise InputError("--errors: a second detection is an error; leave --count_duplicates out")
    if (args.predictions_format or args.predictions_options) and not args.predictions:
        raise InputError("--predictions_format, --predictions_options: only go with --predictions")
    for flag in ("bootstrap", "errors"):
        if getattr(args, flag) and args.protocol not in PROTOCOLS:
            raise InputError(f"--{flag}: goes with --protocol {' or '.join(PROTOCOLS)}, not {args.protocol}")
    check_metric(args.metric, args.protocol)
    check_export(args.export, args.metric)


def main() -> None:
    """The command line."""
    args = parse_with_preset(make_parser(), "eval_map")
    levels = thresholds(args.tiou_th)
    check_flags(args)
    project = load_project(args.dataset, args.data_root)
    by_ava = args.protocol in ("ava", "ava-2019") and args.metric == "frame-mAP" and project.format.startswith("ava")
    if by_ava and args.predictions and (args.predictions_format or recognise(Path(args.predictions))) == "ava_csv":
        evaluate_submission(args, project, levels)
        return

    bad: dict[str, str] | None = {} if args.skip_bad else None
    videos = read_annotations(project, project.split(args.subset), bad)
    if args.predictions:
        measured = from_predictions(args, project, videos, bad or ())
    else:
        measured = from_tracks(args, project, videos, bad)
    gt = {name: video.tubes for name, video in videos.items() if name not in (bad or {})}
    options = {name: getattr(args, name) for name in ("protocol", "count_duplicates", "bootstrap", "seed")}
    for name in ("key_frames", "empty_frames"):
        options[name] = {video: getattr(videos[video], name) for video in gt}
    options["subset"] = project.split(args.subset)
    options["ava_csv"] = csv_writing(project.annotation_file, args.protocol)
    pred = on_key_frames(measured.pred, frames_that_count(videos, project))
    e = Evaluation(pred, gt, measured.sizes, project.labels, levels, **options)
    n_gt = sum(tube.label >= 0 for tubes in gt.values() for tube in tubes)  # people without an action do not count
    metrics: dict = {"tubes": sum(map(len, e.pred.values())), "gt_tubes": n_gt}
    if not n_gt:
        tell("warning: nobody who is annotated has an action, so AP is not defined")
    elif not metrics["tubes"]:
        tell("warning: no action tube was predicted, so AP is 0")
    metrics |= {"videos": len(gt)} | measure(args.metric, e) | {"videos_left_out": len(bad or {})}
    resamples = metrics.pop(RESAMPLES, None)
    if args.errors:
        metrics["errors"] = errors("frame-mAP" if args.metric == "frame-mAP" else "v-mAP", e)
        print_errors(metrics["errors"])
    if args.confusion:
        metrics["confusion"] = confusion(e)
    lists = {name: summary.pop("list") for name, summary in metrics.get("errors", {}).items() if "list" in summary}
    tell_left_out(bad or {})

    by_tube = args.metric != "frame-mAP" and not args.count_duplicates
    views = Views(
        draw=partial(draw, e, metrics, project),
        page=partial(report, e, plain(metrics), lists, {"data set": project.name, "subset": args.subset}),
        panels=partial(panels, e),
        frames=project.open_video,
        curves=partial(contents.curve_charts, e.pred, gt, e.labels, levels, args.protocol) if by_tube else list,
    )
    name = f"{measured.name}-{args.metric}"
    name += f"-{args.protocol}" * (args.protocol != "voc") + "-duplicates" * args.count_duplicates
    used = vars(args) | measured.settings | {"tiou_th": levels}
    used["ground_truth"] = ground_truth_checksum(gt, project.labels)
    used["resamples"] = resamples_checksum(resamples) if resamples else None
    path = write_results(measured.root, "eval_map", args.subset, name, used, metrics, measured.epoch, views)
    if resamples:
        write_resamples(path.with_suffix(""), resamples)
    if lists:
        write_json(path.with_suffix("") / "errors.json", lists)
    formats = ["json"] if args.save_predictions else []
    if args.save_predictions and by_ava:
        formats.append("ava")
    if args.export and args.export not in formats:
        formats.append(args.export)
    for written in export(path.with_suffix(""), e, formats, args.metric) if formats else ():
        print(f"predictions: {written}")


if __name__ == "__main__":
    run(main)
