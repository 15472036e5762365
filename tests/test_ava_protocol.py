"""`eval_map.py --protocol ava`: a submission's figure is the official code's, and that of tubes agrees with it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eval_map
from utils.box_ops import Tube
from utils.metrics import ava
from utils.metrics.evaluation import Evaluation, measure

PROJECT = """
name: own
format: ava
annotations: groundtruth.csv
label_map: labelmap.pbtxt
other_classes: true
frames: videos/{name}.mp4
sizes: {}
width: 1000
height: 1000
splits: {val: val.txt}
rate: 900
"""


def project(folder: Path, target: Path, exclusions: bool) -> Path:
    """The files of an oracle as a data set of its own."""
    for name in ("groundtruth.csv", "detections.csv", "labelmap.pbtxt", "exclusions.csv"):
        if (folder / name).exists():
            (target / name).write_bytes((folder / name).read_bytes())
    names = {line.split(",")[0] for line in (folder / "groundtruth.csv").read_text().split()}
    (target / "val.txt").write_text("\n".join(sorted(names)))
    (target / "own.yml").write_text(PROJECT + "excluded: [exclusions.csv]\n" * exclusions)
    return target / "own.yml"


def evaluate(path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict:
    root = path.parent / "checkpoint"
    words = ["--dataset", path, "--predictions", path.parent / "detections.csv", "--checkpoint_root", root]
    monkeypatch.setattr("sys.argv", ["eval_map.py", *map(str, words), "--metric", "frame-mAP", "--seed", "1", *flags])
    eval_map.main()
    (results,) = (root / "own" / "predictions" / "results").glob("*.json")
    return json.loads(results.read_text())["metrics"]


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("edge_cases", "ava"), ("real_sample", "ava"), ("real_sample", "ava-2019"), ("kinetics_style", "ava")],
)
def test_a_submission_is_evaluated_as_by_the_official_code(
    name: str, protocol: str, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fixtures / "ava" / name
    metrics = evaluate(
        project(folder, tmp_path, protocol == "ava-2019"), monkeypatch, "--protocol", protocol, "--tiou_th", "0.5"
    )
    version = "official_2019_with_exclusions" if protocol == "ava-2019" else "official_2020"
    expected = json.loads((folder / "expected.json").read_text())[version]
    assert metrics["frame-mAP@0.5"] == pytest.approx(expected["mAP@0.5IOU"], abs=1e-9)
    for values in expected["classes"].values():
        ap = metrics["AP@0.5"][values["name"]]
        assert ap is None if values["ap"] is None else ap == pytest.approx(values["ap"], abs=1e-9)


def test_videos_that_a_submission_lacks_are_told(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = project(fixtures / "ava" / "edge_cases", tmp_path, False), tmp_path / "detections.csv"
    rows = file.read_text().split()
    lacking = rows[0].split(",")[0]
    rows = [row for row in rows if not row.startswith(f"{lacking},")]
    file.write_text("\n".join(rows))
    evaluate(path, monkeypatch, "--protocol", "ava")
    err = capsys.readouterr().err
    assert "not in it, taken as without detections: " in err and lacking in err


def test_one_csv_of_all_subsets_counts_the_subset_alone(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(fixtures / "ava" / "edge_cases", tmp_path, False)
    name = (tmp_path / "val.txt").read_text().split()[0]
    with (tmp_path / "groundtruth.csv").open("a") as file:
        file.write("further,0902,0.1,0.1,0.5,0.5,1,0\n")
    (tmp_path / "val.txt").write_text(name)
    assert evaluate(path, monkeypatch, "--protocol", "ava", "--tiou_th", "0.5")["videos"] == 1
    (tmp_path / "val.txt").write_text("absent")
    with pytest.raises(eval_map.InputError, match=r"groundtruth.csv: the annotation has no video 'absent'"):
        evaluate(path, monkeypatch, "--protocol", "ava")


def test_what_needs_tubes_is_refused(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project(fixtures / "ava" / "real_sample", tmp_path, False)
    with pytest.raises(eval_map.InputError, match="--bootstrap: goes with --protocol voc or"):
        evaluate(path, monkeypatch, "--protocol", "ava", "--bootstrap", "10")


@pytest.mark.parametrize("protocol", ["ava", "ava-2019"])
def test_tubes_agree_with_their_csv(protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tubes on key frames, with people who do nothing, key frames without people and detections between them."""
    random = np.random.default_rng(3)

    def tubes(n: int, noise: float, base: list[Tube] | None = None) -> list[Tube]:
        made = []
        for _ in range(n):
            frames = np.sort(random.choice(30, random.integers(1, 12), replace=False))
            corner = random.integers(0, 500, 2) / 1000
            boxes = np.tile([*corner, *(corner + 0.3)], (len(frames), 1))
            if base and random.random() < 0.7:
                person = base[random.integers(len(base))]
                frames, boxes = person.frames, person.boxes
            boxes = np.round(boxes + random.normal(0, noise, boxes.shape), 3)
            made.append(Tube(frames, boxes.clip(0, 1), int(random.integers(3)), random.random()))
        return made

    gt = {name: tubes(4, 0) for name in ("a", "b")}
    gt["b"].append(Tube([31], [[0.1, 0.1, 0.2, 0.2]], -1))
    pred = {name: tubes(40, 0.03, gt[name]) for name in gt} | {"c": tubes(2, 0)}
    for name, of_video in pred.items():
        pred[name] = [replace(tube, frame_scores=random.random(len(tube))) for tube in of_video]
    empty = {"a": np.array([33, 34]), "b": None}
    key = {"a": np.arange(35), "b": np.arange(32), "c": None}
    e = Evaluation(pred, gt, {}, ["x", "y", "z"], [0.5], protocol, key_frames=key, empty_frames=empty)
    ap = list(measure("frame-mAP", e)["AP@0.5"].values())

    def rows(of_videos: dict, last: object) -> str:
        text = ""
        for name, of_video in of_videos.items():
            for i, tube in enumerate(of_video):
                for t, (frame, box) in enumerate(zip(tube.frames, tube.boxes.tolist(), strict=True)):
                    text += (
                        f"{name},{frame},{','.join(f'{x:.9g}' for x in box)},{tube.label % 9 + 1},{last(name, i, t)}\n"
                    )
        return text

    (tmp_path / "gt.csv").write_text(rows(gt, lambda name, i, t: 0) + "a,33\na,34\n")
    (tmp_path / "det.csv").write_text(rows(pred, lambda name, i, t: repr(float(pred[name][i].frame_scores[t]))))
    (tmp_path / "map").write_text("".join(f'item {{\n  name: "{n}"\n  id: {i}\n}}\n' for i, n in enumerate("xyz", 1)))
    files = tmp_path / "gt.csv", tmp_path / "det.csv", tmp_path / "map"
    excluded = None
    if protocol == "ava-2019":  # all frames but those that are no key frames
        excluded = tmp_path / "excluded.csv"
        keys = {name: set() if frames is None else set(frames.tolist()) for name, frames in key.items()}
        keys["b"] |= {int(frame) for tube in gt["b"] for frame in tube.frames}
        excluded.write_text("".join(f"{n},{f}\n" for n in keys for f in range(40) if f not in keys[n]))
    expected = ava.evaluate_files(*files, excluded, "2019" if excluded else "2020")
    assert ap == pytest.approx(list(expected["AP"].values()), abs=1e-9, nan_ok=True)
    assert any(0 < value < 1 for value in ap if not math.isnan(value))


def test_another_metric_by_ava_s_protocol_is_refused() -> None:
    with pytest.raises(eval_map.InputError, match=r"--protocol ava: has no v-mAP; it has frame-mAP"):
        measure("v-mAP", Evaluation({}, {}, {}, ["x"], [0.5], "ava"))


def test_the_rule_of_2019_without_included_seconds_is_told(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tubes are judged in the key frames that are known: annotated ones alone give too high a figure."""
    path = project(fixtures / "ava" / "real_sample", tmp_path, False)
    name = (tmp_path / "val.txt").read_text().split()[0]
    tube = {"label": 0, "score": 0.5, "frames": [811801], "boxes": [[1, 1, 90, 90]]}
    (tmp_path / "pred.json").write_text(json.dumps({"labels": ["stand"], "videos": {name: {"tubes": [tube]}}}))
    evaluate(path, monkeypatch, "--predictions", str(tmp_path / "pred.json"), "--protocol", "ava-2019")
    told = "the project file names no seconds as included, so that annotated ones alone count"
    assert told in capsys.readouterr().err
