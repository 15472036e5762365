"""Data annotated in key frames: what is evaluated in them alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import eval_map
import eval_qmm
from utils.box_ops import Track

RATE = 5
FRAMES = np.arange(0, 4 * RATE - 2)  # of the videos, which end after their last key frame
COMMON = ("--comet", "disabled", "--device", "cpu", "--threads", "1", "--workers", "1")
ROWS = (
    "v,0,.1,.1,.2,.4,1,0\nv,1,.12,.1,.22,.4,1,0\nv,2,.14,.1,.24,.4,1,0\nv,3\nw,0,.5,.1,.6,.4,2,0\nw,2,.5,.1,.6,.4,2,0\n"
)


def make_project(folder: Path, rows: str = ROWS, **fields: object) -> Path:
    """In video v somebody acts in seconds 0 to 2, nobody is there in 3; in w in 0 and 2, and nobody knows about 1."""
    (folder / "a.csv").write_text(rows)
    (folder / "val.txt").write_text(
        "".join(f"{name}\n" for name in sorted({row[0] for row in rows.split("\n") if row}))
    )
    given = {"name": "own", "format": "ava", "annotations": "a.csv", "label_map": {1: "walk", 2: "wave"}, "start": 0}
    given |= {"rate": RATE, "width": 100, "height": 100, "frames": "{name}.mp4", "splits": {"val": "val.txt"}}
    path = folder / "own.yml"  # JSON is YAML
    path.write_text(json.dumps({name: value for name, value in (given | fields).items() if value is not None}))
    return path


def everywhere(left: float, step: float = 0.0) -> np.ndarray:
    """A person's boxes in all frames."""
    x = left + step * FRAMES / RATE
    return np.stack([x, np.full(len(x), 10.0), x + 10, np.full(len(x), 40.0)], 1)


def run_eval_map(folder: Path, project: Path, monkeypatch: pytest.MonkeyPatch, *flags: object) -> dict:
    """The metrics of predictions of whom `ROWS` has, in all frames, and of somebody who is only between key frames."""
    keep = np.flatnonzero(FRAMES != 3 * RATE)  # nobody is in that key frame
    between = [1, 2, 6, 7]
    tubes = {
        "v": [("walk", 0.9, everywhere(10, 2), keep), ("walk", 0.95, everywhere(70), between)],
        "w": [("wave", 0.9, everywhere(50), np.arange(len(FRAMES)))],
    }
    videos = {
        name: {
            "tubes": [
                {"label": label, "score": score, "frames": FRAMES[rows].tolist(), "boxes": boxes[rows].tolist()}
                for label, score, boxes, rows in of_video
            ]
        }
        for name, of_video in tubes.items()
    }
    (folder / "tubes.json").write_text(json.dumps({"labels": ["walk", "wave"], "videos": videos}))
    command = ["eval_map.py", "--dataset", project, "--checkpoint_root", folder / "ck", *COMMON, "--tiou_th", "0.9"]
    command += ["--predictions", folder / "tubes.json", *flags]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    eval_map.main()
    (path,) = (folder / "ck/own/predictions/results").glob("*.json")
    return json.loads(path.read_text())["metrics"]


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("metric", ["v-mAP", "frame-mAP", "motion-AP"])
@pytest.mark.parametrize("protocol", ["voc", "act", "multisports"])
def test_predictions_between_key_frames_count_in_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, metric: str, protocol: str,
    multi_label: bool,
) -> None:  # fmt: skip
    project = make_project(tmp_path, multi_label=multi_label)
    more = ("--confusion", "--errors") if metric != "motion-AP" else ("--confusion",)
    metrics = run_eval_map(tmp_path, project, monkeypatch, "--metric", metric, "--protocol", protocol, *more)
    values = [metrics[f"{metric}@0.9"]] if metric != "motion-AP" else metrics["motion-AP@0.9"].values()
    assert {value for value in values if value is not None} == {1.0}
    assert metrics["tubes"] == 2 and metrics["confusion"]["frames"]["counts"] == [[3, 0, 0], [0, 2, 0], [0, 0, 0]]
    if more[-1] == "--errors":
        assert not any(row["count"] for row in metrics["errors"][f"{metric}@0.9"]["causes"].values())
    assert "k-th" not in capsys.readouterr().err


def test_a_prediction_in_a_key_frame_without_people_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path, ROWS.replace("w,2", "w,1\nw,2"))
    metrics = run_eval_map(tmp_path, project, monkeypatch, "--metric", "frame-mAP")
    assert metrics["AP@0.9"] == {"walk": 1.0, "wave": pytest.approx(5 / 6)}  # 2 of 3, one score: by frame


def test_what_is_exported_is_what_was_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official tool by its rule of 2019 would count the rows of other seconds."""
    run_eval_map(tmp_path, make_project(tmp_path), monkeypatch, "--metric", "frame-mAP", "--export", "ava")
    (path,) = (tmp_path / "ck").rglob("ava.csv")
    assert [line.split(",")[:2] for line in path.read_text().splitlines()] == [
        ["v", "0000"], ["v", "0001"], ["v", "0002"], ["w", "0000"], ["w", "0002"]
    ]  # fmt: skip


def test_frames_without_rows_count_where_consecutive_ones_are_annotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmaction2's csv of MultiSports: a tube that goes on after its action is an error of time, as by the pickle."""
    rows = "".join(f"v,{t},.1,.1,.2,.4,1,0\n" for t in range(6)) + "".join(f"w,{t},.5,.1,.6,.4,2,0\n" for t in (2, 9))
    project = make_project(tmp_path, rows, time="frames", rate=None)
    metrics = run_eval_map(tmp_path, project, monkeypatch)
    assert metrics["AP@0.9"] == {"walk": 0, "wave": 1}  # w is annotated in steps


def test_tracks_between_key_frames_count_in_no_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A track of nobody between key frames is no false one, and followed people are, whatever is between."""
    project, ones, few = make_project(tmp_path), np.ones(len(FRAMES)), slice(1, 5)
    keep = np.flatnonzero(FRAMES != 3 * RATE)
    tracks = {
        "v": [
            Track(FRAMES[few], everywhere(70)[few], ones[few]),
            Track(FRAMES[keep], everywhere(10, 2)[keep], ones[keep]),
        ],
        "w": [Track(FRAMES, everywhere(50), ones)],
    }
    store = SimpleNamespace(
        tracks=tracks.__getitem__, tubes=lambda: {name: [t.tube() for t in ts] for name, ts in tracks.items()},
        names=list(tracks), models={}, path=Path("one.tar"),
    )  # fmt: skip
    monkeypatch.setattr(eval_qmm, "open_tracks", lambda *_: store)
    flags = ["--dataset", project, "--checkpoint_root", tmp_path / "ck", "--from_tar", "--load_epoch", 1, *COMMON]
    for rule in (("--label_centric",), ("--no-label_centric",), ("--protocol", "published")):
        monkeypatch.setattr("sys.argv", list(map(str, ["eval_qmm.py", *flags, *rule, "--tiou_th", "0.9"])))
        eval_qmm.main()
    for path in (tmp_path / "ck").rglob("results/*.json"):
        metrics = json.loads(path.read_text())["metrics"]
        names = ("recall@0.9", "precision@0.9", "IDF1", "HOTA")
        assert [metrics[name] for name in names] == pytest.approx([1, 1, 1, 1]), path
        assert metrics["tracks"] == 2


@pytest.mark.parametrize("protocol", ["ava", "ava-2019"])
def test_excluded_seconds_count_neither_in_tubes_nor_in_their_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    (tmp_path / "excluded.csv").write_text("w,2\n")
    project = make_project(tmp_path, excluded=["excluded.csv"])
    flags = ("--metric", "frame-mAP", "--protocol", protocol)
    assert run_eval_map(tmp_path, project, monkeypatch, *flags, "--export", "ava")["AP@0.9"] == {"walk": 1, "wave": 1}
    (path,) = (tmp_path / "ck").rglob("ava.csv")
    csv = path.rename(tmp_path / "ava.csv")
    next((tmp_path / "ck").rglob("results/*.json")).unlink()
    metrics = run_eval_map(tmp_path, project, monkeypatch, *flags, "--predictions", csv)
    assert metrics["AP@0.9"] == {"walk": 1, "wave": 1}
