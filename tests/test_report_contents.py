"""What the page says is wrong, against the metrics that count the same."""

from pathlib import Path

import numpy as np
import pytest

import eval_map
from tests.tube_cases import jhmdb21_case, matches_of, random_case
from utils.box_ops import Tube
from utils.drawing.report.contents import (
    curve_charts,
    part_charts,
    person_colours,
    predicted_page,
    single_metrics,
    video_entry,
    worst,
    wrong_tubes,
)
from utils.metrics.evaluation import Evaluation
from utils.metrics.tracking import identity_switches, tracking_metrics
from utils.metrics.tube_recall import tube_precision_recall, with_accepted_pair


@pytest.mark.parametrize("protocol", ["voc", "act"])
def test_wrong_tubes_are_those_that_v_map_counts(fixtures: Path, protocol: str) -> None:
    cases = [(*random_case(seed, tied=True), 4) for seed in range(4)]
    for pred, gt, n in [*cases, (*jhmdb21_case(fixtures)[:2], 21)]:
        wrong = wrong_tubes(pred, gt, n, 0.3, protocol)
        correct, n_gt = matches_of(pred, gt, n, 0.3, protocol)
        assert wrong.keys() == {*pred, *gt}
        for c in range(n):
            sides = {"pred": pred, "gt": gt}
            of_class = [
                (video, error)
                for video, errors in wrong.items()
                for error in errors
                if sides[error.side][video][error.index].label == c
            ]
            assert len(set(of_class)) == len(of_class)
            assert sum(error.side == "pred" for _, error in of_class) == (~correct[c]).sum()
            assert sum(error.side == "gt" for _, error in of_class) == n_gt[c] - correct[c].sum()


@pytest.mark.parametrize("label_centric", [True, False])
def test_missed_people_and_false_tracks_are_those_that_are_counted(label_centric: bool) -> None:
    for seed in range(6):
        pred, gt = random_case(seed)
        (rates,) = tube_precision_recall(pred, gt, [0.3], label_centric)
        both = [with_accepted_pair(pred.get(name, []), gt.get(name, []), 0.3, label_centric) for name in {*pred, *gt}]
        of_pred, of_gt = (np.concatenate(part) for part in zip(*both, strict=True))
        assert of_pred.mean() == pytest.approx(rates["precision"]) and of_gt.mean() == pytest.approx(rates["recall"])


@pytest.mark.parametrize("label_centric", [True, False])
def test_identity_switches_are_as_many_as_are_counted(label_centric: bool) -> None:
    total = 0
    for seed in range(6):
        pred, gt = random_case(seed)
        switches = identity_switches(pred, gt, label_centric)
        n = sum(map(len, switches.values()))
        assert n == tracking_metrics(pred, gt, label_centric)["IDSW"]
        total += n
    a, b = ([[x, 0, x + 10, 10]] * 10 for x in (0, 50))
    gt = {"v": [Tube(range(10), a, 0, person_id=7)]}
    pred = {"v": [Tube(range(4), a[:4], person_id=1), Tube(range(4, 10), a[4:], person_id=5), Tube(range(10), b)]}
    assert identity_switches(pred, gt, label_centric) == {"v": [(4, 7, 1, 5)]}


def test_a_track_has_the_colour_of_the_person_it_covers_most() -> None:
    a, b, c = (np.array([[x, 0, x + 10, 10]] * 10) for x in (0, 50, 90))
    gt = [Tube(range(10), a, person_id=4), Tube(range(10), b, person_id=9)]
    swapped = Tube(range(10), np.concatenate([b[:7], a[7:]]), person_id=0)
    pred = [swapped, Tube(range(10), a, person_id=1), Tube(range(10), c, person_id=2), Tube(range(10), b)]
    assert person_colours(pred, gt) == {"gt": {4: 0, 9: 1}, "pred": {-4: 1, 0: 1, 1: 0, 2: 2}}
    assert person_colours(pred[:3], [])["pred"] == {0: 0, 1: 1, 2: 2}
    assert person_colours([Tube(range(10), b), Tube(range(10), c)], [])["pred"] == {-1: 0, -2: 1}


def test_a_video_without_size_or_tubes_can_be_shown() -> None:
    entry = video_entry("v", (0, 0, 0), [Tube([3], [[5, 5, 40.5, 30]], 0)], [])
    assert (entry["width"], entry["height"], entry["n_frames"]) == (41, 30, 4)
    assert video_entry("v", (0, 0, 0), [], [])["n_frames"] == 1


def test_metrics_are_shown_with_their_intervals() -> None:
    metrics = {
        "videos": 3, "v-mAP@0.5": 0.5, "AP@0.5": {"walk": None, "run": 0.5}, "motion-AP@0.5": {"small": 0.25},
        "intervals": {"v-mAP@0.5": [0.4, 0.6], "AP@0.5": {"run": [0.4, 0.6]}}, "without_gt": ["walk"],
        "confusion": {"tubes@0.5": {"labels": ["run"], "counts": [[3]]}}, "videos_left_out": 0,
        "errors": {"v-mAP@0.5": {"causes": {"link": {"gain": 0.1, "count": 2}}, "mAP": 0.5}},
    }  # fmt: skip
    shown = {row["name"]: row for row in single_metrics(metrics)}
    assert shown.keys() == {"videos", "v-mAP@0.5"}
    assert (shown["videos"]["count"], shown["v-mAP@0.5"]["count"]) == (True, False)
    assert (shown["v-mAP@0.5"]["low"], shown["v-mAP@0.5"]["high"]) == (0.4, 0.6)
    cues = {"motion-AP@0.5": {"feature": {"small": 0.25}, "iou": {"small": 0.1}}}
    ap, motion, causes, confusion = part_charts(metrics, cues)
    assert [row.get("low") for row in ap["rows"]] == [None, 0.4]
    assert [(row["series"], row["value"]) for row in motion["rows"]] == [("feature", 0.25), ("iou", 0.1)]
    assert causes["rows"][0]["value"] == causes["most"] == 0.1 and confusion["counts"] == [[3]]


def test_the_page_says_by_which_rules_errors_are_counted() -> None:
    pred, gt = random_case(1)
    e = Evaluation(pred, gt, dict.fromkeys(gt, (0, 0, 0)), list("abcd"), [0.2])
    e = e._replace(pred={name: pred.get(name, []) for name in gt})
    shown = {}
    for changes in ({}, {"protocol": "act"}, {"protocol": "published"}, {"count_duplicates": True}):
        facts = eval_map.report(e._replace(**changes), {}, {}, {"data set": "d", "subset": "s"}, Path())["facts"]
        shown[str(changes)] = facts["errors counted"]
    at = "at 3D IoU 0.2"
    assert [*shown.values()] == [at, at, f"{at}, by protocol voc, not published", f"{at}, a second detection too"]


def test_curves_end_where_recall_ends() -> None:
    pred, gt = random_case(1)
    for chart, level in zip(curve_charts(pred, gt, list("abcd"), [0.2, 0.5], "voc"), (0.2, 0.5), strict=True):
        correct, n_gt = matches_of(pred, gt, 4, level)
        assert [curve["name"] for curve in chart["curves"]] == [name for name, n in zip("abcd", n_gt, strict=True) if n]
        ends = [c.sum() / n for c, n in zip(correct, n_gt, strict=True) if n]
        assert [curve["x"][-1] for curve in chart["curves"]] == pytest.approx(ends, abs=1e-4)
    assert curve_charts(pred, gt, list("abcd"), [0.5], "ava") == []


def test_predictions_show_people_between_their_actions() -> None:
    frames = list(range(10))
    boxes = [[0, 0, 9, 9]] * 10
    tube = {"label": "run", "score": 0.5, "person_id": 3, "frames": frames[:4], "boxes": boxes[:4]}
    person = {"person_id": 3, "frames": frames, "boxes": boxes, "scores": [1.0] * 10}
    about = {"width": 9, "height": 9, "n_frames": 10, "fps": 25.0, "labels": ["walk", "run"]}
    page = predicted_page({"a": about | {"tubes": [tube], "people": [person]}}, {"topk": 1, "action_th": None})
    (video,) = page["videos"]
    assert [(list(t["frames"]), t["label"]) for t in video["pred"]] == [(frames[:4], 1), (frames[4:], -1)]
    assert page["facts"] == {"topk": "1"} and video["counts"] == {"action tubes": 1, "people": 1}


def test_the_worst_videos_have_errors() -> None:
    videos = [{"name": name, "counts": {"errors": n}} for name, n in (("a", 0), ("b", 2), ("c", 5), ("d", 1))]
    assert worst(videos, 2) == ["c", "b"] and worst(videos) == ["c", "b", "d"]


def test_causes_without_any_ground_truth_have_a_chart() -> None:
    causes = {name: {"gain": None, "count": 1} for name in ("link", "missed")}
    (chart,) = part_charts({"errors": {"v-mAP@0.5": {"causes": causes, "mAP": None}}})
    assert [row["value"] for row in chart["rows"]] == [None, None] and chart["most"] == 1
    assert [row["note"] for row in chart["rows"]] == ["mAP, 1 false positive", "mAP, 1 ground truth"]
