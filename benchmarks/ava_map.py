"""AVA's official mAP of files of a validation set's size (64 videos, 2.5 million rows), against the obvious loop.

The loop follows the rules row by row; it gets a hundredth of the rows.
"""

import csv
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.rows import Row, show, timed
from utils.ava_files import read_label_map
from utils.box_ops import paired_iou
from utils.metrics.ava import MAX_PER_FRAME, evaluate_files
from utils.video_map import average_precision

VIDEOS, SECONDS, CLASSES, PEOPLE, ROWS_A_SECOND = 64, 897, 60, 3, 44
ASKED = 2  # times the loop
ASKED_SECONDS = 20


def loop_ap(groundtruth: Path, detections: Path, label_map: Path) -> dict[int, float]:
    """Each class's AP by the rule of 2020, one row after another; equal scores by content."""

    def rows(path: Path) -> dict[tuple, list[tuple]]:
        frames: dict[tuple, list[tuple]] = defaultdict(list)
        with path.open(newline="") as file:
            for name, second, *box, number, last in csv.reader(file):
                frames[name, f"{float(second):.6f}"].append((-float(last), int(number), tuple(map(float, box))))
        return {key: sorted(frames[key]) for key in frames}

    names, gt, pred = read_label_map(label_map), rows(groundtruth), rows(detections)
    n_gt = dict.fromkeys(names, 0)
    of_class: dict[int, list[tuple]] = {number: [] for number in names}
    for key in sorted(gt):
        targets = defaultdict(list)
        for _, number, box in gt[key]:
            targets[number].append(box)
        for number in names.keys() & targets.keys():
            n_gt[number] += len(targets[number])
        taken = set()
        for score, number, box in [row for row in pred.get(key, []) if row[1] in names][:MAX_PER_FRAME]:
            if box[0] >= box[2] or box[1] >= box[3]:
                continue
            ious = [float(paired_iou(np.array(box), np.array(target))) for target in targets[number]]
            best = int(np.argmax(ious)) if ious else -1
            correct = bool(ious) and ious[best] >= 0.5 and (number, best) not in taken
            taken |= {(number, best)} if correct else set()
            of_class[number].append((score, key, box, correct))
    return {
        number: average_precision(np.array([row[-1] for row in sorted(of_class[number])], bool), n_gt[number])
        for number in names
    }


def write_case(folder: Path, videos: int, seconds: int) -> list[Path]:
    """People in every second, and detections near them or anywhere, as the official tool reads them."""
    random = np.random.default_rng(0)
    people = np.sort(random.random((videos, seconds, PEOPLE, 2, 2)), 3)  # corners x, y
    path = folder / "groundtruth.csv"
    with path.open("w") as file:
        for v, t, p in np.ndindex(videos, seconds, PEOPLE):
            (x0, y0), (x1, y1) = people[v, t, p].tolist()
            number = random.integers(CLASSES) + 1
            file.write(f"video{v:06d},{902 + t:04d},{x0:.3f},{y0:.3f},{x1:.3f},{y1:.3f},{number},{p}\n")
    with (folder / "detections.csv").open("w") as file:
        for v in range(videos):
            near = random.integers(PEOPLE, size=(seconds, ROWS_A_SECOND))
            boxes = people[v][np.arange(seconds)[:, None], near]
            boxes = boxes + random.normal(0, 0.03, boxes.shape)
            numbers = random.integers(CLASSES, size=near.shape) + 1
            scores = random.random(near.shape)
            for t, r in np.ndindex(*near.shape):
                (x0, y0), (x1, y1) = boxes[t, r].tolist()
                row = f"{x0:.4f},{y0:.4f},{x1:.4f},{y1:.4f},{numbers[t, r]},{scores[t, r]:.5f}"
                file.write(f"video{v:06d},{902 + t:04d},{row}\n")
    label_map = folder / "map.pbtxt"
    label_map.write_text("".join(f'item {{\n  name: "{i}"\n  id: {i}\n}}\n' for i in range(1, CLASSES + 1)))
    return [path, folder / "detections.csv", label_map]


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    with tempfile.TemporaryDirectory() as folder:
        some = write_case(Path(folder), VIDEOS // 32, SECONDS // 4)
        expected, looped = timed(partial(loop_ap, *some))
        slow = VIDEOS // 32 * (SECONDS // 4) * ROWS_A_SECOND / looped
        ap = evaluate_files(*some)["AP"]
        np.testing.assert_allclose(list(ap.values()), list(expected.values()), atol=1e-9)
        _, spent = timed(partial(evaluate_files, *write_case(Path(folder), VIDEOS, SECONDS)))
    rows = VIDEOS * SECONDS * ROWS_A_SECOND
    what = f"AVA's mAP of {rows:,} rows, read and evaluated: seconds / asked"
    return [
        Row(what, spent, ASKED_SECONDS, "s", at_most=1),
        Row("AVA's mAP / loop over rows", rows / spent, slow, "rows/s", at_least=ASKED),
    ]


if __name__ == "__main__":
    show(__doc__, measure)
