"""The published evaluation's figures: what its code answers (an oracle), and a case worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from utils.box_ops import MOTION_CATEGORIES, Tube
from utils.metrics.published import published_precision_recall
from utils.misc import InputError
from utils.video_map import calc_frame_map, calc_motion_ap, calc_video_map

RATES = ("recall", "precision", "precision_filter")


def tubes_of(data: np.lib.npyio.NpzFile, case: int, side: str, videos: list[str]) -> dict[str, list[Tube]]:
    columns = {name.split("_", 1)[1]: data[name] for name in data if name.startswith(f"case{case}/{side}_")}
    scores = columns.get("score", np.ones(len(columns["video"])))
    tubes: dict[str, list[Tube]] = {name: [] for name in videos}
    ends = np.cumsum(columns["length"])
    for video, label, score, first, end in zip(
        columns["video"], columns["label"], scores, ends - columns["length"], ends, strict=True
    ):
        tube = Tube(columns["frames"][first:end], columns["boxes"][first:end], int(label), float(score))
        tubes[videos[video]].append(tube)
    return tubes


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_the_figures_are_those_of_the_published_code(fixtures: Path, case: int, threshold: float) -> None:
    answers = json.loads((fixtures / "published_tube_metrics.json").read_text())[case]
    with np.load(fixtures / "published_tube_metrics.npz") as data:
        pred, gt = (tubes_of(data, case, side, answers["videos"]) for side in ("pred", "gt"))
    n_classes, answer = answers["num_classes"], answers["at"][f"{threshold:g}"]

    by_class = calc_video_map(pred, gt, n_classes, threshold, protocol="published")
    np.testing.assert_allclose(by_class, answer["video_ap_by_class"], atol=1e-9)
    assert round(by_class.mean(), 4) == pytest.approx(answer["v_map_printed"], abs=1e-4)
    by_motion = calc_motion_ap(pred, gt, n_classes, [threshold], protocol="published")
    for category in MOTION_CATEGORIES:
        assert by_motion[category] == pytest.approx(np.array([[answer["motion_ap"][category]["ap"]]]), abs=1e-9)

    labels = list(answer["precision_recall_by_class"])
    rates = published_precision_recall(pred, gt, threshold, labels)
    for name in RATES:
        assert rates[name] == pytest.approx(answer["precision_recall"][name])
        assert rates[f"motion_{name}"] == pytest.approx(
            {category: answer["precision_recall_by_motion"][category][name] for category in MOTION_CATEGORIES}
        )
        wanted = [answer["precision_recall_by_class"][label][name] for label in labels]
        np.testing.assert_allclose(rates[f"class_{name}"], wanted)


def test_a_class_without_ground_truth_counts_as_zero_and_a_duplicate_as_right() -> None:
    box = np.array([[0, 0, 10, 10]] * 10, np.float32)
    person = Tube(np.arange(10), box, 0, 0.9)
    pred = {"a": [person, Tube(np.arange(10), box, 0, 0.8)], "b": [Tube(np.arange(10), box, 1, 0.7)]}
    assert calc_video_map(pred, {"a": [person]}, 2, 0.5, protocol="published") == pytest.approx([2, 0], abs=1e-4)
    assert np.isnan(calc_video_map(pred, {"a": [person]}, 2, 0.5)[1])
    half = {"a": [Tube(np.arange(5), box[:5], 0, 0.9)]}  # a 3D IoU of exactly the threshold does not exceed it
    assert calc_video_map(half, {"a": [person]}, 1, 0.5, protocol="published") == 0
    assert calc_video_map(half, {"a": [person]}, 1, 0.5) == 1


def test_nobody_and_nothing_are_undefined() -> None:
    rates = published_precision_recall({}, {}, 0.2, ["walk"])
    assert all(np.isnan(rates[name]) and np.isnan(rates[f"class_{name}"]).all() for name in RATES)
    assert all(np.isnan(ap).all() for ap in calc_motion_ap({}, {}, 1, 0.2, protocol="published").values())
    with pytest.raises(InputError, match="protocol 'published'"):
        calc_frame_map({}, {}, 1, 0.5, protocol="published")


def test_recall_counts_people_without_an_action_and_average_precision_does_not() -> None:
    box = np.array([[0, 0, 10, 10]] * 10, np.float32)
    gt = {"walk/a": [Tube(np.arange(10), box, 0), Tube(np.arange(10), box + 50, -1)]}
    tracks = {"walk/a": [Tube(np.arange(10), box + 50)]}
    rates = published_precision_recall(tracks, gt, 0.2, ["walk"])
    assert (rates["recall"], rates["precision"], rates["class_recall"][0]) == (0.5, 1, 0.5)
    pred = {"walk/a": [Tube(np.arange(10), box, 0)]}
    assert calc_video_map(pred, gt, 1, 0.2, protocol="published") == pytest.approx([1], abs=1e-4)
