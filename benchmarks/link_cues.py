"""Linkers compared on the detections of one run, against the same detections with true identities.

    python -m benchmarks.link_cues --dataset synthetic --qmm_name demo

Needs the query cache that `eval_qmm.py` left and the encoder of `train_qmm.py`; runs no detector. Several data sets,
`--data_root A B`, of one name, are evaluated together (their caches are `--checkpoint_root A B`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.config import load_project
from models.linkers import LINKERS, LinkOptions
from models.person_encoder import encode, load_encoder
from models.person_queries import CachedDetections, match_people
from models.tube import LINK_CUES, Linker
from utils.box_ops import Track, Tube, paired_iou
from utils.cli import Parser, positive_int, run, run_name, share
from utils.gt_tubes import make_gt_tubes
from utils.metrics.tracking import tracking_metrics
from utils.metrics.tube_recall import tube_precision_recall
from utils.misc import InputError
from utils.results import print_table
from utils.storage.files import epoch_path
from utils.storage.tars import TarStore

GAPS = (1, 4, 16, 32)  # frames
MATCH_IOU = 0.5  # of a detection and the person that it is of
HEAD = ("linker", "HOTA", "AssA", "IDF1", "IDSW", "recall", "large", "precision", "second numbers")


class Video(NamedTuple):
    """A video's detections, which person each is of (-1: nobody), and its ground truth."""

    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    features: np.ndarray
    person: np.ndarray
    gt: list[Tube]


def linker_rows(end: int) -> Iterator[tuple[str, str, int, LinkOptions]]:
    """(name, link cue, frames that a track survives, options) of each linker: the named ones, and `robust` without each
    of its options."""
    robust = LINKERS["robust"]
    yield "published, IoU", "iou", end, LINKERS["published"]
    yield "published", "feature", end, LINKERS["published"]
    yield "published, duplicates removed", "feature", end, LinkOptions(duplicates=robust.duplicates)
    yield "robust", "feature", robust.end_consecutive_frames, robust
    for field in dataclasses.fields(LinkOptions):
        changed = dataclasses.replace(robust, **{field.name: field.default})
        patience = changed.end_consecutive_frames or end
        yield f"robust, {field.name} as published", "feature", patience, changed


def read_videos(root: Path, project, subset: str, epoch: int | None, psn_score_th: float) -> dict[str, Video]:
    """The videos of a subset, out of the query cache of the run in `root`."""
    encoder, config, _ = load_encoder(epoch_path(root / "encoder", epoch, "person encoder", "train_qmm.py"))
    path = root.parent / "queries" / f"{subset}-{config['detector']['key']}.tar"
    if not path.is_file():
        raise InputError(f"{path}: no query cache; run eval_qmm.py --subset {subset} first")
    store, videos = TarStore(path, "query cache"), {}
    for name, gt in make_gt_tubes(project, subset).items():
        detections = CachedDetections(store, name, psn_score_th)
        features = np.concatenate([encode(encoder, block.queries) for block in detections.blocks()])
        person = identities(detections.frames, detections.boxes, gt)
        videos[name] = Video(detections.frames, detections.boxes, detections.scores, features, person, gt)
    return videos


def person_boxes(gt: list[Tube]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames int64 (G,), rising, boxes (G, 4) and persons int64 (G,) of the ground truth, each person once a frame."""
    frames, boxes = np.concatenate([tube.frames for tube in gt]), np.concatenate([tube.boxes for tube in gt])
    persons = np.concatenate([np.full(len(tube), tube.person_id) for tube in gt])
    _, once = np.unique(np.stack([frames, persons]), axis=1, return_index=True)
    return frames[once], boxes[once], persons[once]


def identities(frames: np.ndarray, boxes: np.ndarray, gt: list[Tube]) -> np.ndarray:
    """Which person each detection is of, -1 for none: int64 (M,)."""
    if not gt:
        return np.full(len(frames), -1)
    gt_frames, gt_boxes, persons = person_boxes(gt)
    matched = match_people(frames, boxes, gt_frames, gt_boxes, MATCH_IOU)
    return np.where(matched >= 0, persons[matched], -1)


def true_tracks(video: Video) -> list[Track]:
    """The ceiling: detections linked by the identities of the ground truth; those of nobody are left out."""
    tracks = []
    for person in np.unique(video.person[video.person >= 0]).tolist():
        rows = np.flatnonzero(video.person == person)
        tracks.append(Track(video.frames[rows], video.boxes[rows], video.scores[rows], rows, person_id=person))
    return tracks


def second_numbers(video: Video, tracks: list[Track]) -> int:
    """How often a person gets another number while annotated frame by frame and overlapping nobody."""
    if not video.gt:
        return 0
    number = np.full(len(video.frames), -1)
    for track in tracks:
        number[track.rows] = track.person_id
    frames, boxes, persons = person_boxes(video.gt)
    count = 0
    for person in np.unique(persons):
        mine = np.flatnonzero(persons == person)
        others = [np.flatnonzero((frames == frames[row]) & (persons != person)) for row in mine]
        alone = np.array(
            [not (paired_iou(boxes[row], boxes[near]) > 0).any() for row, near in zip(mine, others, strict=True)]
        )
        edges = np.flatnonzero((np.diff(frames[mine]) != 1) | (np.diff(alone.astype(int)) != 0)) + 1
        for stretch in np.split(np.arange(len(mine)), edges):
            if alone[stretch[0]]:
                inside = (video.frames >= frames[mine[stretch[0]]]) & (video.frames <= frames[mine[stretch[-1]]])
                numbers = number[inside & (video.person == person) & (number >= 0)]
                count += max(len(np.unique(numbers)) - 1, 0)
    return count


def rank_1(videos: Mapping[str, Video], gap: int) -> float:
    """Share of detections whose most similar one `gap` frames later, of at least two people, is of the same person."""
    hits = total = 0
    for video in videos.values():
        unit = video.features / np.linalg.norm(video.features, axis=1, keepdims=True)
        rows_of = {frame: np.flatnonzero(video.frames == frame) for frame in np.unique(video.frames).tolist()}
        for frame, rows in rows_of.items():
            later = rows_of.get(frame + gap, [])
            persons = video.person[later] if len(later) else np.zeros(0, np.int64)
            for row in rows:
                if video.person[row] >= 0 and video.person[row] in persons and len(np.unique(persons)) > 1:
                    hits += persons[(unit[later] @ unit[row]).argmax()] == video.person[row]
                    total += 1
    return hits / total if total else float("nan")


def evaluate(videos: Mapping[str, Video], link: Callable[[Video], list[Track]], min_length: int) -> list:
    """A row of the table, without its name."""
    tracks = {name: [t for t in link(video) if len(t) >= min_length] for name, video in videos.items()}
    pred = {name: [track.tube() for track in tracks_of_video] for name, tracks_of_video in tracks.items()}
    gt = {name: video.gt for name, video in videos.items()}
    metrics, (rates,) = tracking_metrics(pred, gt), tube_precision_recall(pred, gt, [0.5])
    second = sum(second_numbers(videos[name], tracks_of_video) for name, tracks_of_video in tracks.items())
    names = ("HOTA", "AssA", "IDF1", "IDSW")
    return [
        *(metrics[name] for name in names),
        rates["recall"],
        rates["motion_recall"]["large"],
        rates["precision"],
        second,
    ]


def main() -> None:
    """The command line."""
    parser = Parser("Compare linkers on the detections of one run.")
    parser.flag("data", "dataset", required=True, help="built-in data set, or path of a project file")
    parser.flag("data", "data_root", nargs="+", default=["data"], help="folders of the built-in data sets")
    parser.flag("data", "checkpoint_root", nargs="+", default=["checkpoint"], help="folders of runs, one a data root")
    parser.flag("data", "subset", default="val", help="subset to link")
    parser.flag("data", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    parser.flag("data", "load_epoch", type=positive_int, help="epoch of the person encoder (default: the last)")
    parser.flag("linking", "psn_score_th", type=share, help="minimum person score (default: the data set's)")
    parser.flag(
        "linking", "filter_length", type=positive_int, help="minimum detections of a track (default: the data set's)"
    )
    parser.flag("linking", "end_consecutive_frames", type=positive_int, default=4,
                help="frames without a link that a track survives in the published rows")  # fmt: skip
    args = parser.parse_args()
    if len(args.data_root) != len(args.checkpoint_root):
        raise InputError("--data_root, --checkpoint_root: name as many folders of runs as of data")
    videos: dict[str, Video] = {}
    for data_root, checkpoint_root in zip(args.data_root, args.checkpoint_root, strict=True):
        project = load_project(args.dataset, data_root)
        psn_score_th = project.default("psn_score_th") if args.psn_score_th is None else args.psn_score_th
        root = Path(checkpoint_root) / project.name / args.qmm_name
        part = read_videos(root, project, args.subset, args.load_epoch, psn_score_th)
        videos |= {f"{checkpoint_root}/{name}": video for name, video in part.items()}
    min_length = args.filter_length or int(project.default("filter_length"))
    sim_th = {name: project.default(cue.default_th) for name, cue in LINK_CUES.items()}

    print(f"{len(videos)} videos, {sum(len(video.frames) for video in videos.values())} detections")
    print_table(["frames later", *map(str, GAPS)], [["rank-1 of the feature", *(rank_1(videos, gap) for gap in GAPS)]])
    rows = [["true identities", *evaluate(videos, true_tracks, min_length)]]
    for name, cue, end, options in linker_rows(args.end_consecutive_frames):

        def link(video: Video, cue: str = cue, end: int = end, options: LinkOptions = options) -> list[Track]:
            linker = Linker(sim_th[cue], end, cue, options)
            linker.extend(video.frames, video.boxes, video.scores, video.features)
            return linker.finish()

        rows.append([name, *evaluate(videos, link, min_length)])
    print_table(HEAD, rows)


if __name__ == "__main__":
    run(main)
