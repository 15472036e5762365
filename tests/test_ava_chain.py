"""The whole chain on AVA's layout: one key frame a second, several actions at once, five frames a second; it learns."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from datasets.config import load_project
from datasets.make_shards import make_shards
from datasets.synthetic.videos import make_synthetic
from predict import main as predict
from tests.processes import start_server
from tests.stages import Stages

RATE = 5  # used frames from one key frame to the next
MARGIN = 0.3  # of AVA's frame-mAP, that true labels give over shuffled ones


def shuffle_labels(path: Path) -> None:
    """Give the rows of a csv each other's classes."""
    rows = list(csv.reader(path.read_text().splitlines()))
    classes = np.random.default_rng(0).permutation([row[6] for row in rows if len(row) > 2]).tolist()
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*row[:6], classes.pop(), row[7]] if len(row) > 2 else row for row in rows)


@pytest.mark.slow
def test_a_chain_of_several_actions_on_key_frames_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "synthetic"
    start_server()
    make_synthetic(folder, 40, 10, length=(77, 102), two_at_once=0.6, workers=2, layout="ava")
    file = folder / "project.yml"
    file.write_text(file.read_text().replace("rate: 1\n", f"rate: {RATE}\n"))
    stages = Stages(tmp_path, tmp_path / "checkpoint")
    data, root = ("--dataset", file), tmp_path / "checkpoint" / "synthetic-ava"

    def frame_map(name: str, *flags: object) -> float:
        kind = ("--head_type", "time_ecd:cat")
        head = (*kind, "--n_layers", 1, "--epochs", 16, "--lr", 2e-3, "--iter_update", 8, "--max_frames_in_batch", 60)
        for subset in ("train", "val"):
            stages.run("eval_qmm", *data, "--qmm_name", name, "--subset", subset)
        stages.run("train_action_head", *data, "--qmm_name", name, *head, *flags)
        ava = ("--metric", "frame-mAP", "--protocol", "ava", "--tiou_th", 0.5)
        stages.run("eval_map", *data, "--qmm_name", name, *kind, *ava)
        (result,) = (root / name / "results").glob("eval_map*.json")
        return json.loads(result.read_text())["metrics"]["frame-mAP@0.5"]

    make_shards(load_project(file), "train", folder / "shards" / "train")
    shards = ("--shards_path", folder / "shards")
    stages.run("train_detr", *data, *shards, "--detr", "synthetic", "--epochs", 1, "--lr", 0, "--action_loss_coef", 1)
    encoder = ("--detr", "synthetic", "--epochs", 4, "--sampling_rate", 1, "--clips_per_video", 2, "--tau", 0.1)
    stages.run("train_qmm", *data, "--qmm_name", "true", *encoder, "--between_key_frames")
    learnt = frame_map("true", "--class_weights", "balanced")
    shuffle_labels(folder / "annotations" / "ava_train.csv")
    stages.run("train_qmm", *data, "--qmm_name", "shuffled", *encoder)
    shuffled = frame_map("shuffled")
    print(f"frame-mAP@0.5: {learnt:.3f}, with shuffled labels {shuffled:.3f}")
    assert learnt > shuffled + MARGIN

    weights = ("--encoder", root / "true/encoder/epoch_4.pth", "--head", root / "true/head/time_ecd:cat/epoch_16.pth")
    command = ["predict.py", *(folder / "videos").glob("val_*.avi"), *weights, "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", list(map(str, [*command, "--device", "cpu", "--no_video"])))
    predict()
    several = 0
    for path in (tmp_path / "out").glob("*.json"):
        result = json.loads(path.read_text())
        assert result["fps"] == RATE and result["settings"]["action_th"] == 0.5 and 16 <= result["n_frames"] <= 21
        assert all(min(tube["scores"]) >= 0.5 for tube in result["tubes"])
        acting = [(tube["person_id"], frame) for tube in result["tubes"] for frame in tube["frames"]]
        several += len(acting) - len(set(acting))
    assert several
