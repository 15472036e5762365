"""Other heads, link cues, metrics and settings through the chain, and settings that travel with the files."""

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from datasets.annotations import read_annotations
from datasets.config import load_project
from models.head_types import HEAD_TYPES, HeadType
from models.person_encoder import load_encoder
from models.person_queries import detector_of
from models.x3d import x3d_xs
from tests.stages import LOOSE, QUIET, TINY_DETR, Stages
from utils.misc import InputError
from utils.storage.tars import TarStore
from utils.storage.tracks import TrackStore


@pytest.mark.parametrize("metric", ["motion-AP", "frame-mAP"])
def test_other_metrics_are_measured_too(stages: Stages, metric: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--qmm_name", "one", "--metric", metric, "--protocol", "act", "--topk", 2, "--min_tube_length", 1)
    stages.run("eval_map", *flags, *LOOSE)
    (result,) = (r for r in stages.results("one", "eval_map") if r["args"]["metric"] == metric)
    assert f"{metric}@0.5" in result["metrics"]
    assert metric in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--topk 200: there are 8 actions, and no action counts as one more"):
        stages.run("eval_map", *flags, *LOOSE, "--topk", 200)


def test_saved_predictions_give_the_same_figures_without_models(
    stages: Stages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--qmm_name", "one", "--topk", 2, "--min_tube_length", 1, *LOOSE, "--bootstrap", 20, "--errors")
    stages.run("eval_map", *flags, "--save_predictions")
    (result,) = (r for r in stages.results("one", "eval_map") if r["args"]["bootstrap"])
    (saved,) = stages.folder("one").glob("results/*/predictions.json")
    monkeypatch.setattr("models.action_head.load_head", lambda *_: pytest.fail("an action head was read"))
    stages.run("eval_map", "--predictions", saved, "--bootstrap", 20, "--errors")
    (again,) = stages.results("predictions", "eval_map")
    assert again["metrics"] == result["metrics"] and result["metrics"]["tubes"] > 0


@pytest.mark.parametrize("head_type", ["time_ecd:add", "time_ecd:cat", "res", "own"])
def test_other_heads_are_trained_and_measured(stages: Stages, head_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEAD_TYPES, "own", HeadType(time=None, frames="res"))  # one more entry of the table
    head = ("--qmm_name", "one", "--head_type", head_type, *LOOSE)
    stages.run("train_action_head", *head, "--epochs", 1)
    stages.run("eval_map", *head, "--min_tube_length", 1)
    (result,) = (r for r in stages.results("one", "eval_map") if r["args"]["head_type"] == head_type)
    assert result["metrics"]["v-mAP@0.5"] is not None
    if head_type == "res":
        with pytest.raises(InputError, match=r"with frame features res-.*, not res-.*-bfloat16; repeat its --amp"):
            stages.run("eval_map", *head, "--amp", "bf16")


@pytest.mark.slow
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


def test_a_video_is_left_out_as_long_as_its_annotation_is_wrong(stages: Stages, tmp_path: Path) -> None:
    """Whatever the tar of tracks has of it from before."""
    copy = stages.copy(tmp_path)
    path = copy.data / "synthetic" / "annotations.json"
    right, wrong = (json.loads(path.read_text()) for _ in range(2))
    wrong["videos"]["val_0000"]["width"] *= 2  # its boxes fit in
    for annotations, left_out in ((wrong, 1), (right, 0)):
        path.write_text(json.dumps(annotations))
        copy.run("eval_qmm", "--qmm_name", "one", "--skip_bad", *LOOSE)
        (path_of_all,) = (copy.folder("one") / "results").glob("eval_qmm-val-*-feature.json")
        of_all = json.loads(path_of_all.read_text())
        results = [r for r in copy.results("one", "eval_qmm") if r["args"]["skip_bad"]]
        (result,) = (r for r in results if r["metrics"]["videos_left_out"] == left_out)
        assert result["metrics"]["videos"] == 2 - left_out
        assert of_all["metrics"]["videos"] == 2, "metrics of fewer videos are in a file of their own"


def test_query_matching_without_the_cache_trains_on_augmented_clips(stages: Stages) -> None:
    detr = stages.folder("one") / "detr" / "epoch_1.pth"
    stages.run(
        "train_qmm", "--qmm_name", "live", "--detr", detr, "--no_query_cache", "--epochs", 1, "--iou_th", 0.05, *LOOSE
    )
    assert (stages.folder("live") / "encoder" / "epoch_1.pth").is_file()


def test_query_matching_sees_mirrored_frames_and_frames_without_somebody(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    detr = stages.folder("one") / "detr" / "epoch_1.pth"
    flags = ("--qmm_name", "views", "--detr", detr, "--epochs", 1, "--iou_th", 0.05, *LOOSE)
    with pytest.raises(InputError, match="go with --identity person"):
        stages.run("train_qmm", *flags, "--erase_people", "--identity", "slot")
    stages.run("train_qmm", *flags, "--mirror_frames", "--erase_people", "--no_flip", "--jitter", 0.5)
    assert "warning: --jitter, --no_flip: no effect without --no_query_cache" in capsys.readouterr().err
    stages.run("eval_qmm", "--qmm_name", "views", *LOOSE, "--filter_length", 500)
    assert (
        "warning: there is no track, so recall is 0; lower --psn_score_th or --filter_length" in capsys.readouterr().err
    )
    caches = {path.stem.rpartition("-")[2]: path for path in stages.checkpoint.glob("synthetic/queries/train-*.tar")}
    plain, erased = (TarStore(path, "query cache") for path in (caches.pop("64"), caches["erased"]))
    assert caches.keys() == {"mirrored", "erased"}
    videos = read_annotations(load_project("synthetic", stages.data), plain.names)
    crowded = {name for name, video in videos.items() if len({tube.person_id for tube in video.tubes}) > 1}
    changed = {
        name for name in plain.names if plain.read(name, "queries").tolist() != erased.read(name, "queries").tolist()
    }
    assert changed and changed <= crowded


@pytest.mark.slow
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
    counted, plain = stages.results("square", "eval_map")  # neither has overwritten the other
    assert counted["args"]["count_duplicates"] and not plain["args"]["count_duplicates"]
    assert counted["metrics"]["v-mAP@0.2"] >= plain["metrics"]["v-mAP@0.2"]
    with pytest.raises(InputError, match="--plot: a second detection"):
        stages.run("eval_map", *flags, "--plot", "--count_duplicates")
    with pytest.raises(InputError, match="only goes with --metric v-mAP"):
        stages.run("eval_map", *flags, "--metric", "frame-mAP", "--count_duplicates")


def test_the_published_time_encoding_and_frames_a_batch_go_through_the_chain(stages: Stages) -> None:
    head = ("--qmm_name", "one", "--head_type", "time_ecd:cat", "--head_name", "published", *LOOSE)
    stages.run("train_action_head", *head, "--epochs", 1, "--time_encoding", "published")
    config = torch.load(stages.folder("one") / "head" / "published" / "epoch_1.pth", weights_only=True)["config"]
    assert config["head"]["time_encoding"] == "published" and config["min_tube_length"] == 9
    stages.run("eval_map", *head, "-n_frames", 4)


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
    found = [r["args"] for r in stages.results("one", "eval_map") if r["args"][name] == given]
    assert any(args["head_settings"][name] == trained for args in found)


@pytest.mark.slow
def test_tracks_of_a_detector_that_runs_otherwise_stand_beside_the_others(
    finished_chain: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, name = finished_chain.copy(tmp_path), ("--qmm_name", "one", *LOOSE)
    (plain,) = (stages.folder("one") / "qmm_tubes" / "val").glob("*.tar")
    before, keys = (plain.read_bytes(), plain.stat().st_mtime_ns), {TrackStore(plain).settings["detector"]["key"]}
    changes = {"bf16": ("--amp", "bf16"), "size48": ("--image_size", 48), "square": ("--pad_square",)}
    changes |= {"person0": ("--person_label", 0), "size48_bf16": ("--image_size", 48, "--amp", "bf16")}
    for end, flags in changes.items():
        stages.run("eval_qmm", *name, *flags)
        tar = plain.with_name(f"{plain.stem}-detector_{end}.tar")
        keys.add(TrackStore(tar).settings["detector"]["key"])
        results = stages.folder("one") / "results" / f"eval_qmm-val-{tar.stem}.json"
        stages.run("eval_qmm", *name, *flags, "--from_tar")
        assert f"tracks: {tar}\nresults: {results}" in capsys.readouterr().out
    stages.run("eval_qmm", *name, "--image_size", 64)  # the size that the encoder was trained with
    assert len(keys) == 6 and before == (plain.read_bytes(), plain.stat().st_mtime_ns)

    stages.run("eval_map", *name, "--min_tube_length", 1)
    with pytest.raises(InputError, match=r"another detector, .*-bfloat16; .*eval_qmm\.py with the same flags"):
        stages.run("eval_map", *name, "--min_tube_length", 1, "--amp", "bf16")
    capsys.readouterr()
    half = ("train_action_head", *name, "--amp", "bf16", "--head_name", "half", "--epochs", 1)
    stages.run(*half)  # the head's precision, where there are only the tracks of the detector in float32
    assert f"note: {plain.parents[1] / 'train' / plain.name}: its detector ran with other" in capsys.readouterr().err
    stages.run("eval_map", *name, "--min_tube_length", 1, "--head_name", "half")
    plain.unlink()
    with pytest.raises(InputError, match=r"no tracks with these settings .there are: .*-detector_bf16, "):
        stages.run("eval_map", *name, "--min_tube_length", 1)


def test_predict_runs_the_detector_as_for_the_tracks_of_the_head(
    finished_chain: Stages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not as for the person encoder, if these differ."""
    import predict

    stages, run = finished_chain.copy(tmp_path), ("--qmm_name", "one", *LOOSE, "--image_size", 48)
    for subset in ("train", "val"):
        stages.run("eval_qmm", *run, "--subset", subset)
    stages.run("train_action_head", *run, "--epochs", 1)
    (tar,) = (stages.folder("one") / "qmm_tubes" / "val").glob("*-detector_size48.tar")
    wanted = sorted(track.boxes.sum().item() for track in TrackStore(tar).tracks("val_0000"))
    flags = [stages.data / "synthetic/videos/val_0000.avi", "--no_video", "--out", tmp_path, *QUIET]
    for name, checkpoint in (("encoder", "encoder/epoch_2"), ("head", "head/vanilla/epoch_1")):
        flags += [f"--{name}", stages.folder("one") / f"{checkpoint}.pth"]
    capsys.readouterr()
    for given in ((), ("--image_size", 64)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["predict.py", *map(str, [*flags, *given])])
            predict.main()
        people = json.loads((tmp_path / "val_0000.json").read_text())["people"]
        boxes = sorted(sum(map(sum, person["boxes"])) for person in people)
        assert (boxes == pytest.approx(wanted, abs=1)) == (not given)
        assert ("tracks of a detector with other settings: " in capsys.readouterr().err) == bool(given)


def test_a_detector_that_has_moved_is_asked_for(stages: Stages, tmp_path: Path) -> None:
    (path,) = (stages.folder("one") / "encoder").glob("epoch_1.pth")
    _, config, _ = load_encoder(path)
    known = {**config["detector"], "source": str(tmp_path / "gone.pth")}
    args = Namespace(detr=None, image_size=0, pad_square=False, amp="off", compile=False, detr_batch=8)
    args.checkpoint_root, args.query_layer, args.person_label = tmp_path, None, None
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
