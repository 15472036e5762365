"""The whole chain on a tiny synthetic data set: every script, and the files between them."""

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models import person_queries
from predict import main as predict
from scripts import export_weights
from tests.stages import LOOSE, QUIET, Stages
from utils.misc import InputError
from utils.storage.tracks import TrackStore


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_every_stage_leaves_its_files(stages: Stages) -> None:
    folder = stages.folder("one")
    for part in ("detr/epoch_1.pth", "encoder/epoch_2.pth", "head/vanilla/epoch_2.pth"):
        held = torch.load(folder / part, weights_only=True)
        assert held.keys() == {"model", "config", "epoch"}
        assert (folder / part).parent.joinpath("metrics.jsonl").read_text().count("\n") == held["epoch"]
    assert len(list((stages.checkpoint / "synthetic" / "queries").glob("*.tar"))) == 2
    (linked,) = (folder / "qmm_tubes" / "val").glob("*.tar")
    people = list(TrackStore(linked))
    assert people and all(len(p.frames) == len(p.boxes) == len(p.labels) == len(p.scores) for p in people)
    assert all((np.diff(p.frames) > 0).all() and p.labels.max() <= 8 and p.labels.min() >= 0 for p in people)
    assert not list(stages.checkpoint.rglob("*.part*"))


def test_results_have_the_agreed_names(stages: Stages) -> None:
    measured = {r["args"]["subset"]: r["metrics"] for r in stages.results("one", "eval_qmm")}
    assert measured.keys() == {"train", "val"}
    assert {"recall@0.2", "precision@0.2", "recall@0.5", "IDF1", "IDSW", "HOTA", "AssA"} <= measured["val"].keys()
    assert measured["val"]["motion_recall@0.2"].keys() == {"small", "medium", "large"}
    (result,) = stages.results("one", "eval_map")
    assert {"v-mAP@0.2", "v-mAP@0.5", "AP@0.5"} <= result["metrics"].keys()
    known = [v for v in result["metrics"]["AP@0.5"].values() if v is not None]
    assert known and result["metrics"]["v-mAP@0.5"] == pytest.approx(np.mean(known))
    assert len(known) + len(result["metrics"]["without_gt"]) == 8


def test_exported_weights_are_found_by_name(stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(stages.folder("one"), tmp_path / "one")
    for module in ("models.weights", "scripts.export_weights"):
        monkeypatch.setattr(f"{module}.SHIPPED", tmp_path / "weights")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "one"), "--name", "tiny", "--made_by", "a test"])
    export_weights.main()
    for trained, kind in (("detr/epoch_1", "detr"), ("encoder/epoch_2", "encoder"), ("head/vanilla/epoch_2", "head")):
        before, after = weights(tmp_path / f"one/{trained}.pth"), weights(tmp_path / f"weights/tiny/{kind}.pth")
        assert before.keys() == after.keys()
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4, check_dtype=False)
    video = stages.data / "synthetic/videos/val_0000.avi"
    names = ["--encoder", "tiny", "--head", "tiny", "--device", "cpu", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["", str(video), *names, "--out", str(tmp_path), "--no_video"])
    predict()
    assert json.loads((tmp_path / "val_0000.json").read_text())["n_frames"] > 0


def test_two_runs_give_the_same_weights_and_figures(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    stages.chain("two")
    for part in ("detr/epoch_1.pth", "encoder/epoch_2.pth", "head/vanilla/epoch_2.pth"):
        one, two = (weights(stages.folder(name) / part) for name in ("one", "two"))
        assert all(torch.equal(one[name], two[name]) for name in one)
    for stage in ("eval_qmm", "eval_map"):
        one, two = ([r["metrics"] for r in stages.results(name, stage)] for name in ("one", "two"))
        assert one == two


def test_measuring_from_the_tar_gives_the_same_without_models(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {r["args"]["subset"]: r["metrics"] for r in stages.results("one", "eval_qmm")}["val"]
    with monkeypatch.context() as patch:
        patch.setattr("models.person_queries.open_detector", lambda *_, **_use: pytest.fail("DETR was built"))
        patch.setattr("models.person_encoder.load_encoder", lambda *_: pytest.fail("the encoder was built"))
        stages.run("eval_qmm", "--qmm_name", "one", "--from_tar", "-tiou_th", "0.2", "0.3:0.5:0.1", *LOOSE)
    measured = {r["args"]["subset"]: r["metrics"] for r in stages.results("one", "eval_qmm")}["val"]
    assert {f"recall@{t}" for t in (0.2, 0.3, 0.4, 0.5)} <= measured.keys()
    assert {name: measured[name] for name in whole} == whole
    for other in (["--iou_th", "0.1"], ["--sim_th", "0.9"], ["--end_consecutive_frames", "3"]):
        with pytest.raises(InputError, match=r"there are: epoch2-psn0\.3"):
            stages.run("eval_qmm", "--qmm_name", "one", "--from_tar", *other, *LOOSE)


def test_detr_over_a_subset_is_a_command_too(stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tar,) = (stages.checkpoint / "synthetic/queries").glob("val-*.tar")
    flags = ["--dataset", "synthetic", "--data_root", stages.data, "--checkpoint_root", tmp_path, "--subset", "val"]
    flags += ["--detr", stages.folder("one") / "detr/epoch_1.pth", *QUIET]
    monkeypatch.setattr(sys, "argv", ["person_queries.py", *map(str, flags)])
    person_queries.main()
    assert (tmp_path / "synthetic/queries" / tar.name).read_bytes() == tar.read_bytes()


def test_predict_writes_a_video_and_tubes(stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import predict

    folder, name = stages.folder("one"), (stages.data / "synthetic" / "val.txt").read_text().split()[0]
    video = stages.data / "synthetic" / "videos" / f"{name}.avi"
    flags = [
        "--encoder",
        folder / "encoder/epoch_2.pth",
        "--head",
        folder / "head/vanilla/epoch_2.pth",
        "--out",
        tmp_path,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["predict.py", *map(str, [video, *flags, "--min_tube_length", 1, "--device", "cpu"])]
        )
        predict.main()
    assert "frames/s" in capsys.readouterr().out
    held = json.loads((tmp_path / f"{name}.json").read_text())
    (linked,) = (p for p in TrackStore(next((folder / "qmm_tubes/val").glob("*feature.tar"))).names if p == name)
    people = TrackStore(next((folder / "qmm_tubes/val").glob("*feature.tar"))).tracks(linked)
    assert sorted(p["frames"] for p in held["people"]) == sorted(p.frames.tolist() for p in people)
    capture = cv2.VideoCapture(str(tmp_path / f"{name}.mp4"))
    assert round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == held["n_frames"]


def test_a_video_in_which_nobody_is_found_passes_through_every_stage(stages: Stages, tmp_path: Path) -> None:
    nobody = ("--psn_score_th", "1.0")
    for subset in ("train", "val"):
        stages.run("eval_qmm", "--qmm_name", "one", "--subset", subset, *nobody)
    with pytest.raises(InputError, match=r"no track in .train."):
        stages.run("train_action_head", "--qmm_name", "one", "--epochs", 1, *nobody)
    stages.run("eval_map", "--qmm_name", "one", *nobody)
    found = [r["metrics"] for r in stages.results("one", "eval_qmm") if r["args"]["psn_score_th"] == 1.0]
    assert all(m["recall@0.5"] == 0 and m["precision@0.5"] is None for m in found)
    (none,) = (r["metrics"] for r in stages.results("one", "eval_map") if r["args"]["psn_score_th"] == 1.0)
    assert none["v-mAP@0.5"] == 0 and none["tubes"] == 0
