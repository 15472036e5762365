"""The official metric of AVA: frame-mAP at IoU 0.5, as ActivityNet's `get_ava_performance.py` computes it.

    python -m utils.metrics.ava GROUNDTRUTH.csv DETECTIONS.csv LABELMAP.pbtxt [--exclusions FILE] [--rule 2019]

Of each key frame the 50 best rows count, over all classes together. Each takes the ground truth of its class that it
overlaps most, taken or not (`utils.metrics.frame_boxes`). AP is the area under the precision envelope at every recall;
a class with ground truth and without detections is 0, one without ground truth is left out of the mean. Which key
frames count depends on the *rule*. 2020: those with any row of ground truth, even if its class is outside the label map
or it has no box. 2019: all but the excluded ones, so that detections in seconds without people are false positives.
Equal scores are ordered by the rows' content.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.ava_files import AvaRows, all_of_ava, read_label_map, read_rows
from utils.box_ops import Tubes
from utils.cli import Parser, run
from utils.metrics.frame_boxes import frame_ap
from utils.metrics.matching import Instances, boxes_as_instances, numbered_tubes
from utils.misc import InputError, tell
from utils.storage.files import write_json
from utils.video_map import mean_ap

MAX_PER_FRAME = 50
IOU_TH = 0.5
RULES = ("2020", "2019")
PIXELS = 2.0  # a coordinate beyond it is no share of the frame


def evaluate_files(
    groundtruth: str | Path,
    detections: str | Path,
    label_map: str | Path,
    exclusions: str | Path | None = None,
    rule: str = "2020",
) -> dict:
    """The official metric of files in AVA's format.

    Returns:
        {"mAP": float, "AP": {class id: float, or NaN without ground truth}}.

    Raises:
        InputError: a file cannot be read, ground truth is reversed, or nothing of the detections could ever be correct.
    """
    names, gt, pred = read_label_map(label_map), read_rows(groundtruth), read_rows(detections)
    excluded = None if exclusions is None else read_rows(exclusions, widths=(2,))
    ap = rows_ap(pred, gt, names, excluded, rule)[0]
    return {"mAP": mean_ap(ap), "AP": dict(zip(sorted(names), ap.tolist(), strict=True))}


def rows_ap(
    pred: AvaRows,
    gt: AvaRows,
    names: Mapping[int, str],
    exclusions: AvaRows | None,
    rule: str,
    iou_th: Sequence[float] = (IOU_TH,),
) -> np.ndarray:
    """AP of every class of `names` by rising id, float64 (thresholds, classes); errors as in `evaluate_files`."""
    gt.refuse((gt.boxes[:, :2] > gt.boxes[:, 2:]).any(1), "ground truth ({x1:g}, {y1:g}, {x2:g}, {y2:g}) is reversed")
    videos = sorted({*gt.videos, *pred.videos, *(exclusions.videos if exclusions else ())})
    gt_frames, pred_frames = (key_frames(rows, videos) for rows in (gt, pred))
    annotated = np.isin(pred_frames, gt_frames)
    _refuse_hopeless(gt, pred, names, annotated)
    excluded = key_frames(exclusions, videos) if exclusions else np.zeros(0, np.int64)
    counts = ~np.isin(pred_frames, excluded) & (annotated | (rule == "2019"))
    classes = np.array(sorted(names), np.int64)
    detections = _boxes(pred, pred_frames, classes, counts)
    targets = _boxes(gt, gt_frames, classes, ~np.isin(gt_frames, excluded))
    return frame_ap(detections, targets, videos, len(classes), iou_th, MAX_PER_FRAME)


def tubes_ap(
    pred: Tubes,
    gt: Tubes,
    more_frames: Mapping[str, np.ndarray | None],
    num_classes: int,
    iou_th: Sequence[float],
) -> np.ndarray:
    """AP of every class of action tubes, float64 (thresholds, num_classes).

    Args:
        gt: people without an evaluated action are tubes of label -1; their key frames count.
        more_frames: key frames that count beside those with people: by the rule of 2020 those that the annotation lists
            without any, by that of 2019 all that are not excluded.
    """
    videos = sorted({*pred, *gt})
    detections, targets = (boxes_as_instances(numbered_tubes(side, videos)) for side in (pred, gt))
    more = [(i << 32) + more_frames[name] for i, name in enumerate(videos) if more_frames.get(name) is not None]
    detections = detections.where(np.isin(detections.frame, np.concatenate([targets.frame, *more])))
    return frame_ap(detections, targets, videos, num_classes, iou_th, MAX_PER_FRAME)


def key_frames(rows: AvaRows, videos: Sequence[str]) -> np.ndarray:
    """A number for each row's key frame, int64 (n,), rising with its video's index in `videos` and with time."""
    index = {name: i for i, name in enumerate(videos)}
    video = np.array([index[name] for name in rows.videos], np.int64)[rows.video]
    return (video << 41) + rows.time + (1 << 40)


def _boxes(rows: AvaRows, frames: np.ndarray, classes: np.ndarray, keep: np.ndarray) -> Instances:
    """The rows of known classes, bool (n,) `keep` applied; the label is the index in `classes`."""
    label = np.searchsorted(classes, rows.classes).clip(max=len(classes) - 1)
    keep = keep & (classes[label] == rows.classes)
    score = np.where(np.isnan(rows.last), 1.0, rows.last)
    return Instances(frames[keep] >> 41, label[keep], score[keep], frames[keep], rows.boxes[keep])


def _refuse_hopeless(gt: AvaRows, pred: AvaRows, names: Mapping[int, str], annotated: np.ndarray) -> None:
    """InputError where the two files cannot belong together, instead of an mAP of 0.

    `annotated`, bool (n,): whether ground truth has the key frame of each row of `pred`.
    """
    if not set(pred.videos) & set(gt.videos):
        pair = f"it has {pred.videos[0]!r}, the ground truth {gt.videos[0]!r}"
        raise InputError(f"{pred.path}: no video of {gt.path} is in it ({pair}); names must agree, without extensions")
    for rows in (gt, pred):
        of_boxes = rows.classes[rows.classes >= 0]
        if not np.isin(of_boxes, list(names)).any():
            have = f"classes {of_boxes.min()} to {of_boxes.max()}" if len(of_boxes) else "no boxes"
            raise InputError(f"{rows.path}: {have}, none in the label map (ids {min(names)} to {max(names)})")
    if not annotated.any():
        raise InputError(f"{pred.path}: not one of its seconds is a key frame of {gt.path}")
    in_pixels = [bool(np.nanmax(np.abs(rows.boxes)) > PIXELS) for rows in (gt, pred)]
    if in_pixels[0] != in_pixels[1]:
        pixels, shares = (gt, pred) if in_pixels[0] else (pred, gt)
        raise InputError(f"{pixels.path}: boxes in pixels, but those of {shares.path} are shares of the frame (0 to 1)")


def main() -> None:
    """The command line."""
    parser = Parser("The official metric of AVA: frame-mAP at IoU 0.5 of files in its format.")
    parser.add_argument("groundtruth", help="csv: video, second, x1, y1, x2, y2, class, person")
    parser.add_argument("detections", help="csv: video, second, x1, y1, x2, y2, class, score")
    parser.add_argument("label_map", help="pbtxt of the evaluated classes")
    parser.flag("evaluation", "exclusions", help="csv of the seconds that are left out: video, second")
    parser.flag("evaluation", "rule", choices=RULES, help="key frames that count; 2020: those with any row of ground "
                "truth; 2019: all but the excluded (default: 2019 with --exclusions, else 2020)")  # fmt: skip
    parser.flag("output", "out", help="JSON file to write")
    args = parser.parse_args()
    from utils.results import plain, print_table

    rule = args.rule or ("2019" if args.exclusions else "2020")
    result = evaluate_files(args.groundtruth, args.detections, args.label_map, args.exclusions, rule)
    names = read_label_map(args.label_map)
    for line in all_of_ava(names, args.label_map):
        tell(f"warning: {line}")
    rows = [[f"{number} {names[number]}", ap] for number, ap in result["AP"].items()]
    print_table([f"rule of {rule}", f"AP@{IOU_TH:g}"], [*rows, ["mAP", result["mAP"]]])
    if args.out:
        write_json(args.out, plain(result))


if __name__ == "__main__":
    run(main)
