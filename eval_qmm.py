"""Stage 3: link a subset's detections into tracks, evaluate the tracks, and keep them for the action head.

    python eval_qmm.py --dataset jhmdb21 --subset val --qmm_name noskip_sr:4

Leaves checkpoint/<dataset>/<qmm_name>/qmm_tubes/<subset>/<settings>.tar, which the action head reads, and
results/eval_qmm-<subset>-<settings>.json. `--from_tar` evaluates an existing tar again, in seconds.
"""

from argparse import SUPPRESS, BooleanOptionalAction, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from models.link_settings import (
    LinkSettings,
    add_linking_flags,
    existing_tar,
    link_settings,
    open_tracks,
    tar_of_tracks,
    tracks_made_with,
    tracks_sources,
)
from utils import flags
from utils.cli import Parser, count, run, run_name, share, tell_left_out, thresholds
from utils.results import (
    Views,
    check_side_by_side,
    ground_truth_checksum,
    motion_recall_by_cue,
    print_table,
    write_results,
)


def make_parser() -> Parser:
    parser = Parser("Link detections into tracks, evaluate the tracks, and keep them for the action head.")
    flags.add_data_flags(parser)
    parser.flag("data", "subset", default="val", help="subset to link")
    parser.flag("model", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    parser.flag("model", "is_skip", action="store_true", help="fail unless the person encoder has a skip connection")
    flags.add_detector_flags(parser, detr=None, batch_flag="n_frames")
    parser.flag("detector", "detr_batch", type=count, default=SUPPRESS, help="the same as --n_frames")
    add_linking_flags(parser)
    parser.flag("evaluation", "from_tar", action="store_true", help="evaluate the existing tar without any model")
    help_text = "3D IoU thresholds, or ranges such as 0.5:0.95"
    parser.flag("evaluation", "tiou_th", nargs="+", default=["0.2", "0.5"], help=help_text)
    help_text = "only annotated frames count"
    parser.flag("evaluation", "label_centric", action=BooleanOptionalAction, default=True, help=help_text)
    parser.flag("evaluation", "frame_iou", type=share, help="in the 3D IoU, a frame's IoU above this counts as 1")
    parser.flag("evaluation", "protocol", choices=("pairs", "published"), default="pairs",
                help="rule of recall and precision: pairs by falling 3D IoU, or as published")  # fmt: skip
    flags.add_evaluation_flags(parser)
    flags.add_run_flags(parser)
    return parser


if __name__ == "__main__":  # PyTorch takes seconds to import: --help and mistyped flags are answered before
    make_parser().parse_args()

import numpy as np
import torch

from datasets.annotations import Video, frames_that_count, keep_fitting, read_annotations
from datasets.config import Project, load_project
from datasets.frame_batches import SubsetVideos
from datasets.likely_mistakes import warn_of_shared_videos
from datasets.presets import parse_with_preset
from models import person_encoder
from models.person_queries import CachedDetections, cache_queries, detector_of, match_people, query_cache_path
from utils.box_ops import MOTION_CATEGORIES, Track, Tube
from utils.distributed import process_group, rank
from utils.gt_tubes import label_frames, label_sets, on_key_frames
from utils.metrics.published import published_precision_recall
from utils.metrics.tracking import identity_switches, tracking_metrics
from utils.metrics.tube_recall import tube_precision_recall, with_accepted_pair
from utils.misc import InputError, checksum, start, tell
from utils.storage.files import epoch_path, plain
from utils.storage.tars import TarStore
from utils.storage.tracks import TrackStore
from utils.storage.video_cache import BadVideo, VideoSample, fill_cache

Encode = Callable[[np.ndarray], np.ndarray]
"""Queries float32 (n, d) -> person features float32 (n, d')."""
ROWS = 1024  # detections that memory holds at a time while tracks are written


def link_video(detections: CachedDetections, encode: Encode, settings: LinkSettings) -> list[Track]:
    """A video's tracks; its detections go through memory a few thousand at a time."""
    linker = settings.make_linker()
    for frames, scores, boxes, queries in detections.blocks():
        linker.extend(frames, boxes, scores, encode(queries) if linker.cue.needs_features else None)
    return [track for track in linker.finish() if len(track) >= settings.filter_length]


def write_rows(
    sample: VideoSample, rows: np.ndarray, labels: np.ndarray, detections: CachedDetections, encode: Encode
) -> None:
    """Append detections (`rows`, int64 (M,)) with the actions `labels` to a video's arrays, a block at a time."""
    for first in range(0, max(len(rows), 1), ROWS):
        block = slice(first, first + ROWS)
        columns = {name: getattr(detections, name)[rows[block]] for name in ("frames", "boxes", "scores")}
        queries = detections.queries(rows[block])
        sample.append({**columns, "queries": queries, "features": encode(queries), "labels": labels[block]})


def link_subset(
    args: Namespace,
    project: Project,
    root: Path,
    settings: LinkSettings,
    device: torch.device,
    annotations: dict[str, Video],
    bad: dict[str, str] | None,
) -> None:
    """Write the subset's tar of tracks; videos that are in it with the same settings stay as they are.

    Videos that cannot be used, in `bad` or noticed here, become samples without tracks, whose json says why.
    """
    path = epoch_path(root / "encoder", settings.load_epoch, "person encoder", "train_qmm.py")
    encoder, config, _ = person_encoder.load_encoder(path, device)
    encode = partial(person_encoder.encode, encoder)
    if args.is_skip and not config["encoder"]["skip"]:
        raise InputError(f"{path}: has no skip connection; leave --is_skip out, or name another --qmm_name")
    detector = detector_of(args, device, config["detector"])
    videos = SubsetVideos(project, args.subset, args.workers, args.skip_bad)
    store = cache_queries(root.parent / "queries", videos, detector, settings.psn_score_th)
    unusable = (bad or {}) | videos.bad | store.bad
    decoded = {name: store.json(name) for name in annotations if name not in unusable}
    usable = {name: annotations[name] for name in decoded}
    keep_fitting(project, usable, decoded, unusable if args.skip_bad else None)
    made_with = tracks_made_with(settings, project, person_encoder.encoder_hash(path)) | {"detector": detector.config()}
    sources = tracks_sources(project, videos, annotations)
    for name in unusable.keys() & sources.keys():  # whose samples are made anew once the fault is gone
        sources[name].append(int(checksum(unusable[name]), 16))
    compared = made_with | {"detector": detector.key}  # not its path: a detector that was moved is the same
    with fill_cache(tar_of_tracks(args, settings, root, args.subset), sources, compared, args.skip_bad) as cache:
        for name in cache.missing:
            with cache.sample(name) as sample:
                if name in unusable:
                    raise BadVideo(unusable[name])
                detections = CachedDetections(store, name, settings.minimum("psn_score_th"))
                tracks = link_video(detections, encode, settings)
                rows = np.concatenate([np.zeros(0, np.int64), *(track.rows for track in tracks)])
                labels = actions_of(tracks, annotations[name], project, settings.iou_th)
                write_rows(sample, rows, labels, detections, encode)
                sample.json |= {key: detections.meta[key] for key in ("n_frames", "width", "height", "fps")}
                sample.json |= {"lengths": [len(track) for track in tracks], "settings": made_with}


def actions_of(tracks: Sequence[Track], video: Video, project: Project, iou_th: float) -> np.ndarray:
    """The actions of the tracks' rows, one track after another: int64 (M,), or several at once, uint8 (M, C)."""
    n, gt = len(project.labels), video.tubes
    if project.multi_label:
        labels = [label_sets(track.frames, track.boxes, gt, iou_th, n_classes=n) for track in tracks]
        return np.concatenate([np.zeros((0, n), np.uint8), *labels])
    labels = [label_frames(track.frames, track.boxes, gt, iou_th, n, video.key_frames) for track in tracks]
    return np.concatenate([np.zeros(0, np.int64), *labels])


class TrackEvaluation(NamedTuple):
    """What is evaluated: `tracks`, of `store` in the frames that count, against the ground truth `gt`, at `thresholds`
    of 3D IoU."""

    args: Namespace
    project: Project
    root: Path
    store: TrackStore
    tracks: dict[str, list[Tube]]
    gt: dict[str, list[Tube]]
    thresholds: list[float]


def evaluate(e: TrackEvaluation) -> dict:
    """The metrics of `docs/protocol.md`, by their names in the results file; printed as tables."""
    tracks, labels, args, names = e.tracks, e.project.labels, e.args, ["recall", "precision"]
    if args.protocol == "published":
        rates = [published_precision_recall(tracks, e.gt, threshold, labels) for threshold in e.thresholds]
        names.append("precision_filter")
    else:
        rates = tube_precision_recall(tracks, e.gt, e.thresholds, args.label_centric, args.frame_iou, len(labels))
    metrics: dict = {}
    for threshold, row in zip(e.thresholds, rates, strict=True):
        for name in names:
            metrics[f"{name}@{threshold:g}"] = row[name]
            metrics[f"motion_{name}@{threshold:g}"] = row[f"motion_{name}"]
            metrics[f"class_{name}@{threshold:g}"] = dict(zip(labels, row[f"class_{name}"], strict=True))
    metrics |= tracking_metrics(tracks, e.gt, args.label_centric)
    metrics |= {"tracks": sum(map(len, tracks.values())), "gt_tubes": sum(map(len, e.gt.values())), "videos": len(e.gt)}
    if not metrics["tracks"]:
        tell("warning: there is no track, so recall is 0; lower --psn_score_th or --filter_length")
    rows = [
        [f"{threshold:g}", row["recall"], row["precision"], *(row["motion_recall"][kind] for kind in MOTION_CATEGORIES)]
        for threshold, row in zip(e.thresholds, rates, strict=True)
    ]
    print_table(["3D IoU", "recall", "precision", *(f"recall, {kind} motion" for kind in MOTION_CATEGORIES)], rows)
    counted = ("tracks", "gt_tubes", "IDF1", "IDSW", "HOTA", "DetA", "AssA")
    print_table(counted, [[metrics[name] for name in counted]])
    return metrics


def draw(e: TrackEvaluation, folder: Path) -> list[Path]:
    """The plots of `--plot`, in `folder`, which stands beside the results file and has its name."""
    from utils.drawing.evaluation_plots import detailed_video, feature_plots, recall_plots, tube_plots

    results = folder.with_name(f"{folder.name}.json")
    recalls = {threshold: motion_recall_by_cue(results, threshold) for threshold in e.thresholds}
    video = detailed_video(e.gt)
    tracks, gt, frames = e.store.tracks(video), e.gt[video], e.project.open_video(video)
    match = partial(match_people, iou_th=e.store.settings["iou_th"])
    return [
        *recall_plots(folder, recalls, e.gt),
        *feature_plots(folder, video, tracks, e.store.read(video, "features"), gt, match),
        *tube_plots(folder, video, [track.tube() for track in tracks], gt, e.project.labels, frames),
    ]


def panels(e: TrackEvaluation, settings: LinkSettings, video: str) -> list:
    """A video's annotated people, detections (where they are cached) and tracks, side by side."""
    from utils.drawing.side_by_side import detections_panel, tubes_panel

    shown = [tubes_panel("ground truth", e.gt[video])]
    folder, key = e.root.parent / "queries", e.store.settings["detector"]["key"]
    cache = query_cache_path(folder, e.args.subset, key, settings.psn_score_th)
    if cache.is_file():
        detections = CachedDetections(TarStore(cache, "query cache"), video, settings.minimum("psn_score_th"))
        shown.append(detections_panel("detections", detections.frames, detections.boxes, detections.scores))
    return [*shown, tubes_panel("tracks", [track.tube() for track in e.store.tracks(video)])]


def report(e: TrackEvaluation, metrics: dict, folder: Path) -> dict:
    """The page of `--report`; `folder` stands beside the results file and has its name."""
    from utils.drawing.evaluation_plots import CUES
    from utils.drawing.report import contents

    results, level, tracks = folder.with_name(f"{folder.name}.json"), e.thresholds[0], e.tracks
    switches = identity_switches(tracks, e.gt, e.args.label_centric)
    videos = []
    for name, gt in e.gt.items():
        of_pred, of_gt = with_accepted_pair(tracks[name], gt, level, e.args.label_centric, e.args.frame_iou)
        errors = [contents.TubeError("gt", int(i), "missed") for i in np.flatnonzero(~of_gt)]
        errors += [contents.TubeError("pred", int(i), "false track") for i in np.flatnonzero(~of_pred)]
        events = [(t, f"identity switch: ground truth {p}, track {a} to {b}") for t, p, a, b in switches.get(name, ())]
        *size, fps = (e.store.json(name)[key] for key in ("width", "height", "n_frames", "fps"))
        entry = contents.video_entry(name, tuple(size), tracks[name], gt, errors, events, fps)
        entry["counts"]["switches"] = len(events)
        videos.append(entry)
    by_cue = {f"motion_recall@{threshold:g}": motion_recall_by_cue(results, threshold) for threshold in e.thresholds}
    by_cue = {name: {CUES.get(cue, cue): parts for cue, parts in recalls.items()} for name, recalls in by_cue.items()}
    facts = {"data set": e.project.name, "subset": e.args.subset, "settings": folder.name}
    facts["errors counted"] = f"at 3D IoU {level:g}"
    title, charts = f"Tracks of {e.project.name}, {e.args.subset}", contents.part_charts(metrics, by_cue)
    return contents.evaluation_page(title, facts, e.project.labels, metrics, charts, videos)


def main() -> None:
    """The command line."""
    args = parse_with_preset(make_parser(), "eval_qmm")
    tiou_thresholds = thresholds(args.tiou_th)
    if args.protocol == "published" and not (args.label_centric and args.frame_iou is None):
        raise InputError("--protocol published: does not go with --no-label_centric or --frame_iou")

    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        root = Path(args.checkpoint_root) / project.name / args.qmm_name
        bad: dict[str, str] | None = {} if args.skip_bad else None
        annotations = read_annotations(project, project.split(args.subset), bad)
        check_side_by_side(args, annotations)
        warn_of_shared_videos(project, args.subset)
        settings = link_settings(args, project, root)
        if not args.from_tar:
            link_subset(args, project, root, settings, device, annotations, bad)
        if rank() == 0:
            find_tar = existing_tar if args.from_tar else tar_of_tracks
            videos = SubsetVideos(project, args.subset, args.workers, args.skip_bad)
            path = find_tar(args, settings, root, args.subset)
            store = open_tracks(path, settings, project, videos, annotations, bad)
            gt = {name: video.tubes for name, video in annotations.items() if name not in (bad or {})}
            check_side_by_side(args, gt)
            tubes = {name: [track.tube() for track in store.tracks(name)] for name in store.names}
            tracks = on_key_frames(tubes, frames_that_count(annotations, project))
            evaluated = TrackEvaluation(args, project, root, store, tracks, gt, tiou_thresholds)
            metrics = evaluate(evaluated) | {"videos_left_out": len(bad or {})}
            tell_left_out(bad or {})
            print(f"tracks: {store.path}")
            name = store.path.stem + "-all_frames" * (not args.label_centric)
            if args.frame_iou is not None:
                name += f"-frame_iou{args.frame_iou:g}"
            name += "-published" * (args.protocol == "published")
            used = vars(args) | asdict(settings) | {"tiou_th": tiou_thresholds} | store.models
            used["ground_truth"] = ground_truth_checksum(gt, project.labels)
            page, shown = partial(report, evaluated, plain(metrics)), partial(panels, evaluated, settings)
            views = Views(partial(draw, evaluated), page, shown, project.open_video)
            write_results(root, "eval_qmm", args.subset, name, used, metrics, settings.load_epoch, views)


if __name__ == "__main__":
    run(main)
