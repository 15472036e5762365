"""v-mAP, motion-AP and recall of 5,000 predicted tubes of 100 frames against 2,000 annotated ones, against loops.

The yardstick is the definition written down: each detection by falling score, each unmatched ground truth of its class
and video, each frame, whose two boxes a function compares (`paired_iou`). The loop gets a few of many like videos.
v-mAP is also compared with NumPy over the frames of one pair of tubes (`tube_iou`). The last rows are the seconds that
a test set of the size of UCF101-24's takes.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.rows import Row, seconds, show, timed
from utils.box_ops import Tube, paired_iou, tube_iou
from utils.metrics.tube_recall import tube_precision_recall
from utils.video_map import average_precision, calc_frame_map, calc_motion_ap, calc_video_map

N_PRED, N_GT, LENGTH, SPAN = 5000, 2000, 100, 300
LAYOUTS = {  # videos, classes, share of frames missing; videos of the loops, and every how many of their tubes
    "100 videos, 24 classes": (100, 24, 0.0, 20, 1),
    "10 videos, 1 class, gaps": (10, 1, 0.1, 1, 20),
}
THRESHOLD = 0.2
ASKED = 5  # times the loop over frames
ASKED_SECONDS = 10
Tubes = dict[str, list[Tube]]


def make_case(
    videos: int, classes: int, missing: float, n_pred: int = N_PRED, n_gt: int = N_GT, seed: int = 0
) -> tuple[Tubes, Tubes]:
    """People who wander for LENGTH boxes, and detections: half of them near a person, half of them anywhere."""
    rng = np.random.default_rng(seed)

    def anyone() -> Tube:
        length = round(LENGTH / (1 - missing))
        frames = rng.integers(SPAN - length) + np.sort(rng.permutation(length)[:LENGTH])
        corner = rng.uniform((0, 0), (260, 140)) + rng.normal(0, 1, (LENGTH, 2)).cumsum(0)
        boxes = np.concatenate([corner, corner + np.array([60, 100])], 1)
        return Tube(frames, boxes, int(rng.integers(classes)), float(rng.random()))

    def near(person: Tube) -> Tube:
        boxes = person.boxes + rng.normal(0, 8, 4)
        return Tube(person.frames + rng.integers(20), boxes, person.label, float(rng.random()))

    gt = {f"v{v:03d}": [anyone() for _ in range(n_gt // videos)] for v in range(videos)}
    n = n_pred // videos
    pred = {
        video: [anyone() for _ in range(n // 2)] + [near(people[i % len(people)]) for i in range(n - n // 2)]
        for video, people in gt.items()
    }
    return pred, gt


def loop_iou(a: Tube, b: Tube) -> float:
    """3D IoU frame by frame."""
    boxes_a, boxes_b = (dict(zip(t.frames.tolist(), t.boxes.astype(np.float64), strict=True)) for t in (a, b))
    both = boxes_a.keys() & boxes_b.keys()
    return sum(paired_iou(boxes_a[frame], boxes_b[frame]) for frame in both) / (len(a) + len(b) - len(both))


def loop_map(pred: Tubes, gt: Tubes, classes: int, iou: Callable[[Tube, Tube], float]) -> np.ndarray:
    """AP of every class by a loop over detections and ground truth."""
    free: dict[tuple[str, int], list[Tube]] = {}
    for video, tubes in gt.items():
        for tube in tubes:
            free.setdefault((video, tube.label), []).append(tube)
    n_gt = np.bincount([tube.label for tubes in gt.values() for tube in tubes], minlength=classes)
    correct: list[list[bool]] = [[] for _ in range(classes)]
    detections = [(video, tube) for video, tubes in pred.items() for tube in tubes]
    for video, tube in sorted(detections, key=lambda detection: -detection[1].score):
        targets = free.get((video, tube.label), [])
        ious = [iou(tube, target) for target in targets]
        hit = bool(ious) and max(ious) >= THRESHOLD
        if hit:
            del targets[int(np.argmax(ious))]
        correct[tube.label].append(hit)
    return np.array([average_precision(np.array(c, bool), n) for c, n in zip(correct, n_gt, strict=True)])


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    rows = []
    for layout, (videos, classes, missing, n_looped, every) in LAYOUTS.items():
        pred, gt = make_case(videos, classes, missing)
        some_pred, some_gt = ({video: side[video] for video in list(gt)[:n_looped]} for side in (pred, gt))
        some_pred = {video: tubes[::every] for video, tubes in some_pred.items()}
        n_some = sum(map(len, some_pred.values()))
        expected = calc_video_map(some_pred, some_gt, classes, THRESHOLD)
        rates = {}
        for loop, iou in {"loop over frames": loop_iou, "NumPy pair by pair": tube_iou}.items():
            ap, spent = timed(partial(loop_map, some_pred, some_gt, classes, iou))
            np.testing.assert_allclose(ap, expected, atol=1e-9)
            rates[loop] = n_some / spent
        few = next(iter(pred.values()))[::25]
        pairs = [(tube, target) for tube in few for target in next(iter(gt.values()))]
        ious, spent = timed(lambda pairs=pairs: [loop_iou(*pair) for pair in pairs])
        np.testing.assert_allclose(ious, [tube_iou(*pair) for pair in pairs], atol=1e-9)
        slow = rates["loop over frames"]
        v_map = N_PRED / seconds(partial(calc_video_map, pred, gt, classes, THRESHOLD), rounds=1)
        motion = N_PRED / seconds(partial(calc_motion_ap, pred, gt, classes, THRESHOLD), rounds=1)
        recall = N_PRED / seconds(partial(tube_precision_recall, pred, gt, THRESHOLD), rounds=1)
        rows += [
            Row(f"v-mAP, {layout}: / loop over frames", v_map, slow, "tubes/s", ASKED),
            Row(f"v-mAP, {layout}: / NumPy pair by pair", v_map, rates["NumPy pair by pair"], "tubes/s"),
            Row(f"motion-AP, {layout}: / v-mAP's loop over frames", motion, slow, "tubes/s", ASKED),
            Row(f"recall, {layout}: / loop over frames", recall, len(few) / spent, "tubes/s", ASKED),
        ]
    pred, gt = make_case(914, 24, 0.0, n_pred=20 * 914, n_gt=914)
    for metric, function in {
        "v-mAP": partial(calc_video_map, pred, gt, 24, (0.2, 0.5)),
        "motion-AP": partial(calc_motion_ap, pred, gt, 24, (0.2, 0.5)),
        "frame-mAP": partial(calc_frame_map, pred, gt, 24),
        "recall": partial(tube_precision_recall, pred, gt, (0.2, 0.5)),
    }.items():
        what = f"{metric}, 914 videos of 20 predicted tubes: seconds / asked"
        rows.append(Row(what, seconds(function, rounds=1), ASKED_SECONDS, "s", at_most=1))
    return rows


if __name__ == "__main__":
    show(__doc__, measure)
