"""Evaluation of predictions, and what is said of those that do not fit."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import eval_map
from datasets.predictions import convert
from tests.pickles import pickled
from tests.tube_cases import random_case
from utils.box_ops import Tube
from utils.misc import InputError
from utils.storage.files import read_json

LABELS = ["stand", "walk", "wave", "run"]
PROJECT = "name: own\nformat: json\nannotations: gt.json\nframes: videos/{name}.avi\nsplits: {val: val.txt}\n"
SIZE, N_FRAMES = (400, 300), 200


def entry(tube: Tube) -> dict:
    corners = tube.boxes.reshape(-1, 2, 2)  # noise has reversed some
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1) + 100
    return {"label": tube.label, "frames": tube.frames.tolist(), "boxes": boxes.tolist()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set of its own whose annotation is a JSON, without any video."""
    root = tmp_path_factory.mktemp("own")
    _, gt = random_case(3)
    about = {"width": SIZE[0], "height": SIZE[1], "n_frames": N_FRAMES}
    videos = {name: {**about, "tubes": [entry(tube) for tube in tubes]} for name, tubes in gt.items()}
    (root / "gt.json").write_text(json.dumps({"labels": LABELS, "videos": videos}))
    (root / "val.txt").write_text("\n".join(gt))
    (root / "own.yml").write_text(PROJECT)
    return root


@pytest.fixture
def predictions(data, tmp_path) -> Path:
    """Predictions of its videos as JSON, one of them missing."""
    pred, _ = random_case(3)
    pred.pop("only predicted")
    videos = {}
    for name, tubes in pred.items():
        videos[name] = {"tubes": []}
        for tube in tubes:
            scores = (tube.score * np.linspace(0.7, 1.3, len(tube))).tolist()
            scored = {"label": LABELS[tube.label], "score": float(np.mean(scores)), "scores": scores}
            videos[name]["tubes"].append(entry(tube) | scored)
    path = tmp_path / "pred.json"
    path.write_text(json.dumps({"labels": LABELS, "videos": videos}))
    return path


def evaluate(data: Path, path: Path, *flags: object) -> tuple[dict, Path]:
    """`eval_map.py --predictions path`; its metrics, and the folder beside its results."""
    root = path.parent / "checkpoint"
    before = set(root.rglob("*.json"))
    words = ["--dataset", data / "own.yml", "--checkpoint_root", root, "--comet", "disabled", "--predictions", path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["eval_map.py", *map(str, [*words, *flags])])
        eval_map.main()
    (results,) = set(root.rglob("eval_map-*.json")) - before
    return json.loads(results.read_text())["metrics"], results.with_suffix("")


def test_predictions_are_evaluated_without_a_model(data, predictions, capsys, monkeypatch):
    monkeypatch.setattr("utils.misc.pick_device", lambda *_: pytest.fail("a device was looked for"))
    metrics, _ = evaluate(data, predictions)
    assert 0 < metrics["v-mAP@0.5"] < 1 and metrics["videos"] == 8
    assert "2 videos of 8 not in it, taken as without detections: only annotated, empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "export"),
    [
        ("v-mAP", "json"),
        ("motion-AP", "json"),
        ("v-mAP", "mot"),
        *(("frame-mAP", f) for f in ("json", "act", "ava", "mot")),
    ],
)
def test_what_is_written_gives_the_same_when_read(data, predictions, metric, export, tmp_path, capsys):
    before, folder = evaluate(data, predictions, "--metric", metric, "--export", export, "--save_predictions")
    name = {"json": "predictions.json", "act": "frame_detections.npy", "ava": "ava.csv", "mot": "mot"}[export]
    moved = tmp_path / "again" / name
    moved.parent.mkdir()
    (folder / name).rename(moved)
    capsys.readouterr()
    after, _ = evaluate(data, moved, "--metric", metric)
    said = "ava.csv: frame 0 is taken as second 900, 30 frames a second; else say --predictions_options start=SECOND"
    assert (said in capsys.readouterr().err) == (export == "ava")
    one_box_tubes = {"tubes": after["tubes"]} if export in ("act", "ava") else {}
    assert after == before | one_box_tubes
    assert not list(folder.rglob("*.pkl"))


@pytest.mark.parametrize("metric", ["v-mAP", "frame-mAP"])
def test_tubes_whose_score_is_not_that_of_their_frames_come_back_from_mot(data, predictions, metric, tmp_path):
    content = json.loads(predictions.read_text())
    for video in content["videos"].values():
        for i, tube in enumerate(video["tubes"]):
            tube["score"] = round(tube["score"] + 0.05, 1)  # many are equal
            if i % 3 == 0:
                tube.pop("scores")
    path = tmp_path / "rounded.json"
    path.write_text(json.dumps(content))
    before, folder = evaluate(data, path, "--metric", metric, "--export", "mot")
    after, _ = evaluate(data, (folder / "mot").rename(tmp_path / "tracks"), "--metric", metric)
    assert after == before


def test_what_a_format_cannot_hold_is_refused(data, predictions):
    for export in ("act", "multisports", "ava"):
        with pytest.raises(InputError, match=r"only goes with --metric frame-mAP: .*; use json"):
            evaluate(data, predictions, "--export", export)


def changed(path: Path, change) -> Path:
    """A copy of a predictions JSON whose first tube is changed."""
    content = json.loads(path.read_text())
    change(next(video["tubes"][0] for video in content["videos"].values() if video["tubes"]), content)
    other = path.with_name("changed.json")
    other.write_text(json.dumps(content))
    return other


def of_boxes(of_box):
    """A change of every box."""

    def change(_, content):
        for video in content["videos"].values():
            for tube in video["tubes"]:
                tube["boxes"] = [of_box(box) for box in tube["boxes"]]

    return change


shares = of_boxes(lambda box: [x / side for x, side in zip(box, [*SIZE, *SIZE], strict=True)])
larger = of_boxes(lambda box: [3 * x for x in box])
turned = of_boxes(lambda box: [*box[2:], *box[:2]])


def renamed(_, content):
    content["videos"] = {f"x{name}": video for name, video in content["videos"].items()}


def from_one(_, content):
    for video in content["videos"].values():
        for tube in video["tubes"]:
            tube["frames"] = [frame + N_FRAMES - tube["frames"][-1] for frame in tube["frames"]]


def stating(width: int, height: int, n_frames: int):
    """A change by which the file says this of every video."""

    def change(_, content):
        for video in content["videos"].values():
            video.update(width=width, height=height, n_frames=n_frames)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, _: t.update(boxes=[[float("nan")] * 4] * len(t["frames"])), "tube 0: a number is not finite"),
        (lambda t, _: t.update(score=float("inf")), "tube 0: a number is not finite"),
        (lambda t, _: t["frames"].__setitem__(0, -3), "tube 0: frame -3, but frames count from 0"),
        (lambda t, _: t["frames"].__setitem__(-1, 900), "frame 900, but it has 200 frames, .*late_frames=ignore"),
        (lambda t, _: t["boxes"].__setitem__(0, [50, 5, 10]), "tube 0: "),
        (lambda t, _: t["frames"].append(199), r"frames, \d+ boxes and"),
        (lambda t, _: t.update(label="wavee"), "label 'wavee' is not among .*; did you mean wave"),
        (lambda t, _: t.update(label=4), "label '4' is not among"),
        (lambda t, _: t.pop("score"), "'score' is missing"),
        (lambda _, c: c["videos"].update(w={"tubes": []}), "video 'w' is not in subset 'val', .*other_videos=ignore"),
        (lambda _, c: c.pop("videos"), "no predictions"),
        (renamed, "names 6 videos, the first 'xv0', none of subset 'val'.*did you mean v0"),
        (shares, "no coordinate is above .*; if shares of the frame, say .*boxes=shares"),
        (larger, "boxes lie outside of their frames: they reach to .*, the frames to 400 x 300; .* say .*picture="),
        (turned, "boxes are reversed, .*not x1, y1, x2, y2"),
        (from_one, "if they count from 1, say .*first_frame=1"),
        (stating(*SIZE, N_FRAMES // 2), "100 frames, but 200 are annotated; .*frame rate, .*say .*n_frames=ignore"),
        (stating(*SIZE, N_FRAMES + 4), "204 frames, but 200 are annotated"),
        (stating(*SIZE, "many"), "video '.*': n_frames 'many' is not a number"),
        (stating(800, 600, N_FRAMES), "800 x 600 pixels, but annotated as 400 x 300; predict the annotated video"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(data, predictions, change, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate(data, changed(predictions, change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        (shares, "boxes=shares"),
        (larger, "picture=1200x900"),
        (lambda _, c: c["videos"].update(w={"tubes": []}), "other_videos=ignore"),
        (stating(*SIZE, 300), "n_frames=ignore"),
    ],
)
def test_the_suggested_option_is_right(data, predictions, change, option):
    expected, _ = evaluate(data, predictions)
    got, _ = evaluate(data, changed(predictions, change), "--predictions_options", option)
    assert got["v-mAP@0.5"] == pytest.approx(expected["v-mAP@0.5"], abs=1e-9)


def test_a_file_that_is_cut_off_or_of_no_known_kind(data, predictions, tmp_path):
    whole = predictions.read_bytes()
    for name, content, message in (
        ("cut.json", whole[: len(whole) // 2], "not a readable predictions file"),
        ("cut.pkl", pickled(np.zeros((9, 8)))[:-50], "refused as a file of predictions"),
        ("other.pkl", pickled([1, 2]), "its format is not recognised"),
        ("other.bin", b"\0\1", "its format is not recognised"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            evaluate(data, tmp_path / name)
    for missing in ("missing.json", "missing.csv", "missing"):
        with pytest.raises(InputError, match="no such file or folder"):
            evaluate(data, tmp_path / missing)
    with (tmp_path / "giant.json").open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(InputError, match="5 GiB in one file"):
        evaluate(data, tmp_path / "giant.json")
    for text in ("boxes=metres", "first_label=one", "colour=red", "picture=3", "picture=0x9", "multi_label=no"):
        with pytest.raises(InputError, match="--predictions_options"):
            evaluate(data, predictions, "--predictions_options", text)


def test_classes_that_count_from_another_number(data, tmp_path):
    rows = np.array([[0, 5, label, 0.9, 110, 110, 150, 150] for label in (1, 2, 3, 4)], np.float64)
    np.save(tmp_path / "detections.npy", rows)
    with pytest.raises(InputError, match=r"row 3: label 4, .* \(0 to 3\); if they count from 1, say first_label=1"):
        evaluate(data, tmp_path / "detections.npy", "--metric", "frame-mAP")
    evaluate(data, tmp_path / "detections.npy", "--metric", "frame-mAP", "--predictions_options", "first_label=1")
    rows[0, 2] = 0
    np.save(tmp_path / "detections.npy", rows)
    with pytest.raises(InputError, match="row 0: class 0, but classes count from 1; if from 0, say first_label=0"):
        evaluate(data, tmp_path / "detections.npy", "--predictions_options", "first_label=1")


def test_the_json_of_predict_is_read(data, predictions, tmp_path):
    expected, _ = evaluate(data, predictions)
    (tmp_path / "many").mkdir()
    for name, video in json.loads(predictions.read_text())["videos"].items():
        content = {"video": f"somewhere/videos/{name}.avi", "labels": LABELS, "people": [], **video}
        (tmp_path / "many" / f"{name}.json").write_text(json.dumps(content))
    assert evaluate(data, tmp_path / "many")[0] == expected


def test_a_file_of_predictions_is_read_once(predictions, monkeypatch):
    files = []
    monkeypatch.setattr(
        "datasets.formats.pred_json.read_json", lambda path, *more: files.append(path) or read_json(path, *more)
    )
    assert convert("json", predictions, {})["labels"] == LABELS
    assert files == [predictions]


def test_decoders_may_differ_by_a_few_frames(data, predictions):
    expected, folder = evaluate(data, predictions)
    for shape in ((*SIZE, N_FRAMES - 3), (0, 0, 0)):
        folder.with_suffix(".json").unlink()
        assert evaluate(data, changed(predictions, stating(*shape)).replace(predictions))[0] == expected


def test_a_byte_order_mark_is_no_part_of_a_json(predictions):
    expected = convert("json", predictions, {})
    predictions.write_text(predictions.read_text(), encoding="utf-8-sig")
    assert convert("json", predictions, {}) == expected


def test_a_folder_of_predict_may_hold_the_labels_for_cvat_too(data, predictions, tmp_path):
    expected, _ = evaluate(data, predictions)
    (tmp_path / "first").mkdir()
    predictions.rename(tmp_path / "first/all.json")
    (tmp_path / "first/cvat_labels.json").write_text(json.dumps([{"name": "person"}]))
    assert evaluate(data, tmp_path / "first")[0] == expected
    assert convert("json", tmp_path / "first", {})["labels"] == LABELS  # of the file itself
    shutil.copy(tmp_path / "first/all.json", tmp_path / "first/again.json")
    with pytest.raises(InputError, match=r"all\.json: video 'v0' is in again\.json too"):
        evaluate(data, tmp_path / "first")


def test_videos_without_a_file_of_yowo_are_listed(data, tmp_path, capsys):
    (tmp_path / "detections_1").mkdir()
    (tmp_path / "detections_1/v0_00001.txt").write_text("1 0.9 110 110 150 150\n")
    (tmp_path / "detections_1/v1_00001.txt").write_text("")
    evaluate(data, tmp_path / "detections_1", "--metric", "frame-mAP")
    missing = "only annotated, empty, v2, v3, v4, v5"
    assert f"6 videos of 8 not in it, taken as without detections: {missing}" in capsys.readouterr().err


def test_shares_are_told_where_no_size_is_known(data, predictions, tmp_path):
    content = json.loads((data / "gt.json").read_text())
    for video in content["videos"].values():
        video.pop("width"), video.pop("height")
    for name in ("own.yml", "val.txt"):
        shutil.copy(data / name, tmp_path)
    (tmp_path / "gt.json").write_text(json.dumps(content))
    evaluate(tmp_path, predictions)
    for change, message in ((shares, "no coordinate is above .*boxes=shares"), (turned, "boxes are reversed")):
        with pytest.raises(InputError, match=message):
            evaluate(tmp_path, changed(predictions, change))


def test_flags_of_predictions_need_predictions(data, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["eval_map.py", "--dataset", f"{data}/own.yml", "--predictions_format", "mot"])
    with pytest.raises(InputError, match="only go with --predictions"):
        eval_map.main()


def test_boxes_after_the_end_can_be_left_out(data, predictions):
    def late(tube, _):
        tube["frames"].append(900)
        tube["boxes"].append([1, 1, 2, 2])
        tube["scores"].append(0.5)

    expected, _ = evaluate(data, predictions)
    got, _ = evaluate(data, changed(predictions, late), "--predictions_options", "late_frames=ignore")
    assert got == expected
