"""Presets: what they set is what docs/protocol.md lists, the command line wins, and a whole chain runs by one."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datasets.config import BUILT_IN, known_projects
from datasets.presets import parse_with_preset
from predict import main as predict
from scripts.flag_tables import parser_of
from tests.stages import LOOSE, QUIET, Stages
from train_detr import refuse_flags
from utils.misc import InputError
from utils.storage.tracks import TrackStore

STAGES = ("train_detr", "train_qmm", "eval_qmm", "train_action_head", "eval_map")
LINKING = {"link_cues": "feature", "linker": "published", "end_consecutive_frames": 7, "iou_th": 0.2, "strict": True}
HEAD = {"time_encoding": "published", "x3d_clip": "repeat"}
TRAINING = {"clip_max_norm": 0, "weight_decay": 1e-4, "epochs": 20, "warmup_steps": 0, "amp": "off", "seed": 42}
FRAMES = {
    "pad_square": True,
    "image_size": 512,
    "whole_videos": True,
    "no_flip": True,
    "jitter": 0.2,
    "jitter_hue": 0.1,
}
TABLE = {
    "train_detr": TRAINING | FRAMES | {"detr": "coco-r101-dc5", "lr_backbone": 0, "no_aux_loss": True, "lr": 1e-4,
        "batch_size": 32, "lr_schedule": "constant", "box_overlap": "iou", "class_loss_coef": 2, "bbox_loss_coef": 5,
        "giou_loss_coef": 2, "set_cost_class": 2, "set_cost_bbox": 5, "set_cost_giou": 2, "eos_coef": 0.1,
        "n_frames": 1, "clips_per_video": 1},
    "train_qmm": TRAINING | FRAMES | {"query_layer": 1, "identity": "slot", "matching": "hungarian", "strict": True,
        "no_query_cache": True, "n_frames": 8, "sampling_rate": 4, "batch_size": 8, "lr": 1e-4, "lr_drop": 10,
        "lr_schedule": "step", "tau": 1, "is_skip": False, "dropout": 0.1},
    "eval_qmm": LINKING | {"protocol": "published", "label_centric": True, "frame_iou": None},
    "train_action_head": LINKING | TRAINING | HEAD | {"lr": 1e-3, "lr_drop": 15, "lr_schedule": "step",
        "iter_update": 64, "n_layers": 2, "nhead": 8, "dim_feedforward": 256, "time_d": 32, "dropout": 0.1},
    "eval_map": LINKING | HEAD | {"protocol": "published", "min_tube_length": 9, "topk": 1, "tiou_th": ["0.2", "0.5"]},
}  # fmt: skip
"""The table of docs/protocol.md, by the names of the flags' values."""
DATA = {
    "jhmdb21": {
        "train_qmm": {"psn_score_th": 0.95, "iou_th": 0.35, "detr": "coco-r101-dc5"},
        "eval_qmm": {"psn_score_th": 0.9, "sim_th": 0.5, "filter_length": 9},
        "train_action_head": {"time_cycle": 100, "no_action_weight": 1},
    },
    "ucf101-24": {
        "train_qmm": {"psn_score_th": 0.75, "iou_th": 0.2, "detr": "kept/ucf101-24/detr/detr/epoch_20.pth"},
        "eval_qmm": {"psn_score_th": 0.5, "sim_th": 0.25, "filter_length": 17},
        "train_action_head": {"time_cycle": 800, "no_action_weight": 0.1},
    },
}


def parsed(monkeypatch: pytest.MonkeyPatch, stage: str, dataset: str, *flags: object) -> Namespace:
    parser = parser_of(stage)
    words = ["--dataset", dataset, "--preset", "published", "--checkpoint_root", "kept", *map(str, flags)]
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", *words])
    return parse_with_preset(parser, stage.rpartition(".")[2])


@pytest.mark.parametrize("dataset", DATA)
@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_is_the_table_s(monkeypatch: pytest.MonkeyPatch, stage: str, dataset: str) -> None:
    if (stage, dataset) == ("train_detr", "jhmdb21"):
        with pytest.raises(InputError, match=r"has no train_detr\.py"):
            parsed(monkeypatch, stage, dataset)
        return
    wanted = TABLE[stage] | DATA[dataset].get(stage, {})
    if stage in ("train_action_head", "eval_map"):
        wanted |= DATA[dataset]["eval_qmm"]
    args = parsed(monkeypatch, stage, dataset)
    assert {name: getattr(args, name) for name in wanted} == wanted
    preset = yaml.safe_load((BUILT_IN / f"{dataset}.published.yml").read_text())
    assert preset[stage].keys() <= wanted.keys() | {
        "tiou_th",
        "amp",
        "seed",
        "person_label",
        "clips_per_video",
        "dropout",
    }
    if stage in ("eval_qmm", "train_action_head", "eval_map"):
        assert parsed(monkeypatch, stage, dataset, "--link_cues", "iou").sim_th == 0.5


def test_the_command_line_wins_and_is_told(monkeypatch, capsys) -> None:
    args = parsed(monkeypatch, "train_qmm", "jhmdb21", "--epochs", 3, "--preset_except", "no_query_cache", "identity")
    assert (args.epochs, args.no_query_cache, args.identity, args.query_layer) == (3, False, "person", 1)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "query_layer 1" in line and "the command line has epochs 3" in line
    assert known_projects() == ["jhmdb21", "synthetic", "ucf101-24"] or "jhmdb21.published" not in known_projects()


@pytest.mark.parametrize(
    ("dataset", "flags", "said"),
    [
        ("synthetic", (), "--preset published: synthetic has none"),
        ("jhmdb2", (), "--dataset jhmdb2: not one of"),
        ("jhmdb21", ("--preset", "improved"), "--preset improved: jhmdb21 has none"),
        ("jhmdb21", ("--preset_except", "colour"), "--preset_except colour: the preset does not set it"),
    ],
)
def test_a_preset_that_is_not_there_is_one_line(monkeypatch, dataset: str, flags: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said) as refusal:
        parsed(monkeypatch, "train_qmm", dataset, *flags)
    assert "\n" not in str(refusal.value)


def test_exceptions_without_a_preset_are_one_line(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_qmm", "--dataset", "jhmdb21", "--preset_except", "tau"])
    with pytest.raises(InputError, match="--preset_except tau: goes with --preset"):
        parse_with_preset(parser_of("train_qmm"), "train_qmm")


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"colour": 3}, {"pad_square": "yes"}, {"identity": "face"}, {"epochs": True}, 7]
)
def test_a_preset_with_a_mistake_is_one_line(monkeypatch, tmp_path: Path, values: object) -> None:
    (tmp_path / "own.published.yml").write_text(yaml.safe_dump({"train_qmm": values}))
    with pytest.raises(InputError, match=r"own\.published\.yml"):
        parsed(monkeypatch, "train_qmm", str(tmp_path / "own.yml"))


@pytest.mark.parametrize(
    ("link_cues", "flags", "wanted"),
    [
        ("iou", (), ("iou", 0.5)),
        ("iou", ("--link_cues", "feature"), ("feature", 0.25)),
        ("iou", ("--preset_except", "link_cues"), ("feature", 0.25)),
        ("iou", ("--preset_except", "sim_th"), ("iou", None)),
        ("feature", ("--link_cues", "iou"), ("iou", 0.5)),
        ("feature", (), ("feature", 0.25)),
    ],
)
def test_what_differs_with_iou_follows_the_link_cue_that_is_used(
    monkeypatch, tmp_path: Path, link_cues: str, flags: tuple, wanted: tuple
) -> None:
    values = {"eval_qmm": {"link_cues": link_cues, "sim_th": 0.25}, "iou": {"sim_th": 0.5}}
    (tmp_path / "own.published.yml").write_text(yaml.safe_dump(values))
    args = parsed(monkeypatch, "eval_qmm", str(tmp_path / "own.yml"), *flags)
    assert (args.link_cues, args.sim_th) == wanted


def test_a_text_may_hold_braces_of_other_things(monkeypatch, tmp_path: Path) -> None:
    values = {"shards_path": "{data_root}/shard-{000000..000063}.tar"}
    (tmp_path / "own.published.yml").write_text(yaml.safe_dump({"train_qmm": values}))
    args = parsed(monkeypatch, "train_qmm", str(tmp_path / "own.yml"), "--data_root", "kept")
    assert args.shards_path == "kept/shard-{000000..000063}.tar"


def test_a_flag_that_a_preset_sets_counts_as_given(monkeypatch) -> None:
    args = parsed(monkeypatch, "train_detr", "ucf101-24")
    assert args.pad_square
    with pytest.raises(InputError, match="--pad_square: not with hf:d-fine"):
        refuse_flags(Namespace(**vars(args) | {"detr": "hf:d-fine"}), ["pad_square"])


@pytest.mark.parametrize("dataset", DATA)
def test_the_detector_alone_fills_the_cache_that_the_chain_reads(monkeypatch, dataset: str) -> None:
    alone, stage = parsed(monkeypatch, "models.person_queries", dataset), parsed(monkeypatch, "train_qmm", dataset)
    names = ("detr", "image_size", "pad_square", "query_layer", "person_label", "amp")
    assert all(getattr(alone, name) == getattr(stage, name) for name in names)


@pytest.fixture(scope="module")
def published(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """The tiny data set under the preset of UCF101-24, with a tiny detector; the chain of `detr`'s epoch 2."""
    root = tmp_path_factory.mktemp("project")
    project = yaml.safe_load((BUILT_IN / "synthetic.yml").read_text())
    project["root"] = str(stages.data / "synthetic")
    (root / "own.yml").write_text(yaml.safe_dump(project))
    (root / "own.published.yml").write_text((BUILT_IN / "ucf101-24.published.yml").read_text())
    preset = ("--dataset", root / "own.yml", "--preset", "published")
    small = ("--shards_path", stages.data / "synthetic" / "shards", "--image_size", 64, "--detr")
    head = ("--qmm_name", "published", *LOOSE, "--filter_length", 2)
    tiny, tuned = (stages.folder(name) / "detr" / "epoch_1.pth" for name in ("one", "tuned"))
    stages.run("train_detr", *preset, *small, tiny, "--ex_name", "tuned", "--epochs", 1, "--batch_size", 2)
    stages.run("train_qmm", *preset, *small, tuned, *head[:4], "--iou_th", 0.05, "--epochs", 1, "--val_subset", "val")
    for subset in ("train", "val"):
        stages.run("eval_qmm", *preset, *head, "--subset", subset)
    stages.run("train_action_head", *preset, *head, "--head_type", "time_ecd:cat", "--epochs", 1)
    for metric in ("v-mAP", "motion-AP"):
        stages.run(
            "eval_map", *preset, *head, "--head_type", "time_ecd:cat", "--metric", metric, "--min_tube_length", 2
        )
    return stages


@pytest.mark.slow
def test_a_chain_runs_by_the_preset_and_its_results_keep_it(published: Stages) -> None:
    changed = {"psn_score_th": 0.3, "filter_length": 2, "min_tube_length": 2, "tiou_th": [0.2, 0.5]}
    for stage in ("eval_qmm", "eval_map"):
        wanted = TABLE[stage] | DATA["ucf101-24"]["eval_qmm"]
        wanted |= {"preset": "published"} | {name: changed[name] for name in changed if name in (*wanted, "tiou_th")}
        found = published.results("published", stage)
        assert len(found) == 2
        for result in found:
            assert {name: result["args"][name] for name in wanted} == wanted
    names = set().union(*(r["metrics"] for r in published.results("published", "eval_map")))
    assert {"v-mAP@0.2", "motion-AP@0.5"} <= names
    recall = published.results("published", "eval_qmm")[0]["metrics"]
    assert {"recall@0.2", "precision_filter@0.2", "motion_recall@0.2"} <= recall.keys()


@pytest.mark.slow
def test_checkpoints_of_the_chain_hold_the_preset_s_settings(published: Stages) -> None:
    def config(part: str) -> dict:
        return torch.load(published.folder(part) / "epoch_1.pth", weights_only=True)["config"]

    detr, encoder, head = config("tuned/detr"), config("published/encoder"), config("published/head/time_ecd:cat")
    assert detr["pad_square"] and detr["box_overlap"] == "iou" and not detr["aux_loss"]
    frozen = [
        torch.load(published.folder(n) / "detr" / "epoch_1.pth", weights_only=True)["model"] for n in ("one", "tuned")
    ]
    kernel = "backbone.0.body.layer1.0.conv1.weight"
    assert torch.equal(frozen[0][kernel], frozen[1][kernel])
    assert encoder["detector"]["square"] and encoder["detector"]["query_layer"] == 1
    assert "-layer1" in encoder["detector"]["key"]
    assert head["head"]["time_encoding"] == "published" and head["head"]["time_cycle"] == 800
    assert head["settings"]["strict"] and head["settings"]["end_consecutive_frames"] == 7
    lines = (published.folder("published") / "encoder" / "metrics.jsonl").read_text().splitlines()
    assert [line.count("val_loss") for line in lines] == [1, 1]  # before training, and after its only epoch


@pytest.mark.slow
def test_a_head_of_another_time_encoding_is_one_line(published: Stages) -> None:
    head = ("--qmm_name", "published", *LOOSE, "--filter_length", 2, "--end_consecutive_frames", 7, "--strict")
    head += ("--sim_th", 0.25, "--iou_th", 0.2, "--head_type", "time_ecd:cat")
    with pytest.raises(InputError, match="its time encoding is published, not periodic; train another head"):
        published.run("eval_map", *head, "--time_encoding", "periodic")
    with pytest.raises(InputError, match="--protocol published: has no frame-mAP"):
        published.run("eval_map", *head, "--metric", "frame-mAP", "--protocol", "published")


def test_predict_follows_the_layer_and_the_thresholds_of_the_chain(
    published: Stages, tmp_path: Path, monkeypatch
) -> None:
    run, video = published.folder("published"), published.data / "synthetic" / "videos" / "val_0000.avi"
    words = [
        video,
        "--encoder",
        run / "encoder" / "epoch_1.pth",
        "--head",
        run / "head" / "time_ecd:cat" / "epoch_1.pth",
    ]
    words += ["--out", tmp_path, "--no_video", *QUIET]
    monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
    predict()
    people = json.loads((tmp_path / "val_0000.json").read_text())["people"]
    (tar,) = (run / "qmm_tubes" / "val").glob("*.tar")
    tracks = TrackStore(tar).tracks("val_0000")
    assert len(people) == len(tracks) > 0
    found = {(tuple(p["frames"]), np.float32(p["boxes"]).tobytes()) for p in people}
    assert found == {(tuple(t.frames.tolist()), t.boxes.tobytes()) for t in tracks}  # to the last digit
