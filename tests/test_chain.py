"""The whole chain on a tiny embedded data set: every script, the files between them, and what they say of mistakes."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.make_shards import main as make_shards
from datasets.synthetic.videos import make_synthetic
from models import person_queries
from models.person_encoder import load_encoder
from models.person_queries import detector_of
from models.x3d import x3d_xs
from predict import main as predict
from scripts import export_weights
from scripts.flag_tables import parser_of
from tests.stages import LOOSE, QUIET, TINY_DETR, Stages
from utils.cli import run_name
from utils.misc import InputError
from utils.storage.tracks import TrackStore

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train_detr", "train_qmm", "eval_qmm", "train_action_head", "eval_map", "predict")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """The chain, run once as `one`."""
    root = tmp_path_factory.mktemp("chain")
    make_synthetic(root / "data" / "synthetic", n_train=4, n_val=2, width=64, height=48, length=(12, 16))
    for subset in ("train", "val"):
        with pytest.MonkeyPatch.context() as patch:
            flags = ["--dataset", "synthetic", "--data_root", root / "data", "--subset", subset]
            patch.setattr(sys, "argv", ["make_shards.py", *map(str, flags)])
            make_shards()
    stages = Stages(root / "data", root / "checkpoint")
    stages.chain("one")
    return stages


def results(stages: Stages, name: str, stage: str) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted((stages.folder(name) / "results").glob(f"{stage}-*.json"))]


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
    measured = {r["args"]["subset"]: r["metrics"] for r in results(stages, "one", "eval_qmm")}
    assert measured.keys() == {"train", "val"}
    assert {"recall@0.2", "precision@0.2", "recall@0.5", "IDF1", "IDSW", "HOTA", "AssA"} <= measured["val"].keys()
    assert measured["val"]["motion_recall@0.2"].keys() == {"small", "medium", "large"}
    (result,) = results(stages, "one", "eval_map")
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
        one, two = ([r["metrics"] for r in results(stages, name, stage)] for name in ("one", "two"))
        assert one == two


def test_measuring_from_the_tar_gives_the_same_without_models(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {r["args"]["subset"]: r["metrics"] for r in results(stages, "one", "eval_qmm")}["val"]
    with monkeypatch.context() as patch:
        patch.setattr("models.person_queries.load_detr", lambda *_: pytest.fail("DETR was built"))
        patch.setattr("models.person_encoder.load_encoder", lambda *_: pytest.fail("the encoder was built"))
        stages.run("eval_qmm", "--qmm_name", "one", "--from_tar", "-tiou_th", "0.2", "0.3:0.5:0.1", *LOOSE)
    measured = {r["args"]["subset"]: r["metrics"] for r in results(stages, "one", "eval_qmm")}["val"]
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


@pytest.mark.parametrize("metric", ["motion-AP", "frame-mAP"])
def test_other_metrics_are_measured_too(stages: Stages, metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--qmm_name", "one", "--metric", metric, "--protocol", "act", "--topk", 2, "--min_tube_length", 1)
    stages.run("eval_map", *flags, *LOOSE)
    (result,) = (r for r in results(stages, "one", "eval_map") if r["args"]["metric"] == metric)
    assert f"{metric}@0.5" in result["metrics"]
    assert metric in capsys.readouterr().out


@pytest.mark.parametrize("head_type", ["time_ecd:add", "time_ecd:cat", "res"])
def test_other_heads_are_trained_and_measured(stages: Stages, head_type: str) -> None:
    head = ("--qmm_name", "one", "--head_type", head_type, *LOOSE)
    stages.run("train_action_head", *head, "--epochs", 1)
    stages.run("eval_map", *head, "--min_tube_length", 1)
    (result,) = (r for r in results(stages, "one", "eval_map") if r["args"]["head_type"] == head_type)
    assert result["metrics"]["v-mAP@0.5"] is not None


@pytest.mark.parametrize("clip", ["centre", "repeat"])
def test_the_x3d_head_asks_with_its_frames(stages: Stages, clip: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model_state": x3d_xs().state_dict()}, tmp_path / "x3d.pth")
    frames = ("--x3d_weights", tmp_path / "x3d.pth", "--x3d_clip", clip)
    head = ("--qmm_name", "one", "--head_type", "x3d", "--head_name", f"x3d-{clip}", *LOOSE)
    stages.run("train_action_head", *head, *frames, "--epochs", 1)
    stages.run("eval_map", *head, *frames, "--min_tube_length", 1)
    other = {"centre": "repeat", "repeat": "centre"}[clip]
    with pytest.raises(InputError, match=f"was trained with frame features x3d-{clip}"):
        stages.run("eval_map", *head, "--x3d_weights", tmp_path / "x3d.pth", "--x3d_clip", other)


def test_linking_by_iou_has_a_tar_and_a_head_of_its_own(stages: Stages) -> None:
    for subset in ("train", "val"):
        stages.run("eval_qmm", "--qmm_name", "one", "--subset", subset, "--link_cues", "iou", *LOOSE)
    flags = ("--qmm_name", "one", "--link_cues", "iou", *LOOSE)
    with pytest.raises(InputError, match=r"make one with train_action_head\.py"):
        stages.run("eval_map", *flags)
    stages.run("train_action_head", *flags, "--epochs", 1)
    stages.run("eval_map", *flags)
    with pytest.raises(InputError, match="linked by another link_cues"):
        stages.run("eval_map", *flags, "--head_name", "vanilla")


def test_query_matching_without_the_cache_trains_on_augmented_clips(stages: Stages) -> None:
    detr = stages.folder("one") / "detr" / "epoch_1.pth"
    stages.run(
        "train_qmm", "--qmm_name", "live", "--detr", detr, "--no_query_cache", "--epochs", 1, "--iou_th", 0.05, *LOOSE
    )
    assert (stages.folder("live") / "encoder" / "epoch_1.pth").is_file()


def test_the_published_deviations_go_through_the_chain(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    stages.run("train_detr", "--ex_name", "square", *TINY_DETR, "--epochs", 1, "--pad_square", "--box_overlap", "iou")
    detr = stages.folder("square") / "detr" / "epoch_1.pth"
    held = torch.load(detr, weights_only=True)["config"]
    assert held["pad_square"] and held["box_overlap"] == "iou"
    flags = ("--qmm_name", "square", *LOOSE)
    stages.run("train_qmm", *flags, "--detr", detr, "--no_query_cache", "--epochs", 1, "--iou_th", 0.05)
    for subset in ("train", "val"):
        stages.run("eval_qmm", *flags, "--subset", subset)
    assert len(list((stages.checkpoint / "synthetic" / "queries").glob("*-64-square.tar"))) == 2
    stages.run("train_action_head", *flags, "--epochs", 1)
    stages.run("eval_map", *flags, "--min_tube_length", 1)
    stages.run("eval_map", *flags, "--min_tube_length", 1, "--count_duplicates")
    counted, plain = results(stages, "square", "eval_map")  # neither has overwritten the other
    assert counted["args"]["count_duplicates"] and not plain["args"]["count_duplicates"]
    assert counted["metrics"]["v-mAP@0.2"] >= plain["metrics"]["v-mAP@0.2"]
    with pytest.raises(InputError, match="--plot: a second detection"):
        stages.run("eval_map", *flags, "--plot", "--count_duplicates")
    with pytest.raises(InputError, match="only goes with --metric v-mAP"):
        stages.run("eval_map", *flags, "--metric", "frame-mAP", "--count_duplicates")


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
    (linked,) = (p for p in TrackStore(next((folder / "qmm_tubes/val").glob("*feature.tar"))).store.names if p == name)
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
    found = [r["metrics"] for r in results(stages, "one", "eval_qmm") if r["args"]["psn_score_th"] == 1.0]
    assert all(m["recall@0.5"] == 0 and m["precision@0.5"] is None for m in found)
    (none,) = (r["metrics"] for r in results(stages, "one", "eval_map") if r["args"]["psn_score_th"] == 1.0)
    assert none["v-mAP@0.5"] == 0 and none["tubes"] == 0


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


@pytest.mark.parametrize(
    ("script", "flags", "told"),
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
    script: str, flags: list[str], told: str, stages: Stages, tmp_path: Path
) -> None:
    video = next((stages.data / "synthetic" / "videos").iterdir())
    flags = [flag.format(tmp=tmp_path, data=stages.data, video=video) for flag in flags]
    run = subprocess.run([sys.executable, ROOT / f"{script}.py", *flags], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2
    assert told in run.stderr
    assert run.stderr.count("\n") == 1


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


LINK_CHANGES = {
    "sim_th": (0.4, 0.9),
    "psn_score_th": (0.3, 0.35),
    "filter_length": (4, 2),
    "end_consecutive_frames": (8, 3),
    "load_epoch": (2, 1),
}
"""Setting -> its value in the chain, which the head was trained with, and another."""


@pytest.mark.parametrize("name", LINK_CHANGES)
def test_a_head_evaluated_on_tracks_of_other_settings_says_so(
    stages: Stages, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, given = LINK_CHANGES[name]
    run = ("--qmm_name", "one", *LOOSE)
    flag = "--load_epoch_qmm" if name == "load_epoch" else f"--{name}"
    stages.run("eval_qmm", *run, f"--{name}", given)
    stages.run("eval_map", *run, "--min_tube_length", 1)
    assert "note:" not in capsys.readouterr().err
    stages.run("eval_map", *run, "--min_tube_length", 1, flag, given)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("note:"))
    assert "head/vanilla/epoch_2.pth" in line and line.endswith(f": {name} {trained}, here {given}")
    found = [r["args"] for r in results(stages, "one", "eval_map") if r["args"][name] == given]
    assert any(args["head_settings"][name] == trained for args in found)


def test_the_published_time_encoding_and_frames_a_batch_go_through_the_chain(stages: Stages) -> None:
    head = ("--qmm_name", "one", "--head_type", "time_ecd:cat", "--head_name", "published", *LOOSE)
    stages.run("train_action_head", *head, "--epochs", 1, "--time_encoding", "published")
    config = torch.load(stages.folder("one") / "head" / "published" / "epoch_1.pth", weights_only=True)["config"]
    assert config["head"]["time_encoding"] == "published" and config["min_tube_length"] == 9
    stages.run("eval_map", *head, "-n_frames", 4)


def test_people_followed_otherwise_are_told_apart(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    name = ("--qmm_name", "one", *LOOSE)
    try:
        stages.run("eval_qmm", *name, "--amp", "bf16")
        with pytest.raises(InputError, match=r"-bfloat16 as .*run eval_qmm\.py with the same --amp"):
            stages.run("eval_map", *name, "--min_tube_length", 1)
    finally:
        stages.run("eval_qmm", *name)


def test_a_detector_that_has_moved_is_asked_for(stages: Stages, tmp_path: Path) -> None:
    (path,) = (stages.folder("one") / "encoder").glob("epoch_1.pth")
    _, config, _ = load_encoder(path)
    known = {**config["detector"], "source": str(tmp_path / "gone.pth")}
    args = Namespace(detr=None, image_size=0, pad_square=False, amp="off", compile=False, detr_batch=8)
    args.checkpoint_root = tmp_path
    with pytest.raises(InputError, match=r"gone.pth: the detector .* is not there; name it with --detr"):
        detector_of(args, torch.device("cpu"), known)
    args.detr = config["detector"]["source"]
    assert detector_of(args, torch.device("cpu"), known).weights == known["weights"]


def test_a_detector_that_has_moved_is_the_same(
    stages: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = next((stages.folder("one") / "qmm_tubes" / "val").glob("*.tar"))
    before, moved = tar.stat().st_mtime_ns, shutil.copy(stages.folder("one") / "detr" / "epoch_1.pth", tmp_path)
    stages.run("eval_qmm", "--qmm_name", "one", *LOOSE, "--detr", moved)
    assert tar.stat().st_mtime_ns == before and "made again" not in capsys.readouterr().err
    tar.unlink()  # made anew, it names the other file
    stages.run("eval_qmm", "--qmm_name", "one", *LOOSE, "--detr", moved)
    stages.run("eval_map", "--qmm_name", "one", *LOOSE, "--min_tube_length", 1)


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_each_flag_does(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", "--help"])
        with pytest.raises(SystemExit) as stop:
            __import__(script).main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "machine:" in text and "(default:" in text
