"""Tars of tracks that `eval_qmm.py` would make of something else now are not read by any later stage."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from datasets.config import load_project
from models.linkers import LINKERS
from tests.stages import LOOSE, Stages
from utils.misc import InputError
from utils.storage.files import save_torch

RUN = ("--qmm_name", "one", *LOOSE)
STAGES = {
    "eval_qmm": ("--from_tar", "--subset", "train"),
    "eval_map": ("--min_tube_length", 1, "--subset", "train"),
    "train_action_head": ("--epochs", 1, "--head_name", "again"),
}


def own_project(stages: Stages, **fields: object) -> tuple[str, Path]:
    """The data set's project file with other `fields`."""
    own = load_project("synthetic", stages.data)
    path = stages.data / "own.yml"
    given = {"name": "synthetic", "root": str(own.root), "format": own.format, "annotations": own.annotations.name}
    given |= {"frames": own.frames, "splits": own.splits, "labels": own.labels, "defaults": own.defaults}
    path.write_text(yaml.safe_dump({**given, **fields}))
    return "--dataset", path


def other_labels(stages: Stages) -> tuple:
    return own_project(stages, labels=load_project("synthetic", stages.data).labels[::-1])


def other_stride(stages: Stages) -> tuple:
    return own_project(stages, stride=2)


def several_actions(stages: Stages) -> tuple:
    return own_project(stages, multi_label=True)


def other_encoder(stages: Stages) -> tuple:
    path = stages.folder("one") / "encoder" / "epoch_2.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"] = {name: 1.01 * value for name, value in checkpoint["model"].items()}
    save_torch(path, checkpoint)
    return ()


def other_video(stages: Stages) -> tuple:
    videos = stages.data / "synthetic" / "videos"
    shutil.copy(videos / "train_0001.avi", videos / "train_0000.avi")
    return ()


def other_annotation(stages: Stages, video: str = "train_0000", action: bool = False) -> tuple:
    path = stages.data / "synthetic" / "annotations.json"
    annotations = json.loads(path.read_text())
    tube = annotations["videos"][video]["tubes"][0]
    if action:
        tube["label"] = 0 if tube["label"] else 1
    else:
        tube["boxes"][0][2] += 1
    path.write_text(json.dumps(annotations))
    return ()


def shorter_list(stages: Stages) -> tuple:
    path = stages.data / "synthetic" / "train.txt"
    path.write_text("\n".join(path.read_text().split()[1:]))
    return ()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_labels, r"was made with settings that have changed since \(labels\)"),
        (other_stride, r"was made with settings that have changed since \(sampling\)"),
        (several_actions, r"was made with settings that have changed since \(multi_label\)"),
        (other_encoder, r"was made with settings that have changed since \(encoder\)"),
        (other_video, "was made from other frames of 'train_0000' than today's"),
        (other_annotation, "its labels are of another annotation of 'train_0000' than today's"),
        (partial(other_annotation, action=True), "its labels are of another annotation of 'train_0000' than today's"),
        (shorter_list, "1 video in it alone or in the subset alone, the first 'train_0000'"),
    ],
)
def test_an_outdated_tar_is_refused(
    finished_chain: Stages, tmp_path: Path, change: Callable[[Stages], tuple], message: str, stage: str
) -> None:
    stages = finished_chain.copy(tmp_path)
    changed = change(stages)
    with pytest.raises(InputError, match=rf"epoch2-.*\.tar: {message}.*; run eval_qmm\.py --subset train again"):
        stages.run(stage, *RUN, *STAGES[stage], *changed)


def test_a_tar_by_former_options_of_its_linker_is_refused(
    finished_chain: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, robust = finished_chain.copy(tmp_path), ("--linker", "robust")
    monkeypatch.setitem(LINKERS, "robust", dataclasses.replace(LINKERS["robust"], memory=7))
    stages.run("eval_qmm", *RUN, *robust, "--subset", "train")
    stages.run("eval_qmm", *RUN, *robust, *STAGES["eval_qmm"])
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"was made with settings that have changed since \(linker_options\)"):
        stages.run("eval_qmm", *RUN, *robust, *STAGES["eval_qmm"])


def test_a_tar_is_read_again_once_it_is_made_again(finished_chain: Stages, tmp_path: Path) -> None:
    stages = finished_chain.copy(tmp_path)
    other_encoder(stages)
    stages.run("eval_qmm", *RUN, "--subset", "train")
    stages.run("eval_qmm", *RUN, *STAGES["eval_qmm"])
    stages.run("train_action_head", *RUN, *STAGES["train_action_head"])


def test_tracks_are_read_where_neither_videos_nor_encoder_are(finished_chain: Stages, tmp_path: Path) -> None:
    stages = finished_chain.copy(tmp_path)
    shutil.rmtree(stages.data / "synthetic" / "videos")
    stages.run("eval_map", *RUN, "--min_tube_length", 1)
    (stages.folder("one") / "encoder" / "epoch_2.pth").unlink()
    for stage, flag in (("eval_qmm", "--load_epoch"), ("eval_map", "--load_epoch_qmm")):
        stages.run(stage, *RUN, *STAGES[stage], flag, 2)


@pytest.mark.parametrize("change", ["annotation", "detector"])
def test_outdated_tracks_of_the_validation_subset_are_left_out_with_a_note(
    finished_chain: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    stages = finished_chain.copy(tmp_path)
    if change == "annotation":
        other_annotation(stages, "val_0000")
    else:  # the flags' tar is missing in both folders, so that each has another one in its place
        for subset in ("train", "val"):
            (tar,) = (stages.folder("one") / "qmm_tubes" / subset).glob("*.tar")
            stages.run("eval_qmm", *RUN, "--subset", subset, "--amp", "bf16" if subset == "val" else "off")
        tar.with_name(f"{tar.stem}-detector_bf16.tar").replace(tar)
    stages.run("train_action_head", *RUN, *STAGES["train_action_head"])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("note:"))
    assert "qmm_tubes/val/epoch2-" in line and "nothing is validated" in line
    (epoch,) = map(json.loads, (stages.folder("one") / "head/again/metrics.jsonl").read_text().splitlines())
    assert "accuracy" in epoch and "val_loss" not in epoch
