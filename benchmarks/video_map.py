"""v-mAP, motion-AP and recall of 5,000 predicted tubes of 100 frames against 2,000 annotated ones, against loops.

The yardstick is the definition written down: each detection by falling score, each ground truth of its class and
video that is left, each frame. The 3D IoU of a pair is a loop over its frames that calls a function of boxes,
`paired_iou`, in each. v-mAP is also compared with the same loop with the IoU spelled out, over the rows of the arrays
and over plain floats, the fastest such a loop gets, and with NumPy over the frames of one pair (`tube_iou`). The loops
get a few of many like videos.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.rows import Row, show
from utils.box_ops import MOTION_BOUNDS, MOTION_STRIDES, Tube, motion_categories, paired_iou, tube_iou
from utils.metrics.tube_recall import tube_precision_recall
from utils.video_map import average_precision, calc_motion_ap, calc_video_map

N_PRED, N_GT, LENGTH, SPAN, ROUNDS = 5000, 2000, 100, 300, 5
LAYOUTS = {  # number of videos and classes, share of frames missing, videos that the loops are timed on
    "100 videos, 24 classes": (100, 24, 0.0, 20),
    "100 videos, 24 classes, gaps": (100, 24, 0.1, 20),
    "10 videos, 1 class": (10, 1, 0.0, 1),
    "10 videos, 1 class, gaps": (10, 1, 0.1, 1),
}
THRESHOLD = 0.2
ASKED = 100  # times the loop over frames
Tubes = dict[str, list[Tube]]


def make_case(videos: int, classes: int, missing: float, seed: int = 0) -> tuple[Tubes, Tubes]:
    """People who wander for LENGTH boxes, and detections: half of them near a person, half of them anywhere."""
    rng = np.random.default_rng(seed)

    def anyone() -> Tube:
        size = np.array([60, 100])
        length = round(LENGTH / (1 - missing))
        frames = rng.integers(SPAN - length) + np.sort(rng.permutation(length)[:LENGTH])
        corner = rng.uniform((0, 0), (260, 140)) + rng.normal(0, 1, (LENGTH, 2)).cumsum(0)
        boxes = np.concatenate([corner, corner + size], 1)
        return Tube(frames, boxes, int(rng.integers(classes)), float(rng.random()))

    gt: Tubes = {f"v{v:03d}": [anyone() for _ in range(N_GT // videos)] for v in range(videos)}
    pred: Tubes = {}
    for video, truth in gt.items():
        pred[video] = [anyone() for _ in range(N_PRED // videos // 2)]
        for i in range(N_PRED // videos - len(pred[video])):
            near = truth[i % len(truth)]
            boxes = near.boxes + rng.normal(0, 8, 4)
            pred[video].append(Tube(near.frames + rng.integers(20), boxes, near.label, float(rng.random())))
    return pred, gt


def frame_iou(a: np.ndarray | list[float], b: np.ndarray | list[float]) -> float:
    """IoU of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def loop_iou(a: Tube, b: Tube, rows: Callable = list, iou: Callable = frame_iou) -> float:
    """3D IoU frame by frame; `rows` makes boxes of float64 (T, 4), `iou` compares two of them."""
    of_a, of_b = (dict(zip(t.frames.tolist(), rows(t.boxes.astype(np.float64)), strict=True)) for t in (a, b))
    both = [frame for frame in of_a if frame in of_b]
    return sum(iou(of_a[frame], of_b[frame]) for frame in both) / (len(a) + len(b) - len(both))


def loop_motion(tube: Tube) -> float:
    """What the motion category goes by: mean over strides of the mean IoU of boxes one stride apart."""
    of_frame = dict(zip(tube.frames.tolist(), tube.boxes.astype(np.float64), strict=True))
    first, last = tube.frames[0], tube.frames[-1]
    means = []
    for stride in MOTION_STRIDES:
        pairs = [(f, f + stride) for f in range(first, last + 1, stride) if f in of_frame and f + stride in of_frame]
        means.append(np.mean([paired_iou(of_frame[a], of_frame[b]) for a, b in pairs or [(first, last)]]))
    return float(np.mean(means))


def loop_map(pred: Tubes, gt: Tubes, classes: int, iou: Callable[[Tube, Tube], float]) -> np.ndarray:
    """AP of every class by a loop over detections and ground truth."""
    left: dict[tuple[str, int], list[Tube]] = {}
    for video, tubes in gt.items():
        for tube in tubes:
            left.setdefault((video, tube.label), []).append(tube)
    n_gt = np.bincount([tube.label for tubes in gt.values() for tube in tubes], minlength=classes)
    correct: list[list[bool]] = [[] for _ in range(classes)]
    detections = [(video, tube) for video, tubes in pred.items() for tube in tubes]
    for video, tube in sorted(detections, key=lambda one: -one[1].score):
        truth = left.get((video, tube.label), [])
        ious = [iou(tube, one) for one in truth]
        found = bool(ious) and max(ious) >= THRESHOLD
        if found:
            del truth[int(np.argmax(ious))]
        correct[tube.label].append(found)
    return np.array(
        [average_precision(np.array(c, bool), n) if n else np.nan for c, n in zip(correct, n_gt, strict=True)]
    )


def _seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _timed(function: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def _motion_seconds(gt: Tubes) -> float:
    """Of the motion of these tubes by loops."""
    tubes = [tube for each in gt.values() for tube in each]
    motion, seconds = _timed(lambda: [loop_motion(tube) for tube in tubes])
    named = [
        "large" if m < MOTION_BOUNDS["large"] else "medium" if m < MOTION_BOUNDS["medium"] else "small" for m in motion
    ]
    assert named == motion_categories(tubes)
    return seconds


def _recall_rate(pred: Tubes, gt: Tubes) -> float:
    """Tubes a second of a loop that compares a few of a video's detections with all its ground truth."""
    video = next(iter(gt))
    pairs = [(a, b) for a in pred[video][::25] for b in gt[video]]
    ious, seconds = _timed(lambda: [loop_iou(a, b, iou=paired_iou) for a, b in pairs])
    np.testing.assert_allclose(ious, [tube_iou(a, b) for a, b in pairs], atol=1e-9)
    return len(pred[video][::25]) / seconds


def measure() -> list[Row]:
    """Rows (what, figure, yardstick, unit, bounds); the ratio is figure / yardstick."""
    rows = []
    loops = {
        "loop over frames": partial(loop_iou, iou=paired_iou),
        "loop over frames, spelled out": loop_iou,
        "loop over frames, plain floats": partial(loop_iou, rows=np.ndarray.tolist),
        "NumPy pair by pair": tube_iou,
    }
    for name, (videos, classes, missing, timed) in LAYOUTS.items():
        pred, gt = make_case(videos, classes, missing)
        some_pred, some_gt = ({video: side[video] for video in list(gt)[:timed]} for side in (pred, gt))
        n_some = sum(map(len, some_pred.values()))
        expected = calc_video_map(some_pred, some_gt, classes, THRESHOLD)
        rate = N_PRED / _seconds(partial(calc_video_map, pred, gt, classes, THRESHOLD))
        seconds = {}
        for loop, iou in loops.items():
            found, seconds[loop] = _timed(partial(loop_map, some_pred, some_gt, classes, iou))
            np.testing.assert_allclose(found, expected, atol=1e-9)
            asked = ASKED if loop == "loop over frames" else 0
            what = f"v-mAP, {name}: arrays / {loop}"
            rows.append(Row(what, rate, n_some / seconds[loop], "tubes/s", at_least=asked))
        slow = n_some / (seconds["loop over frames"] + _motion_seconds(some_gt))
        others = {
            "motion-AP": (partial(calc_motion_ap, pred, gt, classes, THRESHOLD), slow),
            "recall": (partial(tube_precision_recall, pred, gt, THRESHOLD), _recall_rate(pred, gt)),
        }
        for metric, (function, slow) in others.items():
            what = f"{metric}, {name}: arrays / loop over frames"
            rows.append(Row(what, N_PRED / _seconds(function), slow, "tubes/s", at_least=ASKED))
    return rows


if __name__ == "__main__":
    show(__doc__, measure)
