"""Stage 3: follow people through a subset's videos by their queries, measure it, and keep the linked queries.

    python eval_qmm.py --dataset jhmdb21 --subset val --qmm_name noskip_sr:4

Leaves checkpoint/<dataset>/<qmm_name>/qmm_tubes/<subset>/<settings>.tar, which the action head reads, and
results/eval_qmm-<subset>-<settings>.json. With --from_tar it measures again in seconds, without any model.
"""

import argparse
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.config import Project, load_project
from datasets.dataset import VideoFrames
from datasets.frame_batches import SubsetVideos
from models.person_encoder import encode, load_encoder
from models.person_queries import CachedDetections, cache_queries, detector_of, match_people
from models.tube import LinkedTube, link_people
from models.weights import weights_hash
from utils.box_ops import MOTION_CATEGORIES, Tube
from utils.cli import Parser, positive_int, run, run_name, share, tell_left_out, thresholds
from utils.distributed import process_group, rank
from utils.flags import add_data_flags, add_detector_flags, add_linking_flags, add_log_flags, add_run_flags
from utils.gt_tubes import label_frames, make_gt_tubes
from utils.metrics.tracking import tracking_metrics
from utils.metrics.tube_recall import tube_precision_recall
from utils.misc import InputError, start
from utils.results import add_plot_video_flag, check_plot_video, motion_recall_by_cue, print_table, write_results
from utils.storage.files import epoch_path
from utils.storage.tracks import NAMED, TrackStore, fill_linked_flags, tar_path
from utils.storage.video_cache import BadVideo, VideoSample, fill_cache

NOBODY = LinkedTube(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
ROWS = 1024  # queries that are held at a time while a tube is written


def parse_args() -> argparse.Namespace:
    parser = Parser("Follow people by their queries, measure it, and keep the linked queries for the action head.")
    add_data_flags(parser)
    parser.flag("data", "subset", default="val", help="subset to follow people in")
    parser.flag("model", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    parser.flag("model", "is_skip", action="store_true", help="insist that the encoder has a skip connection")
    add_detector_flags(parser, detr=None, batch_flag="n_frames")
    add_linking_flags(parser)
    parser.flag("linking", "end_consecutive_frames", type=positive_int, default=8,
                help="frames without a link after which a tube ends")  # fmt: skip
    parser.flag(
        "linking",
        "iou_th",
        type=share,
        help="IoU above which a frame takes an annotated action (default: the data set's)",
    )
    parser.flag("measuring", "from_tar", action="store_true", help="measure the tar that is there, without any model")
    parser.flag("measuring", "tiou_th", nargs="+", default=["0.2", "0.5"],
                help="3D IoU thresholds, or ranges such as 0.5:0.95")  # fmt: skip
    parser.flag("measuring", "label_centric", action=argparse.BooleanOptionalAction, default=True,
                help="only annotated frames count")  # fmt: skip
    parser.flag("measuring", "frame_iou", type=share, help="a frame's IoU above this counts as 1")
    add_log_flags(parser)
    add_plot_video_flag(parser)
    add_run_flags(parser)
    return parser.parse_args()


def write_track(
    sample: VideoSample, track: LinkedTube, detections: CachedDetections, features_of: Callable, labels: np.ndarray
) -> None:
    """Append a track's rows, a block at a time."""
    for a in range(0, max(len(track.rows), 1), ROWS):
        part = slice(a, a + ROWS)
        queries = detections.queries(track.rows[part])
        columns = {"frames": track.frames[part], "boxes": track.boxes[part], "scores": track.scores[part]}
        sample.append({**columns, "queries": queries, "features": features_of(queries), "labels": labels[part]})


def link_subset(
    args: argparse.Namespace,
    project: Project,
    root: Path,
    device: torch.device,
    gt: dict[str, list[Tube]],
    bad: dict[str, str] | None,
) -> TrackStore:
    """Follow people in each video of the subset; the videos that are already in the tar are kept as they are.

    Those that cannot be used, in `bad` or found here, are samples without tracks, whose json says why.
    """
    path = epoch_path(root / "encoder", args.load_epoch, "person encoder", "train_qmm.py")
    encoder, config, _ = load_encoder(path, device)
    if args.is_skip and not config["encoder"]["skip"]:
        raise InputError(f"{path}: has no skip connection; leave --is_skip out, or name another --qmm_name")
    detector = detector_of(args, device, config["detector"])
    videos = SubsetVideos(project, args.subset, args.workers, args.skip_bad)
    store = cache_queries(root.parent / "queries", videos, detector, args.psn_score_th)
    unusable = (bad or {}) | videos.bad | store.bad
    features_of = partial(encode, encoder)
    no_action = len(project.labels)
    made_by = {"encoder": weights_hash(encoder.state_dict()), "detector": detector.config(), "labels": project.labels}
    settings = tar_settings(args) | made_by

    files = videos.sources() | {name: [] for name in videos.bad}
    sources = {name: [*source, _checksum(gt.get(name, []))] for name, source in files.items()}
    tar = tar_path(args, root, args.subset)
    compared = settings | {"detector": detector.key}  # wherever its file lies
    with fill_cache(tar, sources, compared, args.skip_bad) as cache:
        for name in cache.missing:
            with cache.sample(name) as sample:
                if name in unusable:
                    raise BadVideo(unusable[name])
                detections = CachedDetections(store, name, args.psn_score_th)
                tracks = link_people(
                    name,
                    detections.blocks(),
                    features_of if args.link_cues == "feature" else None,
                    args.sim_th,
                    args.end_consecutive_frames,
                    args.link_cues,
                ).filter(args.filter_length)
                write_track(sample, NOBODY, detections, features_of, np.zeros(0, np.int64))  # the columns alone
                for track in tracks:
                    labels = label_frames(track.frames, track.boxes, gt[name], args.iou_th, no_action)
                    write_track(sample, track, detections, features_of, labels)
                sample.json |= {key: detections.meta[key] for key in ("n_frames", "width", "height", "fps")}
                sample.json |= {"lengths": [len(track.frames) for track in tracks], "settings": settings}
    return TrackStore(tar, bad=bad)


def tar_settings(args: argparse.Namespace) -> dict:
    """What a tar of linked people was made with."""
    return {name: getattr(args, name) for name in (*NAMED, "iou_th", "end_consecutive_frames")}


def _checksum(tubes: list[Tube]) -> int:
    parts = [t.frames.tobytes() + t.boxes.tobytes() + bytes(str(t.label), "ascii") for t in tubes]
    return zlib.crc32(b"".join(parts))


def measure(args: argparse.Namespace, project: Project, linked: TrackStore, gt: dict[str, list[Tube]]) -> dict:
    """The figures of `docs/protocol.md`, by the names of the results file."""
    pred, levels = linked.tubes(), args.tiou_th
    found = tube_precision_recall(pred, gt, levels, args.label_centric, args.frame_iou, len(project.labels))
    metrics: dict = {}
    for level, row in zip(levels, found, strict=True):
        for name in ("recall", "precision"):
            metrics[f"{name}@{level:g}"] = row[name]
            metrics[f"motion_{name}@{level:g}"] = row[f"motion_{name}"]
            metrics[f"class_{name}@{level:g}"] = dict(zip(project.labels, row[f"class_{name}"], strict=True))
    metrics |= tracking_metrics(pred, gt, args.label_centric)
    metrics |= {"tubes": sum(map(len, pred.values())), "gt_tubes": sum(map(len, gt.values())), "videos": len(gt)}
    rows = [
        [f"{level:g}", row["recall"], row["precision"], *(row["motion_recall"][kind] for kind in MOTION_CATEGORIES)]
        for level, row in zip(levels, found, strict=True)
    ]
    print_table(["3D IoU", "recall", "precision", *(f"recall, {kind} motion" for kind in MOTION_CATEGORIES)], rows)
    names = ("tubes", "gt_tubes", "IDF1", "IDSW", "HOTA", "DetA", "AssA")
    print_table(names, [[metrics[name] for name in names]])
    return metrics


def draw(
    args: argparse.Namespace, project: Project, linked: TrackStore, gt: dict[str, list[Tube]], folder: Path
) -> list[Path]:
    """The plots of `--plot`, in `folder`, which stands beside the results file and has its name."""
    from utils.drawing.evaluation_plots import detailed_video, feature_plots, recall_plots, tube_plots

    results = folder.with_name(f"{folder.name}.json")
    recalls = {level: motion_recall_by_cue(results, level) for level in args.tiou_th}
    video = args.plot_video or detailed_video({name: gt[name] for name in linked.names if name in gt})
    tracks, features = linked.tracks(video), linked.read(video, "features")
    match = partial(match_people, iou_th=args.iou_th)
    frames = VideoFrames(project.frames_path(video))
    return [
        *recall_plots(folder, recalls, gt),
        *feature_plots(folder, video, tracks, features, gt[video], match),
        *tube_plots(folder, video, [track.tube() for track in tracks], gt[video], project.labels, frames),
    ]


def main() -> None:
    """The command line."""
    args = parse_args()
    args.tiou_th = thresholds(args.tiou_th)
    with process_group(args.device) as device:
        start(args)
        project = load_project(args.dataset, args.data_root)
        root = Path(args.checkpoint_root) / project.name / args.qmm_name
        bad: dict[str, str] | None = {} if args.skip_bad else None
        gt = make_gt_tubes(project, args.subset, bad=bad)
        fill_linked_flags(args, project, root)
        project.fill(args, iou_th="iou_th")
        check_plot_video(args, gt)
        if args.from_tar:
            linked = TrackStore(tar_path(args, root, args.subset), tar_settings(args), bad=bad)
        else:
            linked = link_subset(args, project, root, device, gt, bad)
        if rank() == 0:
            gt = {name: tubes for name, tubes in gt.items() if name not in (bad or {})}
            check_plot_video(args, gt.keys() & linked.names)
            metrics = measure(args, project, linked, gt) | {"videos_left_out": len(bad or {})}
            tell_left_out(bad or {})
            pictures = partial(draw, args, project, linked, gt) if args.plot else None
            path = write_results(
                root, "eval_qmm", args.subset, linked.path.stem, args, metrics, args.load_epoch, pictures
            )
            print(f"linked people: {linked.path}\nresults: {path}")


if __name__ == "__main__":
    run(main)
