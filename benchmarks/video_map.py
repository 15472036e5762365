"""v-mAP of 5,000 predicted tubes of 100 frames against 2,000 annotated ones, against loops over pairs and frames.

The yardstick is the definition written down: each detection by falling score, each ground truth of its class and
video that is left, each frame. The 3D IoU of a pair is a loop over the frames (once over the rows of the arrays as
they are, once over plain floats, the fastest such a loop gets), or NumPy over the frames of one pair (`tube_iou`).
Where everything at once would take minutes the loops get the predictions of one video of many alike.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.rows import Row, print_rows
from utils.box_ops import Tube, tube_iou
from utils.tube_recall import tube_precision_recall
from utils.video_map import average_precision, calc_motion_ap, calc_video_map

N_PRED, N_GT, LENGTH, SPAN, ROUNDS = 5000, 2000, 100, 300, 5
LAYOUTS = {  # number of videos and classes, share of frames missing, videos that the loops are timed on
    "100 videos, 24 classes": (100, 24, 0.0, 100),
    "100 videos, 24 classes, gaps": (100, 24, 0.1, 100),
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


def loop_iou(a: Tube, b: Tube, plain: bool = False) -> float:
    """3D IoU frame by frame, over the rows of the arrays or, `plain`, over Python's numbers."""
    of_a, of_b = (
        dict(zip(t.frames.tolist(), t.boxes.tolist() if plain else t.boxes.astype(np.float64), strict=True))
        for t in (a, b)
    )
    both = [frame for frame in of_a if frame in of_b]
    return sum(frame_iou(of_a[frame], of_b[frame]) for frame in both) / (len(a) + len(b) - len(both))


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


def measure() -> list[Row]:
    """Rows (what, figure, yardstick, unit, bounds); the ratio is figure / yardstick."""
    rows = []
    for name, (videos, classes, missing, timed) in LAYOUTS.items():
        pred, gt = make_case(videos, classes, missing)
        some_pred, some_gt = ({video: side[video] for video in list(gt)[:timed]} for side in (pred, gt))
        n_some = sum(map(len, some_pred.values()))
        expected = calc_video_map(some_pred, some_gt, classes, THRESHOLD)
        rate = N_PRED / _seconds(lambda p=pred, g=gt, c=classes: calc_video_map(p, g, c, THRESHOLD))
        loops = {
            "loop over frames": loop_iou,
            "loop over frames, plain floats": lambda a, b: loop_iou(a, b, plain=True),
            "NumPy pair by pair": tube_iou,
        }
        slow = {}
        for loop, iou in loops.items():
            start = time.perf_counter()
            np.testing.assert_allclose(loop_map(some_pred, some_gt, classes, iou), expected, atol=1e-9)
            slow[loop] = n_some / (time.perf_counter() - start)
            asked = ASKED if loop == "loop over frames" else 0
            rows.append(Row(f"v-mAP, {name}: arrays / {loop}", rate, slow[loop], "tubes/s", at_least=asked))
        others = {  # a loop for these would do what v-mAP's does, and more
            "motion-AP": lambda p=pred, g=gt, c=classes: calc_motion_ap(p, g, c, THRESHOLD),
            "recall": lambda p=pred, g=gt: tube_precision_recall(p, g, THRESHOLD),
        }
        for metric, function in others.items():
            what = f"{metric}, {name}: arrays / v-mAP's loop over frames"
            rows.append(Row(what, N_PRED / _seconds(function), slow["loop over frames"], "tubes/s", at_least=ASKED))
    return rows


if __name__ == "__main__":
    print_rows(measure())
