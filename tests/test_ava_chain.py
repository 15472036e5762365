"""The whole chain on data in AVA's layout: key frames, several actions at once, a rate of its own; it learns."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from datasets.config import load_project
from datasets.make_shards import make_shards
from datasets.synthetic.videos import make_synthetic
from predict import main as predict
from tests.stages import Stages

RATE, FPS = 5, 25
LEGS, ARMS = {"walk", "run", "jump", "kick", "squat"}, {"wave", "jumping_jack"}
LABELS = ("walk", "run", "jump", "jumping_jack", "wave", "squat", "kick", "bow", "legs", "arms")
MARGIN = 0.3  # of frame-mAP@0.5, that true labels give over shuffled ones


def write_ava(folder: Path) -> None:
    """Rewrite the synthetic data set as AVA has it: a row for each box and action of each key frame."""
    annotation = json.loads((folder / "annotations.json").read_text())
    for subset in ("train", "val"):
        rows = []
        for name in (folder / f"{subset}.txt").read_text().split():
            video = annotation["videos"][name]
            sides = [video["width"], video["height"]] * 2
            for tube in video["tubes"]:
                if tube["label"] is None:
                    continue
                action = annotation["labels"][tube["label"]]
                actions = [action] + ["legs"] * (action in LEGS) + ["arms"] * (action in ARMS)
                for frame, box in zip(tube["frames"], tube["boxes"], strict=True):
                    if frame % (FPS // RATE) == 0:
                        place = [name, f"{900 + frame / FPS:g}", *np.divide(box, sides).clip(0, 1).round(4)]
                        rows += [[*place, LABELS.index(a) + 1, tube["person_id"]] for a in actions]
        with (folder / f"{subset}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    labels = "".join(f'item {{\n  name: "{name}"\n  id: {i}\n}}\n' for i, name in enumerate(LABELS, 1))
    (folder / "labels.pbtxt").write_text(labels)
    (folder / "ava.yml").write_text(PROJECT)


PROJECT = f"""
name: ava-layout
format: ava
annotations: .
subsets: {{train: train.csv, val: val.csv}}
label_map: labels.pbtxt
start: 900
video_start: 900
rate: {RATE}
multi_label: true
frames: videos/{{name}}.avi
splits: {{train: train.txt, val: val.txt}}
defaults: {{qmm_psn_score_th: 0.5, qmm_iou_th: 0.3, psn_score_th: 0.8, iou_th: 0.3, sim_th: 0.3, filter_length: 2,
            end_consecutive_frames: 3, min_tube_length: 1}}
"""


def shuffle_labels(folder: Path) -> None:
    """Give the rows of the training csv each other's classes."""
    path = folder / "train.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    order = np.random.default_rng(0).permutation(len(rows))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*row[:6], rows[i][6], row[7]] for row, i in zip(rows, order, strict=True)])


@pytest.mark.slow
def test_a_chain_of_several_actions_on_key_frames_learns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "synthetic"
    make_synthetic(folder, 70, 20, workers=2)
    write_ava(folder)
    stages = Stages(tmp_path, tmp_path / "checkpoint")
    data = ("--dataset", folder / "ava.yml")

    def frame_map(name: str, *flags: object) -> float:
        head = ("--head_type", "time_ecd:cat", "--n_layers", 1, "--epochs", 16, "--lr", 2e-3, "--iter_update", 8)
        for subset in ("train", "val"):
            stages.run("eval_qmm", *data, "--qmm_name", name, "--subset", subset)
        stages.run("train_action_head", *data, "--qmm_name", name, *head, *flags)
        stages.run("eval_map", *data, "--qmm_name", name, "--head_type", "time_ecd:cat", "--metric", "frame-mAP")
        (result,) = (tmp_path / "checkpoint" / "ava-layout" / name / "results").glob("eval_map*.json")
        return json.loads(result.read_text())["metrics"]["frame-mAP@0.5"]

    make_shards(load_project(folder / "ava.yml"), "train", folder / "shards" / "train")
    shards = ("--shards_path", folder / "shards")
    stages.run("train_detr", *data, *shards, "--detr", "synthetic", "--epochs", 1, "--lr", 0, "--action_loss_coef", 1)
    encoder = ("--detr", "synthetic", "--epochs", 4, "--sampling_rate", 1, "--clips_per_video", 2, "--tau", 0.1)
    stages.run("train_qmm", *data, "--qmm_name", "true", *encoder, "--between_key_frames")
    learnt = frame_map("true", "--class_weights", "balanced")
    print(capsys.readouterr().out)
    shuffle_labels(folder)
    stages.run("train_qmm", *data, "--qmm_name", "shuffled", *encoder)
    shuffled = frame_map("shuffled")
    print(f"frame-mAP@0.5: {learnt:.3f}, with shuffled labels {shuffled:.3f}")
    assert learnt > shuffled + MARGIN

    root = tmp_path / "checkpoint" / "ava-layout" / "true"
    weights = ("--encoder", root / "encoder" / "epoch_4.pth", "--head", root / "head" / "time_ecd:cat" / "epoch_16.pth")
    video = folder / "videos" / "val_0003.avi"
    command = ["predict.py", video, *weights, "--out", tmp_path / "out", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    predict()
    result = json.loads((tmp_path / "out" / "val_0003.json").read_text())
    assert result["fps"] == RATE and result["settings"]["action_th"] == 0.5
    assert (tmp_path / "out" / "val_0003.mp4").is_file()
    acts = {(tube["person_id"], frame): set() for tube in result["tubes"] for frame in tube["frames"]}
    for tube in result["tubes"]:
        assert min(tube["scores"]) >= 0.5
        for frame in tube["frames"]:
            acts[tube["person_id"], frame].add(tube["label"])
    assert any(len(labels) > 1 for labels in acts.values())
