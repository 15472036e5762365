"""`--plot` and the log of the stages: what they draw and report, over a real tar of linked people and a real run."""

import importlib
import io
import json
import re
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.frame_batches import SubsetVideos
from datasets.synthetic.videos import make_synthetic
from models.action_head import build_action_head
from models.link_settings import tracks_sources
from models.person_queries import match_people
from tests.processes import import_stages, launch
from tests.toy_training import arguments, train
from utils.box_ops import Track, Tube
from utils.drawing.evaluation_plots import (
    detailed_video,
    feature_plots,
    features_by_person,
    precision_recall_plots,
    recall_plots,
    tube_plots,
)
from utils.gt_tubes import make_gt_tubes
from utils.misc import InputError
from utils.results import _MADE_OF_TUBES, motion_recall_by_cue
from utils.storage.files import load_checkpoint, save_torch
from utils.storage.video_cache import VideoSample, fill_cache

D, N = 8, 8  # width of a query, classes of the embedded data set
LINKED = ("epoch1-psn0.8-sim0.4-len4-end8-iou0.3-feature", "epoch1-psn0.8-sim0.3-len4-end8-iou0.3-iou")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and a run `one` whose people were followed without fault, by both cues, with a head that guesses."""
    root = tmp_path_factory.mktemp("plots")
    make_synthetic(root / "data" / "synthetic", n_train=1, n_val=3, width=64, height=48, length=(12, 16))
    run = root / "checkpoint" / "synthetic" / "one"
    gt = make_gt_tubes("synthetic", "val", {"data_root": root / "data"})
    project = load_project("synthetic", root / "data")
    annotations = read_annotations(project, project.split("val"))
    sources = tracks_sources(project, SubsetVideos(project, "val"), annotations)
    made_by = {"encoder": "e", "detector": {"key": "k"}, "labels": project.labels}
    for stem in LINKED:
        sim, cue = (0.4, "feature") if stem.endswith("feature") else (0.3, "iou")
        settings = {"load_epoch": 1, "psn_score_th": 0.8, "sim_th": sim, "filter_length": 4, "link_cues": cue}
        settings |= {"iou_th": 0.3, "end_consecutive_frames": 8, "linker": "published", "strict": False, **made_by}

        draw = np.random.default_rng(0)
        with fill_cache(run / "qmm_tubes" / "val" / f"{stem}.tar", sources, settings) as cache:
            for name in cache.missing:
                with cache.sample(name) as sample:
                    for tube in gt[name]:
                        _append(sample, tube, draw)
                    size = {"n_frames": 16, "width": 64, "height": 48, "fps": 25.0}
                    sample.json |= {**size, "lengths": list(map(len, gt[name])), "settings": settings}
        head = build_action_head("vanilla", n_classes=N, in_d=D, nhead=2, dim_feedforward=8)
        config = {"head": head.config, "labels": project.labels, "settings": settings, "frames": None}
        config["min_tube_length"] = 9
        name = "vanilla" if cue == "feature" else "vanilla-iou"
        save_torch(run / "head" / name / "epoch_3.pth", {"model": head.state_dict(), "config": config, "epoch": 3})
    return root


def _append(sample: VideoSample, tube, draw: np.random.Generator) -> None:
    queries = draw.normal(size=(len(tube), D)).astype(np.float32)
    columns = {"frames": tube.frames, "boxes": tube.boxes, "scores": np.ones(len(tube), np.float32), "queries": queries}
    features = np.full((len(tube), D), tube.person_id + 1, np.float32) * (-1) ** np.arange(D)
    sample.append({**columns, "features": features, "labels": np.full(len(tube), tube.label)})


def run(root: Path, script: str, *flags: object) -> list[Path]:
    """Run a script on the subset val; the folders of logs and plots."""
    common = ["--dataset", "synthetic", "--data_root", root / "data", "--checkpoint_root", root / "checkpoint"]
    common += ["--qmm_name", "one", "--device", "cpu", "--threads", "1", "--comet", "disabled", "--load_epoch"]
    common[-1] += "_qmm" if script == "eval_map" else ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, [*common, 1, *flags])])
        importlib.import_module(script).main()
    return sorted(p for p in (root / "checkpoint/synthetic/one/results").glob(f"{script}-*") if p.is_dir())


def plots(folder: Path) -> set[str]:
    """The plots of a folder, each read, and of a name that goes with results that are replaced."""
    for path in folder.glob("*.png"):
        assert any(path.match(pattern) for pattern in _MADE_OF_TUBES)
        assert cv2.imread(str(path)).std() > 1
    return {path.name for path in folder.glob("*.png")}


def test_linked_people_are_drawn_and_logged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = run(root, "eval_qmm", "--from_tar", "--link_cues", "iou")
    assert folder.name == f"eval_qmm-val-{LINKED[1]}" and not plots(folder)
    _, folder = run(root, "eval_qmm", "--from_tar", "--plot")
    names = {"motion_recall@0.2.png", "motion_recall@0.5.png", "similarity.png", "features.png"}
    assert plots(folder) == {*names, "tubes.png", "frames.png"}
    (line,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    held = json.loads(folder.with_name(f"{folder.name}.json").read_text())["metrics"]
    assert (line["stage"], line["epoch"], line["recall@0.5"]) == ("eval_qmm", 1, 1.0)
    assert line["motion_recall@0.5/small"] == held["motion_recall@0.5"]["small"]
    assert held["tracks"] == held["gt_tubes"] > 0, "everybody was followed"


def test_both_cues_meet_in_one_plot_when_all_else_is_equal(root: Path) -> None:
    for cue in ("feature", "iou"):
        run(root, "eval_qmm", "--from_tar", "--link_cues", cue)
    path = root / "checkpoint/synthetic/one/results" / f"eval_qmm-val-{LINKED[0]}.json"
    assert list(motion_recall_by_cue(path, 0.5)) == ["feature", "iou"]
    before = path.read_bytes()
    for flags in (["--frame_iou", 0.3], ["--no-label_centric"]):  # each a results file of its own
        run(root, "eval_qmm", "--from_tar", *flags)
    assert path.read_bytes() == before and len(list(path.parent.glob("eval_qmm-val-*-feature*.json"))) == 3
    other = path.with_name(f"eval_qmm-val-{LINKED[1]}.json")
    results = json.loads(other.read_text())
    for name in ("ground_truth", "detector_key", "encoder_hash"):
        assert results["args"][name]
        without = {key: value for key, value in results["args"].items() if key != name}
        for args in (without | {name: "another"}, without):  # of other tracks or people; of unknown ones
            other.write_text(json.dumps({**results, "args": args}))
            assert list(motion_recall_by_cue(path, 0.5)) == ["feature"]
    other.unlink()
    run(root, "eval_qmm", "--from_tar", "--link_cues", "iou", "--frame_iou", 0.3)
    assert list(motion_recall_by_cue(path, 0.5)) == ["feature"]
    assert motion_recall_by_cue(path, 0.9) == {}


def test_results_say_which_head_was_evaluated_and_stand_apart(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(root, tmp_path / "copy")
    folder = root / "checkpoint/synthetic/one"
    kind = {"head_type": "time_ecd:add", "time_encoding": "periodic"}
    head = build_action_head(n_classes=N, in_d=D, nhead=2, dim_feedforward=8, **kind)
    config = load_checkpoint(folder / "head/vanilla/epoch_3.pth", "head")["config"] | {"head": head.config}
    for name, epoch in (("h1", 11), ("h11", 1)):
        content = {"model": head.state_dict(), "config": config, "epoch": epoch}
        save_torch(folder / "head" / name / f"epoch_{epoch}.pth", content)
        run(root, "eval_map", "--head_name", name, "--min_tube_length", 1)
        assert "a head of type time_ecd:add, whatever --head_type vanilla says" in capsys.readouterr().err
        (path,) = (folder / "results").glob(f"eval_map-*-{name}-epoch{epoch}-top1-min1-v-mAP.json")
        args = json.loads(path.read_text())["args"]
        assert (args["head_name"], args["load_epoch_head"]) == (name, epoch) and kind.items() <= args.items()
        assert (args["detector_key"], args["encoder_hash"]) == ("k", "e")


def test_action_tubes_are_drawn_and_logged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = run(root, "eval_map", "--min_tube_length", 1, "--plot", "--tiou_th", "0.5")
    assert plots(folder) == {"precision_recall@0.5.png", "tubes.png", "frames.png"}
    (line,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert line["epoch"] == 3 and {"v-mAP@0.5", "AP@0.5/walk"} <= line.keys()


@pytest.mark.slow
def test_a_listed_video_without_tracks_is_told(root: Path) -> None:
    flags = (root, "eval_map", "--min_tube_length", 1, "--tiou_th", "0.5")
    names = load_project("synthetic", root / "data").split("val")
    with pytest.raises(InputError, match=f"no usable video of subset 'val'; did you mean {names[0][:-1]}"):
        run(*flags, "--side_by_side", f"{names[0]}x")
    path = root / "data" / "synthetic" / "val.txt"
    text = path.read_text()
    path.write_text(f"{text}train_0000\n")  # annotated, but nobody was followed in it yet
    try:
        shown = ["--side_by_side", "train_0000"]
        for script, more in (("eval_map", []), ("eval_map", shown), ("eval_qmm", ["--from_tar"])):
            with pytest.raises(InputError, match=r"1 video .* 'train_0000'; run eval_qmm\.py --subset val again"):
                run(root, script, *more)
    finally:
        path.write_text(text)


def page(folder: Path) -> dict:
    """The data of a page, and in "tubes" those of its videos."""
    text = (folder / "report" / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*)</script>', text)[1])
    scripts = [(folder / "report" / video["data"]).read_text() for video in data["videos"]]
    return data | {"tubes": [json.loads(re.search(r"loaded\(\d+, (.*)\);", script)[1]) for script in scripts]}


def test_pages_show_what_was_measured(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(root, "eval_qmm", "--from_tar", "--link_cues", "iou")
    folders = run(root, "eval_qmm", "--from_tar", "--report", "--report_videos", 1)
    (folder,) = (folder for folder in folders if folder.name.endswith("feature"))
    shown = page(folder)
    held = json.loads(folder.with_name(f"{folder.name}.json").read_text())["metrics"]
    assert {row["name"]: row["value"] for row in shown["metrics"]}["recall@0.5"] == held["recall@0.5"]
    series = {row["series"] for chart in shown["charts"] for row in chart["rows"] if "series" in row}
    assert len(series) == 2, "recall by motion of both cues"
    assert [video["src"] is not None for video in shown["videos"]].count(True) == 1
    assert [video["fps"] for video in shown["videos"]] == [25.0] * len(shown["videos"])
    gt = make_gt_tubes("synthetic", "val", {"data_root": root / "data"})
    for video, tubes in zip(shown["videos"], shown["tubes"], strict=True):
        assert [tube["label"] for tube in tubes["gt"]] == [tube.label for tube in gt[video["name"]]]
        assert len(tubes["pred"]) == len(tubes["gt"]), "everybody was followed"
    assert f"report: {folder}/report/index.html" in capsys.readouterr().out


@pytest.mark.slow
def test_comet_gets_tables_curves_confusion_page_and_worst_videos(root: Path, capsys: pytest.CaptureFixture) -> None:
    flags = (
        "--min_tube_length",
        1,
        "--link_cues",
        "iou",
        "--comet",
        "offline",
        "--plot",
        "--plot_format",
        "png",
        "pdf",
    )
    folders = run(root, "eval_map", *flags, "--report", "--errors", "--confusion", "--bootstrap", 20)
    (folder,) = (folder for folder in folders if "-iou-" in folder.name)
    (archive,) = (folder / "comet").glob("*.zip")
    assert f"comet upload {archive}" in capsys.readouterr().err
    held = json.loads(folder.with_name(f"{folder.name}.json").read_text())["metrics"]
    with zipfile.ZipFile(archive) as zipped:
        messages = [json.loads(line) for line in zipped.read("messages.json").splitlines()]
        files = {}
        for message in messages:
            if message["type"] == "file_upload":
                content, more = message["payload"], message["payload"]["additional_params"]
                key = content["upload_type"], more.get("fileName") or more.get("figName")
                files[key] = zipped.read(content["file_path"])
    rows = [line.split(",") for line in files["asset", "AP@0.5.csv"].decode().split()]
    values = {row[0]: float(row[1]) for row in rows[1:] if row[1]}
    assert rows[0] == ["name", "value", "low", "high"]
    assert values == pytest.approx({label: v for label, v in held["AP@0.5"].items() if v is not None})
    counts = json.loads(files["confusion-matrix", "confusion_tubes@0.5.json"])
    assert counts["matrix"] == held["confusion"]["tubes@0.5"]["counts"]
    shown = page(folder)
    curves = {f"{c['title']}, {k['name']}": k for c in shown["charts"] if c["kind"] == "curves" for k in c["curves"]}
    logged = {name: json.loads(data) for (kind, name), data in files.items() if kind == "curve"}
    assert logged.keys() == curves.keys() and logged
    assert all(logged[name]["x"] == curves[name]["x"] and logged[name]["y"] == curves[name]["y"] for name in curves)
    with zipfile.ZipFile(io.BytesIO(files["asset", "report.zip"])) as zipped:
        assert zipped.read("index.html") == (folder / "report" / "index.html").read_bytes()
        assert {video["data"] for video in shown["videos"]} <= set(zipped.namelist())
    worst = [name for kind, name in files if kind == "video"]
    errors = {video["name"]: video["counts"]["errors"] for video in shown["videos"]}
    assert worst and sorted(worst, key=lambda name: -errors[name]) == worst and min(errors[name] for name in worst)
    assert {path.stem for path in folder.glob("*.pdf")} == {Path(name).stem for name in plots(folder)}
    assert all(path.read_bytes().startswith(b"%PDF") for path in folder.glob("*.pdf"))


def test_the_shown_video_has_most_people(root: Path) -> None:
    gt = make_gt_tubes("synthetic", "val", {"data_root": root / "data"})
    people = {name: len({tube.person_id for tube in tubes}) for name, tubes in gt.items()}
    assert people[detailed_video(gt)] == max(people.values()) or people[detailed_video(gt)] >= 3
    assert detailed_video({"b": [], "a": []}) == "a"


def test_features_have_the_ids_of_the_annotated_people() -> None:
    a, b = ([[x, 0, x + 10, 10]] * 5 for x in (0, 50))
    gt = [Tube(range(5), a, 0, person_id=7), Tube(range(5), a, 1, person_id=7), Tube(range(5), b, 0, person_id=3)]
    tracks = [Track([0, 2, 4], b[:3], np.ones(3)), Track([1, 2], a[:2], np.ones(2)), Track([9], a[:1], np.ones(1))]
    features = np.arange(6, dtype=np.float32)[:, None]
    ids, frames, by_frame = features_by_person(tracks, features, gt, partial(match_people, iou_th=0.5))
    assert frames.tolist() == [0, 1, 2, 2, 4, 9]
    assert ids.tolist() == [3, 7, 3, 7, 3, -1]
    assert by_frame[:, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert (features_by_person(tracks, features, [], partial(match_people, iou_th=0.5))[0] == -1).all()


@pytest.mark.slow
def test_training_draws_its_curves_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", arguments("--epochs", "2"))
    assert not list(tmp_path.rglob("*.png"))
    train(tmp_path / "run", arguments("--epochs", "2", "--resume", "--plot"))  # nothing is left to do but that
    (tmp_path / "run" / "training.png").rename(tmp_path / "first.png")
    train(tmp_path / "run", arguments("--epochs", "3", "--resume", "--plot", "--plot_format", "pdf"))
    first, second = (cv2.imread(str(p)) for p in (tmp_path / "first.png", tmp_path / "run" / "training.png"))
    assert first.std() > 1 and second.std() > 1 and not np.array_equal(first, second)
    assert (tmp_path / "run" / "training.pdf").read_bytes().startswith(b"%PDF")
    assert torch.load(tmp_path / "run" / "epoch_3.pth", weights_only=True)["epoch"] == 3


@pytest.mark.slow
def test_matplotlib_and_comet_are_not_imported_unless_asked_for(tmp_path: Path) -> None:
    process = launch(tmp_path / "log.txt", import_stages)
    process.join()
    assert (tmp_path / "log.txt").read_text() == "['torch']\n"


def test_videos_without_people_are_drawn_too(tmp_path: Path) -> None:
    frames = [np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)] * 3
    recalls = {0.5: {"iou": {"small": None, "medium": None, "large": None}}}
    for gt in ({"a": [], "b": []}, {"a": [Tube([0, 1], [[1, 1, 9, 9]] * 2, 0, person_id=0)], "b": []}):
        recall_plots(tmp_path, recalls, gt)
        feature_plots(tmp_path, "a", [], np.zeros((0, D)), gt["a"], partial(match_people, iou_th=0.5))
        precision_recall_plots(tmp_path, {"a": [], "b": []}, gt, ["walk"], [0.5], "voc")
        tube_plots(tmp_path, "a", [], gt["a"], ["walk"], frames)
        assert len(plots(tmp_path)) == 6
