"""The official figures of MultiSports: the answers of the official code, and those of `eval_map.py`'s functions."""

import json
import math
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest

from datasets.export_predictions import check_export
from tests.pickles import pickled
from utils.box_ops import Tube
from utils.drawing.evaluation_plots import precision_recall_plots
from utils.drawing.report.contents import curve_charts
from utils.metrics import multisports
from utils.metrics.evaluation import Evaluation, measure
from utils.misc import InputError
from utils.video_map import average_precision, calc_frame_map


def check(folder: Path) -> None:
    """Compare every class at every threshold with `expected.json`, which is in per cent."""
    files = (folder / f"{name}.pkl" for name in ("multisports_GT", "frame_detections", "video_detections"))
    figures = multisports.evaluate_files(*files)
    expected = json.loads((folder / "expected.json").read_text())
    for kind in ("frameAP", "videoAP"):
        for threshold, values in expected[kind].items():
            figure = figures[f"{kind}@{float(threshold):g}"]
            assert 100 * figure["mAP"] == pytest.approx(values["mAP"], abs=1e-9)
            percent = {label: 100 * ap for label, ap in figure["AP"].items() if not math.isnan(ap)}
            assert percent == pytest.approx(values["classes"], abs=1e-9)
    for name in multisports.RANGES:
        assert 100 * figures[f"videoAP@{name}"]["mAP"] == pytest.approx(expected[f"videoAP_{name}"], abs=1e-9)


def test_every_class_is_the_official_code_s(fixtures: Path) -> None:
    check(fixtures / "multisports" / "edge_cases")


def test_every_class_of_the_random_set(shared: Path) -> None:
    check(shared / "oracles" / "multisports" / "random_1")


@pytest.mark.parametrize("name", ["edge_cases", "random_1"])
def test_eval_map_s_protocol_gives_the_same(
    name: str, fixtures: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fixtures / "multisports" / name
    if not folder.is_dir():
        folder = request.getfixturevalue("shared") / "oracles" / "multisports" / name
    expected = json.loads((folder / "expected.json").read_text())
    gt, labels, videos = multisports.read_groundtruth(folder / "multisports_GT.pkl")
    pred = multisports.read_tubes(folder / "video_detections.pkl", labels)
    levels = [float(threshold) for threshold in expected["videoAP"]]
    metrics = measure("v-mAP", Evaluation(pred, gt, {}, labels, levels, "multisports"))
    for threshold, values in expected["videoAP"].items():
        assert 100 * metrics[f"v-mAP@{float(threshold):g}"] == pytest.approx(values["mAP"], abs=1e-9)
    for span in multisports.RANGES:
        assert 100 * metrics[f"v-mAP@{span}"] == pytest.approx(expected[f"videoAP_{span}"], abs=1e-9)
    assert "not evaluated" in capsys.readouterr().out

    boxes = multisports.read_frames(folder / "frame_detections.pkl", len(labels))
    video_of = dict(enumerate(videos))
    single: dict[str, list[Tube]] = {}
    for frame, label, box, score in zip(boxes.frame, boxes.label, boxes.boxes, boxes.score, strict=True):
        name = video_of.get(frame >> 32, f"not tested {frame >> 32}")
        single.setdefault(name, []).append(Tube([frame % 2**32], [box], int(label), float(score)))
    metrics = measure("frame-mAP", Evaluation(single, gt, {}, labels, [0.5, 0.2], "multisports"))
    for threshold, values in expected["frameAP"].items():
        assert 100 * metrics[f"frame-mAP@{threshold}"] == pytest.approx(values["mAP"], abs=1e-9)


def test_motion_ap_leaves_the_same_labels_out() -> None:
    boxes = np.array([[0, 0, 10, 10]] * 40)
    gt = {"v": [Tube(np.arange(40), boxes, 0), Tube(np.arange(40), boxes, 1)]}
    pred = {"v": [Tube(np.arange(40), boxes, 0)]}
    e = Evaluation(pred, gt, {}, ["run", "aerobic kick jump"], [0.5], "multisports")
    assert measure("motion-AP", e)["motion-AP@0.5"]["small"] == 1
    assert measure("motion-AP", e._replace(protocol="voc"))["motion-AP@0.5"]["small"] == 0.5


def test_curves_leave_the_same_labels_out(tmp_path):
    tubes = {"v": [Tube(np.arange(40), [[0, 0, 10, 10]] * 40, label) for label in (0, 1)]}
    labels, shown = ["run", "aerobic kick jump"], Mock(wraps=average_precision)
    for protocol, names in (("multisports", labels[:1]), ("voc", labels)):
        (chart,) = curve_charts(tubes, tubes, labels, [0.5], protocol)
        assert [curve["name"] for curve in chart["curves"]] == names
        with patch("utils.plot_utils.average_precision", shown):
            precision_recall_plots(tmp_path, tubes, tubes, labels, [0.5], protocol)
        assert shown.call_count == len(names)
        shown.reset_mock()


def test_a_box_without_area_is_a_false_positive(tmp_path: Path) -> None:
    """MultiSports' code drops nothing; leaving such boxes out is a rule of AVA's."""
    gt = {"labels": ["a"], "train_videos": [[]], "test_videos": [["v"]], "nframes": {"v": 9}}
    gt |= {"resolution": {"v": (100, 100)}, "gttubes": {"v": {0: [np.float32([[1, 0, 0, 10, 10]])]}}}
    boxes = np.array([[0, 1, 0, 0.9, 100, 0, 100, 50], [0, 1, 0, 0.8, 0, 0, 10, 10]])
    (tmp_path / "gt.pkl").write_bytes(pickled(gt))
    (tmp_path / "boxes.pkl").write_bytes(pickled(boxes))
    assert multisports.evaluate_files(tmp_path / "gt.pkl", frames=tmp_path / "boxes.pkl")["frameAP@0.5"]["mAP"] == 0.5
    tubes = {"v": [Tube([0], box[None, 4:], 0, box[3]) for box in boxes]}
    assert calc_frame_map(tubes, {"v": [Tube([0], [[0, 0, 10, 10]], 0)]}, 1, 0.5, "multisports")[0] == 0.5


def test_damaged_files_are_one_line(tmp_path: Path, fixtures: Path) -> None:
    truth = fixtures / "multisports" / "edge_cases" / "multisports_GT.pkl"
    (tmp_path / "boxes.pkl").write_bytes(pickled([[0, 1, 2]]))
    (tmp_path / "tubes.pkl").write_bytes(pickled({70: [("v", 0.5, np.zeros((1, 6)))]}))
    with pytest.raises(InputError, match=r"boxes.pkl: not boxes of MultiSports"):
        multisports.evaluate_files(truth, frames=tmp_path / "boxes.pkl")
    with pytest.raises(InputError, match=r"tubes.pkl: not tubes of MultiSports .*label 70 is not an index of the 66"):
        multisports.evaluate_files(truth, tubes=tmp_path / "tubes.pkl")
    with pytest.raises(InputError, match=r"tubes.pkl: not ground truth of MultiSports .*labels"):
        multisports.evaluate_files(tmp_path / "tubes.pkl")


def test_videos_in_an_order_of_their_own_are_noted(
    tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = fixtures / "multisports" / "edge_cases" / "multisports_GT.pkl"
    (tmp_path / "boxes.pkl").write_bytes(pickled(np.array([[50, 1, 0, 0.9, 10, 10, 50, 50.0]])))
    monkeypatch.setattr("sys.argv", ["multisports", str(truth), "--frames", str(tmp_path / "boxes.pkl")])
    multisports.main()
    assert "videos count in the order of test_videos[0]" in capsys.readouterr().err


def test_the_command_writes_its_figures(tmp_path: Path, fixtures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fixtures / "multisports" / "edge_cases"
    words = [folder / "multisports_GT.pkl", "--tubes", folder / "video_detections.pkl", "--out", tmp_path / "ap.json"]
    monkeypatch.setattr("sys.argv", ["multisports", *map(str, words)])
    multisports.main()
    figures = json.loads((tmp_path / "ap.json").read_text())
    assert "frameAP@0.5" not in figures
    assert figures["videoAP@0.2"]["mAP"] == pytest.approx(0.5333333333, abs=1e-9)
    assert figures["videoAP@0.2"]["AP"]["aerobic kick jump"] is None


def test_tubes_as_pickles_are_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"--export multisports: .*tubes of MultiSports are pickles, .*; use json"):
        check_export("multisports", "v-mAP")
