"""What the scripts say of a user's mistakes: one line each, exit status 2, nothing lost."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from scripts.flag_tables import parser_of
from tests.stages import LOOSE, Stages
from utils.cli import run, run_name
from utils.misc import InputError

SCRIPTS = ("train_detr", "train_qmm", "eval_qmm", "train_action_head", "eval_map", "predict")


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("train_detr", ["--dataset", "syntetic"], "did you mean synthetic?"),
        ("train_detr", ["--dataset", "ucf101-24", "--data_root", "{tmp}"], "no whole set of shards here; write them"),
        (
            "train_qmm",
            ["--dataset", "synthetic", "--data_root", "{tmp}"],
            "render the data set with python -m datasets",
        ),
        (
            "eval_qmm",
            ["--dataset", "synthetic", "-qmm_name", "none", "--data_root", "{data}"],
            "make one with train_qmm.py",
        ),
        (
            "eval_map",
            ["--dataset", "synthetic", "--tiou_th", "2", "--data_root", "{data}"],
            "--tiou_th 2: thresholds lie above 0",
        ),
        ("predict", ["{video}", "--encoder", "{tmp}/e.pth", "--head", "{tmp}/h.pth"], "h.pth: no such"),
        ("predict", ["{video}", "none.mp4", "--encoder", "e.pth", "--head", "h.pth"], "none.mp4: no such video file"),
        ("train_detr", ["--epochs", "many", "--dataset", "synthetic"], "many is not a whole number"),
    ],
)
def test_mistakes_are_told_in_one_line_with_status_2(
    script: str,
    flags: list[str],
    message: str,
    stages: Stages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = next((stages.data / "synthetic" / "videos").iterdir())
    flags = [flag.format(tmp=tmp_path, data=stages.data, video=video) for flag in flags]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags])
    with pytest.raises(SystemExit) as stop:
        run(importlib.import_module(script).main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("script", ["train_qmm", "eval_qmm"])
def test_boxes_outside_the_decoded_frames_are_refused_where_the_annotation_states_no_size(
    script: str, stages: Stages
) -> None:
    path = stages.data / "synthetic" / "annotations.json"
    whole = path.read_text()
    annotation = json.loads(whole)
    for video in annotation["videos"].values():
        del video["width"], video["height"]
        for tube in video["tubes"]:
            tube["boxes"] = [[3 * side for side in box] for box in tube["boxes"]]
    flags = ["--qmm_name", "one", "--sim_th", 0.77]
    if script == "train_qmm":
        flags = ["--qmm_name", "large", "--detr", stages.folder("one") / "detr/epoch_1.pth", "--epochs", 1]
    try:
        path.write_text(json.dumps(annotation))
        with pytest.raises(InputError, match=r"video '\w+', frame \d+: box is (mostly )?outside the frame"):
            stages.run(script, *flags, *LOOSE)
    finally:
        path.write_text(whole)


def test_annotations_of_frames_that_a_video_lacks_are_told(stages: Stages, tmp_path: Path) -> None:
    (name,) = stages_names = (stages.data / "synthetic" / "val.txt").read_text().split()[:1]
    assert stages_names
    text = json.loads((stages.data / "synthetic" / "annotations.json").read_text())
    text["videos"][name]["tubes"][0]["frames"][-1] += 1000
    (tmp_path / "annotations.json").write_text(json.dumps(text))
    (tmp_path / "own.yml").write_text(
        f"name: own\nroot: {stages.data / 'synthetic'}\nformat: json\nannotations: {tmp_path / 'annotations.json'}\n"
        "frames: videos/{name}.avi\nsplits: {train: train.txt, val: val.txt}\n"
    )
    with pytest.raises(InputError, match=rf"annotations.json: video '{name}', tube 0, frame 1\d\d\d: frame is beyond"):
        stages.run("eval_qmm", "--dataset", tmp_path / "own.yml", "--qmm_name", "one", *LOOSE)


def test_predict_never_writes_over_its_video(stages: Stages, tmp_path: Path) -> None:
    import predict

    video = tmp_path / "seen.mp4"
    video.write_bytes(next((stages.data / "synthetic" / "videos").iterdir()).read_bytes())
    before = video.read_bytes()
    (tmp_path / "up").mkdir()
    flags = [video, "--encoder", "e.pth", "--head", "h.pth", "--out", tmp_path / "up" / ".."]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["predict.py", *map(str, flags)])
        with pytest.raises(InputError, match=r"seen\.mp4: the annotated video would be written over it"):
            predict.main()
    assert video.read_bytes() == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_that_mean_nothing_are_refused(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser, tried = parser_of(script), 0
    for action in parser._actions:
        if action.option_strings and action.type not in (None, str, run_name) and not action.choices:
            for text in ("-1.5", "nan", "few"):
                with pytest.raises(SystemExit) as stop:
                    parser.parse_args([f"{action.option_strings[0]}={text}"])
                told = capsys.readouterr().err
                assert stop.value.code == 2 and f"{action.option_strings[0]}: {text} is not" in told, told
                tried += 1
    assert tried > 20


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a/../../b", ""])
def test_run_names_stay_in_their_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for script, flag in (("train_detr", "ex_name"), ("train_qmm", "qmm_name"), ("train_action_head", "head_name")):
        with pytest.raises(SystemExit):
            parser_of(script).parse_args(["--dataset", "synthetic", f"--{flag}", name])
        assert "is not a name for a folder" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_each_flag_does(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", "--help"])
        with pytest.raises(SystemExit) as stop:
            __import__(script).main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "machine:" in text and "(default:" in text
