"""The metrics of the method's published evaluation by its own rules, which `docs/protocol.md` compares with ours.

All thresholds must be exceeded. Each detection looks at one ground truth alone, the first of those that it overlaps
most; in AP a second detection of it is correct again, so that AP may exceed 1.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from utils.box_ops import MOTION_CATEGORIES, Tube, Tubes, motion_category
from utils.metrics.overlaps import check_tubes, tube_ious

Group = Callable[[str, Tube], object]
"""What a tube of a video belongs to: its class, its motion category, ..."""


class _Detection(NamedTuple):
    """A detection and the ground truth of its video and group that it overlaps most: its `index` among them, -1 where
    there is none, their 3D `iou`, and whether the classes agree."""

    score: float
    video: str
    index: int
    iou: float
    same_class: bool


def _detections(
    pred: Tubes, gt: Tubes, group_of: Group, num_classes: int | None = None, label_centric: bool = False
) -> tuple[Mapping[object, list[_Detection]], Counter]:
    """The detections of each group, in the order given, and how many ground truths it has. People without an action
    (label -1) count where labels do not: `label_centric`, of tracks."""
    check_tubes(pred, gt, num_classes)
    by_group: dict[object, list[_Detection]] = defaultdict(list)
    n_gt: Counter = Counter()
    for video in dict.fromkeys([*pred, *gt]):
        tubes = [tube for tube in pred.get(video, ()) if len(tube)]
        targets = [tube for tube in gt.get(video, ()) if len(tube) and (label_centric or tube.label >= 0)]
        groups = [group_of(video, tube) for tube in targets]
        n_gt.update(groups)
        for tube, ious in zip(tubes, tube_ious(tubes, targets, label_centric), strict=True):
            group = group_of(video, tube)
            same = [j for j, other in enumerate(groups) if other == group]
            index = int(ious[same].argmax()) if same else -1
            iou, label = (ious[same[index]], targets[same[index]].label) if same else (0.0, -1)
            by_group[group].append(_Detection(tube.score, video, index, iou, label == tube.label))
    return by_group, n_gt


def _average_precision(detections: list[_Detection], n_gt: int, tiou_th: float, any_class: bool) -> float:
    """Area under the precision envelope, in float32, as published."""
    order = np.argsort([-detection.score for detection in detections], kind="stable")
    correct = [detections[i].iou > tiou_th and (any_class or detections[i].same_class) for i in order]
    hits = np.array(correct, bool).cumsum()
    recall = np.concatenate([[0], (hits / (n_gt + 1e-5)).astype(np.float32), [1]]).astype(np.float64)
    precision = np.concatenate([[1], (hits / np.arange(1, len(hits) + 1)).astype(np.float32), [0]]).astype(np.float64)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope[1:]).sum())


def published_video_map(pred: Tubes, gt: Tubes, num_classes: int, tiou_th: float) -> np.ndarray:
    """AP of every class over action tubes, float64 (num_classes,): 0, and in the mean, where a class has no ground
    truth or no detection. A detection must exceed the 3D IoU `tiou_th`."""
    by_group, n_gt = _detections(pred, gt, lambda _, tube: tube.label, num_classes)
    usable = [label for label in range(num_classes) if label in by_group and label in n_gt]
    ap = np.zeros(num_classes)
    ap[usable] = [_average_precision(by_group[label], n_gt[label], tiou_th, any_class=True) for label in usable]
    return ap


def published_motion_ap(pred: Tubes, gt: Tubes, num_classes: int, tiou_th: float) -> dict[str, float]:
    """AP by motion category of all classes in one pool, detections by their own motion; NaN without detections.

    A detection is correct when the ground truth of its category that it overlaps most, of any class, has its class.
    """
    by_group, n_gt = _detections(pred, gt, lambda _, tube: motion_category(tube), num_classes)
    ap = dict.fromkeys(MOTION_CATEGORIES, float("nan"))
    for category, detections in by_group.items():
        ap[category] = _average_precision(detections, n_gt[category], tiou_th, any_class=False)
    return ap


def published_precision_recall(pred: Tubes, gt: Tubes, tiou_th: float, labels: Sequence[str] = ()) -> dict:
    """Recall and precision of tracks, labels ignored, over the frames of the ground truth.

    In the order given, each track takes the ground truth that it overlaps most, if that is free. A track whose ground
    truth is taken is neither right nor wrong (`precision_filter`), or wrong (`precision`). By motion category, tracks
    and ground truth count by their own motion, and the list of what is taken, by video and index in the category, is
    one for all three, small first, so that some tracks are lost, as published. By class: the part of a video's name
    before "/", as in JHMDB21 and UCF101-24.

    Returns:
        `recall`, `precision`, `precision_filter`, each also as `motion_<name>`, a mapping by category, and
        `class_<name>`, float64 (len(labels),); NaN where there is nothing to count.
    """
    rates = _rates(pred, gt, tiou_th, lambda *_: "all", ["all"])["all"]
    by_motion = _rates(pred, gt, tiou_th, lambda _, tube: motion_category(tube), MOTION_CATEGORIES)
    by_class = _rates(pred, gt, tiou_th, lambda video, _: video.partition("/")[0], labels)
    grouped = {f"motion_{name}": {group: by_motion[group][name] for group in MOTION_CATEGORIES} for name in rates}
    grouped |= {f"class_{name}": np.array([by_class[label][name] for label in labels], np.float64) for name in rates}
    return rates | grouped


def _rates(
    pred: Tubes, gt: Tubes, tiou_th: float, group_of: Group, groups: Sequence[object]
) -> dict[object, dict[str, float]]:
    by_group, n_gt = _detections(pred, gt, group_of, label_centric=True)
    rates, taken = {}, set()
    for group in groups:
        right = again = 0
        detections = by_group.get(group, [])
        for detection in detections:
            target = detection.video, detection.index
            if detection.iou > tiou_th:
                right, again = right + (target not in taken), again + (target in taken)
                taken.add(target)
        totals = {"recall": n_gt[group], "precision": len(detections), "precision_filter": len(detections) - again}
        rates[group] = {name: right / total if total else float("nan") for name, total in totals.items()}
    return rates
