"""The official metrics of MultiSports, as its `evaluate_multisports.py` (since January 2022) computes them.

    python -m utils.metrics.multisports multisports_GT.pkl --frames frame_detections.pkl --tubes video_detections.pkl

Boxes are continuous. A detection takes the ground truth of its class that it overlaps most, taken or not. The 3D IoU of
two tubes is the mean IoU of the frames that both have, times the overlap of their spans from first to last frame,
neither of which counts its last frame. AP is the area under the precision envelope at every recall. Six classes
(`utils.metrics.average_precision.NOT_EVALUATED`) are not in the mean, nor are classes without ground truth; one with
ground truth and without detections is 0. Detections in videos that are not tested are false positives.
"""

from pathlib import Path

import numpy as np

from utils.box_ops import Tube, Tubes
from utils.cli import Parser, run
from utils.metrics.average_precision import NOT_EVALUATED
from utils.metrics.frame_boxes import frame_ap
from utils.metrics.matching import Instances, boxes_as_instances, numbered_tubes
from utils.misc import InputError, tell
from utils.safe_pickle import read_pickle
from utils.storage.files import parsing, write_json
from utils.video_map import calc_video_map, mean_ap

FRAME_TH = (0.5, 0.2)
RANGES = {  # name -> thresholds, as the official code makes them
    "0.05:0.45": np.arange(0.05, 0.46, 0.05),
    "0.10:0.90": np.arange(0.1, 0.91, 0.1),
    "0.50:0.95": np.arange(0.5, 0.96, 0.05),
}
TUBE_TH = (0.2, 0.5)


def read_groundtruth(path: str | Path) -> tuple[Tubes, list[str], list[str]]:
    """`multisports_GT.pkl`: the tested videos' tubes (frames from 1), the labels, and the tested videos in order."""
    content = read_pickle(path, "ground truth")
    with parsing(path, "ground truth of MultiSports"):
        labels, videos = list(map(str, content["labels"])), list(map(str, content["test_videos"][0]))
        tubes = {}
        for name in videos:
            of_video = content["gttubes"].get(name, {})
            tubes[name] = [_tube(rows, label) for label, many in of_video.items() for rows in many]
    return tubes, labels, videos


def read_tubes(path: str | Path, labels: list[str]) -> Tubes:
    """`video_detections.pkl`, {label: [(video, score, (T, 6) frame, box, box score)]}."""
    content = read_pickle(path, "tubes")
    tubes: dict[str, list[Tube]] = {}
    with parsing(path, "tubes of MultiSports"):
        for label, detections in content.items():
            if not 0 <= int(label) < len(labels):
                raise ValueError(f"label {label} is not an index of the {len(labels)} labels, counted from 0")
            for name, score, rows in detections:
                tubes.setdefault(str(name), []).append(_tube(rows, int(label), float(score)))
    return tubes


def read_frames(path: str | Path, n_labels: int) -> Instances:
    """`frame_detections.pkl`, (N, 8): index in the list of tested videos, frame, label, score, box.

    An index beyond the list is a video that is not tested.
    """
    content = read_pickle(path, "boxes")
    with parsing(path, "boxes of MultiSports"):
        rows = np.asarray(content, np.float64).reshape(-1, 8)
        video, frame, label = rows[:, :3].astype(np.int64).T
        wrong = (video < 0) | (label < 0) | (label >= n_labels)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"row {row}: video {video[row]}, label {label[row]}; labels are 0 to {n_labels - 1}")
    return Instances(video, label, rows[:, 3], (video << 32) + frame, rows[:, 4:])


def evaluate_files(gt: str | Path, frames: str | Path | None = None, tubes: str | Path | None = None) -> dict:
    """The official metrics of files in MultiSports' formats.

    Returns:
        "frameAP@0.5", "videoAP@0.2", "videoAP@0.50:0.95", ... -> {"mAP": float, "AP": {label: float}}, between 0 and 1;
        a range holds the means over its thresholds. NaN where a class has no ground truth or is not evaluated.

    Raises:
        InputError: a file cannot be read.
    """
    gt_tubes, labels, videos = read_groundtruth(gt)
    ignored = np.isin(labels, NOT_EVALUATED)
    metrics: dict[str, dict] = {}

    def add(name: str, ap: np.ndarray) -> None:
        ap = np.where(ignored, np.nan, ap)
        metrics[name] = {"mAP": mean_ap(ap), "AP": dict(zip(labels, ap.tolist(), strict=True))}

    if frames is not None:
        targets = boxes_as_instances(numbered_tubes(gt_tubes, videos))
        aps = frame_ap(read_frames(frames, len(labels)), targets, videos, len(labels), FRAME_TH)
        for threshold, ap in zip(FRAME_TH, aps, strict=True):
            add(f"frameAP@{threshold:g}", ap)
    if tubes is not None:
        predicted = read_tubes(tubes, labels)
        levels = sorted({*TUBE_TH, *np.concatenate(list(RANGES.values())).tolist()})
        ap_at = dict(zip(levels, calc_video_map(predicted, gt_tubes, len(labels), levels, "multisports"), strict=True))
        for threshold in TUBE_TH:
            add(f"videoAP@{threshold:g}", ap_at[threshold])
        for name, thresholds in RANGES.items():
            add(f"videoAP@{name}", np.mean([ap_at[threshold] for threshold in thresholds.tolist()], 0))
        for threshold in levels:
            add(f"videoAP@{threshold:g}", ap_at[threshold])
    return metrics


def _tube(rows: np.ndarray, label: int, score: float = 1.0) -> Tube:
    rows = np.asarray(rows, np.float64)
    return Tube(rows[:, 0].astype(np.int64), rows[:, 1:5], int(label), score)


def main() -> None:
    """The command line."""
    parser = Parser("The official metrics of MultiSports from files in its formats.")
    parser.add_argument("groundtruth", help="multisports_GT.pkl")
    parser.flag("detections", "frames", help="frame_detections.pkl, for frameAP")
    parser.flag("detections", "tubes", help="video_detections.pkl, for videoAP")
    parser.flag("output", "out", help="JSON file to write")
    args = parser.parse_args()
    if args.frames is None and args.tubes is None:
        raise InputError("nothing to evaluate: give --frames, --tubes or both")
    from utils.results import plain, print_table

    metrics = evaluate_files(args.groundtruth, args.frames, args.tubes)
    print_table(["", "mAP"], [[name, metric["mAP"]] for name, metric in metrics.items()])
    if not any(metric["mAP"] > 0 for metric in metrics.values()):
        order = "videos count in the order of test_videos[0], frames from 1, labels from 0"
        tell(f"note: nothing that is detected is correct; {order}")
    if args.out:
        write_json(args.out, plain(metrics))


if __name__ == "__main__":
    run(main)
