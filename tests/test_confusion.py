"""Confusion of classes against counting pair by pair, and what the stage makes of errors and confusion."""

import json

import numpy as np
import pytest

from tests.test_predictions import data, evaluate, predictions  # noqa: F401 (fixtures)
from tests.tube_cases import random_case
from utils.box_ops import Tube, tube_iou
from utils.metrics.confusion import confusion
from utils.metrics.evaluation import Evaluation
from utils.misc import InputError


def obvious_confusion(pred: dict, gt: dict, n: int, threshold: float) -> np.ndarray:
    counts = np.zeros((n + 1, n + 1), int)
    for video in {*pred, *gt}:
        people, free = gt.get(video, []), list(range(len(gt.get(video, []))))
        for tube in sorted(pred.get(video, []), key=lambda t: -t.score):
            ious = [tube_iou(tube, person) for person in people]
            best = max(free, key=lambda k: ious[k], default=None)
            if best is not None and ious[best] >= threshold:
                counts[people[best].label, tube.label] += 1
                free.remove(best)
            elif max(ious, default=0) < threshold:
                counts[n, tube.label] += 1
        for k in free:
            counts[people[k].label, n] += people[k].label >= 0
    return counts


def test_confusion_is_that_of_counting_pair_by_pair():
    for seed in range(5):
        pred, gt = random_case(seed, 4)
        gt["v1"] = [*gt["v1"], *(type(t)(t.frames, t.boxes + 3, -1) for t in pred["v1"][:2])]
        found = confusion(Evaluation(pred, gt, {}, list("abcd"), [0.2, 0.5]))
        for threshold in (0.2, 0.5):
            table = found[f"tubes@{threshold}"]
            np.testing.assert_array_equal(table["counts"], obvious_confusion(pred, gt, 4, threshold))
            assert table["labels"] == ["a", "b", "c", "d", "no action"]

        def boxes(tubes_of: dict) -> dict:
            return {
                f"{video} {frame}": [
                    type(t)([frame], t.boxes[t.frames == frame], t.label, t.score) for t in tubes if frame in t.frames
                ]
                for video, tubes in tubes_of.items()
                for frame in {int(f) for t in tubes for f in t.frames}
            }

        np.testing.assert_array_equal(found["frames"]["counts"], obvious_confusion(boxes(pred), boxes(gt), 4, 0.5))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_actions_of_one_person_are_not_taken_for_each_other(order):
    frames, boxes = np.arange(10), np.tile([10.0, 10, 30, 60], (10, 1))
    gt = {"v": [Tube(frames, boxes, label) for label in order]}
    pred = {"v": [Tube(frames, boxes, label, 0.9 - 0.1 * label) for label in range(2)]}
    found = confusion(Evaluation(pred, gt, {}, list("ab"), [0.5]))
    assert found["tubes@0.5"]["counts"] == np.diag([1, 1, 0]).tolist()
    assert found["frames"]["counts"] == np.diag([10, 10, 0]).tolist()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_equal_detections_of_two_classes_have_one_order(order):
    frames, boxes = np.arange(10), np.tile([10.0, 10, 30, 60], (10, 1))
    gt = {"v": [Tube(frames, boxes, 2)]}
    pred = {"v": [Tube(frames, boxes, label, 0.5) for label in order]}
    found = confusion(Evaluation(pred, gt, {}, list("abc"), [0.5]))
    for counts in (found["tubes@0.5"]["counts"], found["frames"]["counts"]):
        assert counts[2][0] and not counts[2][1]


def test_the_stage_keeps_and_plots_errors_and_confusion(data, predictions, capsys):  # noqa: F811
    metrics, folder = evaluate(data, predictions, "--errors", "--confusion", "--plot", "--tiou_th", 0.5)
    found = metrics["errors"]["v-mAP@0.5"]
    assert found["mAP"] == metrics["v-mAP@0.5"] and found["all"] == 1 and "list" not in found
    listed = json.loads((folder / "errors.json").read_text())["v-mAP@0.5"]
    assert {"video", "cause", "kind", "tube", "label", "frames"} == listed[0].keys()
    assert np.sum(metrics["confusion"]["tubes@0.5"]["counts"]) > 0
    names = {path.name for path in folder.glob("*.png")}
    assert names == {
        "precision_recall@0.5.png",
        "errors_v-mAP@0.5.png",
        "confusion_tubes@0.5.png",
        "confusion_frames.png",
    }
    assert "gain if mended" in capsys.readouterr().out
    metrics, _ = evaluate(data, predictions, "--metric", "frame-mAP", "--errors", "--tiou_th", 0.5)
    assert sum(metrics["errors"]["frame-mAP@0.5"]["act"].values()) == pytest.approx(1)
    with pytest.raises(InputError, match="a second detection is an error"):
        evaluate(data, predictions, "--errors", "--count_duplicates")
    with pytest.raises(InputError, match="goes with --protocol voc or act"):
        evaluate(data, predictions, "--errors", "--protocol", "published")


def test_overlaps_are_computed_once_for_all_thresholds(monkeypatch):
    from utils.metrics import confusion as of_confusion
    from utils.metrics import errors as of_errors

    calls = []
    for module in (of_confusion, of_errors):
        original = module.candidates
        monkeypatch.setattr(
            module, "candidates", lambda *args, f=original, **kwargs: calls.append(f) or f(*args, **kwargs)
        )
    pred, gt = random_case(0, 4)
    e = Evaluation(pred, gt, {}, list("abcd"), [0.2, 0.5, 0.7])
    assert confusion(e).keys() == {"tubes@0.2", "tubes@0.5", "tubes@0.7", "frames"}
    assert len(calls) == 2  # of tubes and of boxes
    assert len(of_errors.errors("v-mAP", e)) == 3 and len(calls) == 3
