"""Linkers compared on the detections of one run, against the same detections with true identities.

    python -m benchmarks.link_cues --dataset synthetic --qmm_name demo

Needs the query cache that `eval_qmm.py` left and the encoder of `train_qmm.py`; runs no detector. Where there is that
of `python -m models.person_queries --view mirrored` or `erased` too, features of such frames are also compared with
those of frames as they are. Several
data sets, `--data_root A B`, of one name, are evaluated together (their caches are `--checkpoint_root A B`). Intervals
are of 95 % of resampled sets of videos. The last rows say where the robust linker loses: with true identities of the
people who overlap nobody, or of those who do, and with the boxes that are missing in overlaps.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.config import load_project
from datasets.frame_batches import VIEWS
from models.linkers import LINKERS, LinkOptions, greedy_assignment
from models.person_encoder import encode, load_encoder
from models.person_queries import CachedDetections, match_people, query_cache_path
from models.tube import LINK_CUES, Linker
from utils.box_ops import Track, Tube, paired_iou
from utils.cli import Parser, positive_int, run, run_name, share
from utils.gt_tubes import make_gt_tubes
from utils.metrics.bootstrap import draw_resamples
from utils.metrics.tracking import metrics_of_counts, tracking_counts
from utils.metrics.tube_recall import tube_precision_recall
from utils.misc import InputError
from utils.results import print_table
from utils.storage.files import epoch_path
from utils.storage.tars import TarStore

GAPS = (1, 4, 16, 32)  # frames
MATCH_IOU = 0.5  # of a detection and the person that it is of
HEAD = ("linker", "HOTA", "AssA", "IDF1", "IDSW", "recall", "large", "precision", "second numbers",
        "HOTA / ceiling", "AssA / ceiling")  # fmt: skip
N_RESAMPLED = 2000  # sets of videos that intervals are of


class Video(NamedTuple):
    """A video's detections, which person each is of (-1: nobody) and whether that person overlaps nobody, and its
    ground truth."""

    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    features: np.ndarray
    person: np.ndarray
    apart: np.ndarray
    gt: list[Tube]


def linker_rows(end: int) -> Iterator[tuple[str, str, int, LinkOptions]]:
    """(name, link cue, `--end_consecutive_frames`, options) of each linker: the named ones, and `robust` without each
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


def read_videos(
    root: Path, project, subset: str, epoch: int | None, psn_score_th: float, view: str = "plain"
) -> dict[str, Video]:
    """The videos of a subset, out of the query cache of the run in `root`; none where another `view` has no cache."""
    encoder, config, _ = load_encoder(epoch_path(root / "encoder", epoch, "person encoder", "train_qmm.py"))
    path = query_cache_path(root.parent / "queries", subset, config["detector"]["key"], view=view)
    if not path.is_file():
        if view != "plain":
            return {}
        raise InputError(f"{path}: no query cache; run eval_qmm.py --subset {subset} first")
    store, videos = TarStore(path, "query cache"), {}
    for name, gt in make_gt_tubes(project, subset).items():
        detections = CachedDetections(store, name, psn_score_th)
        features = np.concatenate([encode(encoder, queries) for *_, queries in detections.blocks()])
        person, alone = identities(detections.frames, detections.boxes, gt)
        videos[name] = Video(detections.frames, detections.boxes, detections.scores, features, person, alone, gt)
    return videos


def person_boxes(gt: list[Tube]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames int64 (G,), rising, boxes (G, 4) and persons int64 (G,) of the ground truth, each person once a frame."""
    frames, boxes = np.concatenate([tube.frames for tube in gt]), np.concatenate([tube.boxes for tube in gt])
    persons = np.concatenate([np.full(len(tube), tube.person_id) for tube in gt])
    _, once = np.unique(np.stack([frames, persons]), axis=1, return_index=True)
    return frames[once], boxes[once], persons[once]


def apart(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which boxes (G, 4) overlap no other of their frame: bool (G,); `frames` int64 (G,), rising."""
    by_frame = np.split(boxes, np.flatnonzero(np.diff(frames)) + 1)
    return np.concatenate([(paired_iou(x[:, None], x[None]) > 0).sum(1) <= 1 for x in by_frame])


def identities(frames: np.ndarray, boxes: np.ndarray, gt: list[Tube]) -> tuple[np.ndarray, np.ndarray]:
    """Which person each detection is of, -1 for none, int64 (M,), and whether that person is apart, bool (M,)."""
    if not gt:
        return np.full(len(frames), -1), np.zeros(len(frames), bool)
    gt_frames, gt_boxes, persons = person_boxes(gt)
    matched = match_people(frames, boxes, gt_frames, gt_boxes, MATCH_IOU)
    found = matched >= 0
    return np.where(found, persons[matched], -1), found & apart(gt_frames, gt_boxes)[matched]


def numbers_of(video: Video, tracks: list[Track]) -> np.ndarray:
    """The track of each detection, -1 for none: int64 (M,)."""
    number = np.full(len(video.frames), -1)
    for track in tracks:
        number[track.rows] = track.person_id
    return number


def tracks_of(video: Video, number: np.ndarray, first: np.ndarray | None = None) -> list[Track]:
    """The tracks of detections that are numbered, int64 (M,), -1 for none; of two of one number in a frame one of
    `first`, bool (M,), stays."""
    tracks = []
    for n in np.unique(number[number >= 0]).tolist():
        rows = np.flatnonzero(number == n)
        if first is not None:
            rows = rows[np.lexsort((~first[rows], video.frames[rows]))]
            rows = rows[np.unique(video.frames[rows], return_index=True)[1]]
        tracks.append(Track(video.frames[rows], video.boxes[rows], video.scores[rows], rows, person_id=n))
    return tracks


def true_tracks(video: Video) -> list[Track]:
    """The ceiling: detections linked by the identities of the ground truth; those of nobody are left out."""
    return tracks_of(video, video.person)


def mended(video: Video, tracks: list[Track], mend: np.ndarray) -> list[Track]:
    """`tracks` with true identities of the detections `mend`, bool (M,): each person's go to the track that has most of
    that person."""
    number = numbers_of(video, tracks)
    persons, numbers = np.unique(video.person[video.person >= 0]), np.unique(number[number >= 0])
    shared = [[np.sum((video.person == p) & (number == n)) for n in numbers] for p in persons]
    mend = mend & (video.person >= 0)
    for p, n in greedy_assignment(np.array(shared, float).reshape(len(persons), len(numbers)), 1):
        number[mend & (video.person == persons[p])] = numbers[n]
    return tracks_of(video, number, mend)


def with_missing_boxes(video: Video) -> Video:
    """The video with a detection of each annotated person who overlaps another and was not detected."""
    if not video.gt:
        return video
    frames, boxes, persons = person_boxes(video.gt)
    found = np.isin(frames * 2**20 + persons, (video.frames * 2**20 + video.person)[video.person >= 0])
    missing = ~found & ~apart(frames, boxes)
    rows = np.argsort(np.concatenate([video.frames, frames[missing]]), kind="stable")
    n = missing.sum()
    added = (frames[missing], boxes[missing], np.ones(n), np.zeros((n, video.features.shape[1])), persons[missing],
             np.zeros(n, bool))  # fmt: skip
    columns = [np.concatenate(pair)[rows] for pair in zip(video[:-1], added, strict=True)]
    return Video(*columns, video.gt)


def second_numbers(video: Video, tracks: list[Track]) -> int:
    """How often a person gets another number while annotated frame by frame and overlapping nobody."""
    if not video.gt:
        return 0
    number = numbers_of(video, tracks)
    frames, boxes, persons = person_boxes(video.gt)
    alone, count = apart(frames, boxes), 0
    for person in np.unique(persons):
        mine = np.flatnonzero(persons == person)
        edges = np.flatnonzero((np.diff(frames[mine]) != 1) | (np.diff(alone[mine].astype(int)) != 0)) + 1
        for stretch in np.split(mine, edges):
            if alone[stretch[0]]:
                inside = (video.frames >= frames[stretch[0]]) & (video.frames <= frames[stretch[-1]])
                numbers = number[inside & (video.person == person) & (number >= 0)]
                count += max(len(np.unique(numbers)) - 1, 0)
    return count


def rank_1(videos: Mapping[str, Video], gap: int, videos_later: Mapping[str, Video]) -> float:
    """Share of detections whose most similar one of `videos_later` `gap` frames later, of at least two people, is of
    the same person."""
    hits = total = 0
    for name, video in videos.items():
        later = videos_later[name]
        unit, unit_later = (x.features / np.linalg.norm(x.features, axis=1, keepdims=True) for x in (video, later))
        for frame in np.unique(video.frames).tolist():
            rows = np.flatnonzero(later.frames == frame + gap)
            persons = later.person[rows]
            if len(np.unique(persons)) > 1:
                for row in np.flatnonzero(
                    (video.frames == frame) & (video.person >= 0) & np.isin(video.person, persons)
                ):
                    hits += persons[(unit_later[rows] @ unit[row]).argmax()] == video.person[row]
                    total += 1
    return hits / total if total else float("nan")


def evaluate(
    videos: Mapping[str, Video], link: Callable[[Video], list[Track]], min_length: int
) -> tuple[list, np.ndarray]:
    """A row of the table without its name and shares, and the videos' `tracking_counts`, float64 (videos, 42)."""
    tracks = {name: [t for t in link(video) if len(t) >= min_length] for name, video in videos.items()}
    pred = {name: [track.tube() for track in tracks_of_video] for name, tracks_of_video in tracks.items()}
    gt = {name: video.gt for name, video in videos.items()}
    counts, (rates,) = tracking_counts(pred, gt), tube_precision_recall(pred, gt, [0.5])
    by_video = np.stack([counts[name] for name in videos])
    metrics = metrics_of_counts(by_video.sum(0))
    second = sum(second_numbers(videos[name], tracks_of_video) for name, tracks_of_video in tracks.items())
    row = [metrics[name] for name in ("HOTA", "AssA", "IDF1", "IDSW")]
    return [*row, rates["recall"], rates["motion_recall"]["large"], rates["precision"], second], by_video


def shares(counts: np.ndarray, ceiling: np.ndarray) -> list[str]:
    """HOTA and AssA in percent of the ceiling's, with intervals over resampled videos; `tracking_counts` of the videos
    of both."""
    n = len(counts)
    weights = np.vstack([np.ones((1, n)), draw_resamples(n, N_RESAMPLED, 0).T])
    linked, best = ([metrics_of_counts(c) for c in weights @ x] for x in (counts, ceiling))
    cells = []
    for name in ("HOTA", "AssA"):
        share = 100 * np.array([a[name] / b[name] for a, b in zip(linked, best, strict=True)])
        cells.append("{:.1f} ({:.1f}-{:.1f})".format(share[0], *np.nanpercentile(share[1:], [2.5, 97.5])))
    return cells


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
                help="frames without a link after which a track closes, in the published rows")  # fmt: skip
    args = parser.parse_args()
    if len(args.data_root) != len(args.checkpoint_root):
        raise InputError("--data_root, --checkpoint_root: name as many folders of runs as of data")
    views: dict[str, dict[str, Video]] = {view: {} for view in VIEWS}
    for data_root, checkpoint_root in zip(args.data_root, args.checkpoint_root, strict=True):
        project = load_project(args.dataset, data_root)
        psn_score_th = project.default("psn_score_th") if args.psn_score_th is None else args.psn_score_th
        root = Path(checkpoint_root) / project.name / args.qmm_name
        for view, read in views.items():
            part = read_videos(root, project, args.subset, args.load_epoch, psn_score_th, view)
            read |= {f"{checkpoint_root}/{name}": video for name, video in part.items()}
    videos = views["plain"]
    min_length = args.filter_length or int(project.default("filter_length"))
    sim_th = {name: project.default(cue.default_th) for name, cue in LINK_CUES.items()}

    print(f"{len(videos)} videos, {sum(len(video.frames) for video in videos.values())} detections")
    ranks = [
        [f"rank-1 of features, {view} frames", *(rank_1(shown, gap, videos) for gap in GAPS)]
        for view, shown in views.items()
        if shown.keys() == videos.keys()
    ]
    print_table(["frames later", *map(str, GAPS)], ranks)
    ceiling, counts_of_ceiling = evaluate(videos, true_tracks, min_length)
    rows = [["true identities", *ceiling, "100", "100"]]

    def add(name: str, link: Callable[[Video], list[Track]], videos: Mapping[str, Video] = videos) -> None:
        row, counts = evaluate(videos, link, min_length)
        rows.append([name, *row, *shares(counts, counts_of_ceiling)])

    def linked(video: Video, cue: str, end: int, options: LinkOptions) -> list[Track]:
        linker = Linker(sim_th[cue], end, cue, options)
        linker.extend(video.frames, video.boxes, video.scores, video.features)
        return linker.finish()

    for name, *settings in linker_rows(args.end_consecutive_frames):
        add(name, lambda video, settings=settings: linked(video, *settings))
    robust = LINKERS["robust"]
    settings = ("feature", robust.end_consecutive_frames, robust)
    add("robust, true identities apart from others", lambda v: mended(v, linked(v, *settings), v.apart))
    add("robust, true identities in overlaps", lambda v: mended(v, linked(v, *settings), ~v.apart))
    complete = {name: with_missing_boxes(video) for name, video in videos.items()}
    add("true identities, missing boxes in overlaps added", true_tracks, complete)
    print_table(HEAD, rows)


if __name__ == "__main__":
    run(main)
