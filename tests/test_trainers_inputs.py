"""What trainers learn from the outputs of frozen models: which changes a resumed run refuses, and what they say before
these models run."""

import json
from pathlib import Path

import pytest
import torch

from datasets.config import load_project
from datasets.make_shards import make_shards
from tests.stages import LOOSE, TINY_DETR, Stages
from tests.videos import write_video
from utils.misc import InputError
from utils.storage.files import load_checkpoint, lock, save_torch
from utils.training.resume import STATE


def scaled(path: Path, factor: float, prefix: str) -> None:
    """Multiply the weights of a checkpoint whose names begin with `prefix`, in place."""
    checkpoint = torch.load(path, weights_only=True)
    for name in checkpoint["model"]:
        if name.startswith(prefix):
            checkpoint["model"][name] = factor * checkpoint["model"][name]
    save_torch(path, checkpoint)


def train_qmm(stages: Stages, *flags: object) -> None:
    detr = stages.folder("one") / "detr" / "epoch_1.pth"
    stages.run("train_qmm", "--qmm_name", "own", "--detr", detr, "--iou_th", 0.05, *LOOSE, *flags)


def test_an_encoder_is_not_resumed_with_a_detector_that_was_retrained_in_place(
    finished_chain: Stages, tmp_path: Path
) -> None:
    stages = finished_chain.copy(tmp_path)
    train_qmm(stages, "--epochs", 1)
    train_qmm(stages, "--epochs", 2, "--resume")
    scaled(stages.folder("one") / "detr" / "epoch_1.pth", 1.001, "query_embed")
    with pytest.raises(InputError, match=r"the run was started with another detector \(\w+-64, now \w+-64\); restore"):
        train_qmm(stages, "--epochs", 3, "--resume")


def test_a_detector_is_not_resumed_by_the_settings_of_another_file(stages: Stages, tmp_path: Path) -> None:
    weights = tmp_path / "detr.pth"
    checkpoint = load_checkpoint(stages.folder("one") / "detr/epoch_1.pth", "detector")
    save_torch(weights, checkpoint)
    run = ("train_detr", "--detr", weights, "--ex_name", "tuned", "--clips_per_video", 1, "--resume", "--epochs")
    stages.run(*run, 1)
    for name, value in (("image_size", 48), ("pad_square", True), ("temperature", 20.0)):
        save_torch(weights, {**checkpoint, "config": checkpoint["config"] | {name: value}})
        with pytest.raises(InputError, match=f"was started with --{name} {checkpoint['config'][name]}, not {value}"):
            stages.run(*run, 2)


def test_a_head_is_not_resumed_with_an_encoder_that_was_retrained_in_place(
    finished_chain: Stages, tmp_path: Path
) -> None:
    stages, run = finished_chain.copy(tmp_path), ("--qmm_name", "one", *LOOSE)
    scaled(stages.folder("one") / "encoder" / "epoch_2.pth", 2, "layers.6")  # which changes no track
    stages.run("eval_qmm", *run, "--subset", "train")
    with pytest.raises(InputError, match="the run was started with another person encoder"):
        stages.run("train_action_head", *run, "--epochs", 3, "--resume")


@pytest.mark.parametrize("script", ["train_qmm", "train_detr", "train_action_head"])
def test_a_replaced_video_under_the_same_annotation_is_not_resumed(
    finished_chain: Stages, tmp_path: Path, script: str
) -> None:
    stages = finished_chain.copy(tmp_path)
    commands = {
        "train_qmm": ("--qmm_name", "own", "--detr", stages.folder("one") / "detr" / "epoch_1.pth", "--iou_th", 0.05),
        "train_detr": ("--ex_name", "one", *TINY_DETR),
        "train_action_head": ("--qmm_name", "one"),
    }
    loose = () if script == "train_detr" else LOOSE
    project = load_project("synthetic", stages.data)
    name = project.split("train")[0]
    video = [frame // 2 for frame in project.open_video(name)]
    stages.run(script, *commands[script], *loose, "--epochs", 2, "--resume")  # nothing has changed
    write_video(project.frames_path(name), video, "mjpeg", "yuvj420p")
    if script == "train_detr":
        make_shards(project, "train", stages.data / "synthetic" / "shards" / "train")
    if script == "train_action_head":
        stages.run("eval_qmm", "--qmm_name", "one", "--subset", "train", *LOOSE)
    with pytest.raises(InputError, match="was started on other training data"):
        stages.run(script, *commands[script], *loose, "--epochs", 3, "--resume")


@pytest.mark.parametrize("fault", ["subset", "train", "val"])
def test_mistakes_in_both_subsets_are_said_before_the_detector_runs(
    finished_chain: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    stages = finished_chain.copy(tmp_path)
    monkeypatch.setattr("train_qmm.cache_queries", lambda *_: pytest.fail("DETR ran"))
    if fault == "subset":
        with pytest.raises(InputError, match=r"no subset 'vall'; it has train, val"):
            train_qmm(stages, "--val_subset", "vall")
        return
    path = stages.data / "synthetic" / "annotations.json"
    annotations = json.loads(path.read_text())
    box = annotations["videos"][f"{fault}_0001"]["tubes"][0]["boxes"][0]
    box[0], box[2] = box[2], box[0]
    path.write_text(json.dumps(annotations))
    with pytest.raises(InputError, match=rf"video '{fault}_0001', tube 0, frame \d+: box is reversed"):
        train_qmm(stages, "--val_subset", "val")


def test_mistakes_of_a_head_that_is_resumed_change_nothing(finished_chain: Stages, tmp_path: Path) -> None:
    stages = finished_chain.copy(tmp_path)
    run = ("train_action_head", "--qmm_name", "one", "--head_type", "res", *LOOSE, "--epochs", 1)
    stages.run(*run)
    before = torch.load(stages.folder("one") / "head" / "res" / STATE, weights_only=True)
    with pytest.raises(InputError, match=r"the run was started with --lr 0\.001, not 0\.5"):
        stages.run(*run, "--resume", "--lr", 0.5)
    with lock(stages.folder("one") / "head" / "res", "run"), pytest.raises(InputError, match="is writing here"):
        stages.run(*run, "--resume")
    after = torch.load(stages.folder("one") / "head" / "res" / STATE, weights_only=True)
    assert before.keys() == after.keys() and before["args"] == after["args"]


def test_boxes_between_key_frames_are_refused_without_the_query_cache(finished_chain: Stages) -> None:
    with pytest.raises(InputError, match="--between_key_frames: goes with the query cache"):
        train_qmm(finished_chain, "--between_key_frames", "--no_query_cache")


@pytest.mark.parametrize("more", [(), ("--no_query_cache",)])
def test_boxes_of_another_person_each_are_refused(
    finished_chain: Stages, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """As of a file that gives persons no ids: no two queries are a positive pair."""
    stages = finished_chain.copy(tmp_path)
    path = stages.data / "synthetic" / "annotations.json"
    annotations = json.loads(path.read_text())
    for video in annotations["videos"].values():
        boxes = [(t, *box) for t in video["tubes"] for box in zip(t["frames"], t["boxes"], strict=True)]
        video["tubes"] = [
            {"label": t["label"], "person_id": i, "frames": [frame], "boxes": [box]}
            for i, (t, frame, box) in enumerate(boxes)
        ]
    path.write_text(json.dumps(annotations))
    make_shards(load_project("synthetic", stages.data), "train", stages.data / "synthetic" / "shards" / "train")
    with pytest.raises(InputError, match=r"annotations\.json: nobody of 'train' is in two frames"):
        train_qmm(stages, "--epochs", 1, *more)


@pytest.mark.parametrize("more", [(), ("--no_query_cache",)])
def test_clips_of_one_frame_are_refused(finished_chain: Stages, more: tuple) -> None:
    with pytest.raises(InputError, match=r"nobody of 'train' is in two frames of a clip.*lower --sampling_rate"):
        train_qmm(finished_chain, "--epochs", 1, "--sampling_rate", 1000, *more)


@pytest.mark.slow
def test_a_list_that_shares_videos_with_the_training_list_is_told(
    finished_chain: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, run = finished_chain.copy(tmp_path), ("--qmm_name", "one", *LOOSE)
    stages.run("train_action_head", *run, "--epochs", 1, "--head_name", "same", "--val_subset", "train")
    assert "warning: --val_subset train: is what is trained on" in capsys.readouterr().err
    told = "warning: 1 video in train and in val; metrics are too good"
    stages.run("eval_qmm", *run)
    assert told not in capsys.readouterr().err
    root = stages.data / "synthetic"
    with (root / "val.txt").open("a") as file:
        file.write("train_0001\n")
    commands = {
        "train_detr": (*TINY_DETR, "--ex_name", "own", "--epochs", 1),
        "train_qmm": ("--qmm_name", "own", "--detr", stages.folder("one") / "detr" / "epoch_1.pth", "--iou_th", 0.05,
                      "--epochs", 1, "--val_subset", "val", *LOOSE),
        "eval_qmm": run,
        "train_action_head": (*run, "--epochs", 1, "--head_name", "own"),
        "eval_map": (*run, "--min_tube_length", 2),
    }  # fmt: skip
    make_shards(load_project("synthetic", stages.data), "val", root / "shards" / "val")
    for script, flags in commands.items():
        stages.run(script, *flags)
        assert told in capsys.readouterr().err, script
    (root / "train.txt").unlink()  # which evaluation does without
    stages.run("eval_map", *run, "--min_tube_length", 2)


def test_a_frozen_backbone_s_batchnorm_keeps_its_statistics(finished_chain: Stages, tmp_path: Path) -> None:
    stages = finished_chain.copy(tmp_path)
    start = stages.folder("one") / "detr" / "epoch_1.pth"
    moved = {}
    for rate in (0, 1e-6):
        stages.run("train_detr", "--detr", start, "--ex_name", f"own{rate}", "--lr_backbone", rate, "--epochs", 1)
        before, after = (
            torch.load(path, weights_only=True)["model"]
            for path in (start, stages.folder(f"own{rate}") / "detr" / "epoch_1.pth")
        )
        statistics = [name for name in before if name.startswith("backbone") and "running" in name]
        moved[rate] = [name for name in statistics if not torch.equal(before[name], after[name])]
        assert statistics
    assert not moved[0] and moved[1e-6]
