"""Reading and evaluating 100,000 predicted tubes on UCF101-24's test set, with intervals and causes of error.

The yardstick is the ACT detector's way written out: detections of a class by falling score, each compared with the
remaining ground truth of its video by the 3D IoU of one pair in NumPy, and for every resample all of it once more. It
gets a few resamples of a share of the videos, and its time is scaled to the whole.
"""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.rows import Row, show, timed
from benchmarks.video_map import Tubes, loop_map, make_case
from datasets.predictions import as_tubes, predictions_json, read_predictions
from utils.box_ops import tube_iou
from utils.metrics import evaluation
from utils.metrics.errors import errors
from utils.video_map import calc_video_map

VIDEOS, TUBES, CLASSES, RESAMPLES = 914, 100_000, 24, 1000
LABELS = [str(c) for c in range(CLASSES)]
THRESHOLDS = [0.2, 0.5]
LENGTH = 40  # frames of a tube
LOOPED = 9  # videos of the loop
ASKED_SECONDS = 60


def write_case(path: Path) -> Tubes:
    """Predictions of the test set's size as JSON, with the digits that `predict.py` writes; the ground truth."""
    pred, gt = make_case(VIDEOS, CLASSES, 0.0, n_pred=TUBES, n_gt=VIDEOS)
    for name, tubes in pred.items():
        shorter = [replace(t, frames=t.frames[:LENGTH], boxes=t.boxes[:LENGTH].round(2)) for t in tubes]
        rounded = [replace(t, score=round(t.score, 4)) for t in shorter]
        pred[name] = [replace(t, frame_scores=np.full(len(t), t.score)) for t in rounded]
    path.write_text(json.dumps(predictions_json(LABELS, pred, {})))
    return gt


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.json"
        gt = write_case(path)
        pred, read = timed(lambda: as_tubes(read_predictions(path, "json", {"labels": LABELS}), gt))
    e = evaluation.Evaluation(pred, gt, {}, LABELS, THRESHOLDS, bootstrap=RESAMPLES)
    with contextlib.redirect_stdout(io.StringIO()):
        _, evaluated = timed(lambda: evaluation.measure("v-mAP", e))
    _, explained = timed(lambda: errors("v-mAP", e))
    total = read + evaluated + explained
    some_pred, some_gt = ({name: side[name] for name in list(gt)[:LOOPED]} for side in (pred, gt))
    ap, looped = timed(lambda: loop_map(some_pred, some_gt, CLASSES, tube_iou))
    np.testing.assert_allclose(ap, calc_video_map(some_pred, some_gt, CLASSES, 0.2), atol=1e-9)
    anew = looped * VIDEOS / LOOPED * len(THRESHOLDS) * RESAMPLES
    return [
        Row("reading, v-mAP, 1,000 resamples, causes: seconds / asked", total, ASKED_SECONDS, "s", at_most=1),
        Row("of these reading 4 million boxes as JSON", read, total, "s"),
        Row("of these causes of error", explained, total, "s"),
        Row("v-mAP with intervals: / pair by pair, anew for each resample", 1 / evaluated, 1 / anew, "1/s", 100),
    ]


if __name__ == "__main__":
    show(__doc__, measure)
