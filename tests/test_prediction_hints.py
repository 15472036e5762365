"""What is said of predictions that break no rule, and yet are hardly meant so."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_predictions import LABELS, PROJECT, SIZE, evaluate
from utils.misc import InputError


@pytest.fixture
def many(tmp_path) -> tuple[Path, dict]:
    """Five videos of a hundred frames with somebody who walks through, and perfect predictions of it."""
    frames = np.arange(100)
    boxes = np.stack([3 * frames, 2 * frames, 3 * frames + 100, 2 * frames + 100], 1)
    tube = {"label": 1, "frames": frames.tolist(), "boxes": boxes.tolist()}
    names = [f"v{i}" for i in range(5)]
    about = {"width": SIZE[0], "height": SIZE[1], "n_frames": 110}
    gt = {"labels": LABELS, "videos": {name: {**about, "tubes": [tube]} for name in names}}
    (tmp_path / "gt.json").write_text(json.dumps(gt))
    (tmp_path / "val.txt").write_text("\n".join(names))
    (tmp_path / "own.yml").write_text(PROJECT)
    return tmp_path, {"labels": LABELS, "videos": {name: {"tubes": [{**tube, "score": 0.5}]} for name in names}}


def write_classes(root: Path, content: dict, gt_label: int, pred_label: object, **more: object) -> Path:
    """The predictions of `many`, with another class in the annotation and in the file."""
    gt = json.loads((root / "gt.json").read_text())
    for videos, change in ((gt["videos"], {"label": gt_label}), (content["videos"], {"label": pred_label, **more})):
        for video in videos.values():
            video["tubes"] = [tube | change for tube in video["tubes"]]
    (root / "gt.json").write_text(json.dumps(gt))
    (root / "pred.json").write_text(json.dumps(content))
    return root / "pred.json"


def test_an_index_of_labels_is_a_whole_number_below_their_number(many):
    with pytest.raises(InputError, match=r"tube 0: label '1\.5' is not among the indices of labels, 0 to 3$"):
        evaluate(many[0], write_classes(*many, 1, 1.5))
    with pytest.raises(InputError, match=r"tube 0: label '4' is .*; if they count from 1, say first_label=1 \("):
        evaluate(many[0], write_classes(*many, 3, 4))
    assert evaluate(many[0], many[0] / "pred.json", "--predictions_options", "first_label=1")[0]["v-mAP@0.5"] == 1


def test_videos_without_any_tube_are_told(many, capsys):
    root, content = many
    path = write_classes(root, {"labels": LABELS, "videos": {name: {"tubes": []} for name in content["videos"]}}, 1, 1)
    assert evaluate(root, path)[0]["v-mAP@0.5"] == 0
    assert "warning: no action tube was predicted" in capsys.readouterr().err


def test_an_annotation_without_actions_is_told(many, capsys):
    root, content = many
    path = root / "pred.json"
    path.write_text(json.dumps({"labels": LABELS, "videos": {name: {"tubes": []} for name in content["videos"]}}))
    gt = json.loads((root / "gt.json").read_text())
    for video in gt["videos"].values():
        video["tubes"][0]["label"] = None
    (root / "gt.json").write_text(json.dumps(gt))
    assert evaluate(root, path)[0]["v-mAP@0.5"] is None
    err = capsys.readouterr().err
    assert "warning: nobody who is annotated has an action, so AP is not defined" in err and "AP is 0" not in err


def test_ground_truth_is_counted_as_ap_counts_it(many):
    root, content = many
    path = write_classes(root, content, 1, 1)
    gt = json.loads((root / "gt.json").read_text())
    _, *others = gt["videos"].values()
    for video in others:
        video["tubes"][0]["label"] = None
    (root / "gt.json").write_text(json.dumps(gt))
    metrics, _ = evaluate(root, path)
    assert (metrics["gt_tubes"], metrics["tubes"]) == (1, len(others) + 1)


def test_saved_predictions_are_of_the_frames_that_were_evaluated(many):
    root, content = many
    _, folder = evaluate(root, write_classes(root, content, 1, 1), "--save_predictions")
    text = (root / "gt.json").read_text()
    (root / "gt.json").write_text(text.replace('"n_frames": 110', '"n_frames": 132'))  # as at another rate
    with pytest.raises(InputError, match=r"video 'v0': 110 frames, but 132 are annotated"):
        evaluate(root, folder / "predictions.json")


def test_a_video_that_a_json_holds_twice_is_refused(many):
    root, content = many
    text = json.dumps(content).replace('"videos": {', '"videos": {"v3": {"tubes": []}, ')
    (root / "pred.json").write_text(text)
    with pytest.raises(InputError, match=r"not a readable predictions file \('v3' is there twice"):
        evaluate(root, root / "pred.json")


def test_videos_that_are_left_out_keep_their_number(many):
    """The second video's annotation is wrong; files that name videos by number count it all the same."""
    root, content = many
    gt = json.loads((root / "gt.json").read_text())
    for i, (video, annotated) in enumerate(zip(content["videos"].values(), gt["videos"].values(), strict=True)):
        for tube in (*video["tubes"], *annotated["tubes"]):
            tube["boxes"] = [[x0 + 10 * i, y0, x1 + 10 * i, y1] for x0, y0, x1, y1 in tube["boxes"]]
    gt["videos"]["v1"]["tubes"][0]["label"] = "dance"
    (root / "gt.json").write_text(json.dumps(gt))
    (root / "pred.json").write_text(json.dumps(content))
    flags = "--skip_bad", "--metric", "frame-mAP", "--tiou_th", "0.99"
    metrics, folder = evaluate(root, root / "pred.json", *flags, "--export", "act")
    assert metrics["frame-mAP@0.99"] == 1
    rows = np.load(folder / "frame_detections.npy")
    assert np.unique(rows[:, 0]).tolist() == [0, 2, 3, 4]
    rows = np.concatenate([rows, [[1, *rows[0, 1:]]]])  # as the official code would detect in all of them
    np.save(root / "pred.npy", rows)
    assert evaluate(root, root / "pred.npy", *flags)[0]["frame-mAP@0.99"] == 1


def test_people_without_action_are_not_what_predictions_are_compared_with(many, capsys):
    root, content = many
    gt = json.loads((root / "gt.json").read_text())
    for video in gt["videos"].values():
        (tube,) = video["tubes"]
        action, idle = (
            {**tube, **{key: tube[key][a:b] for key in ("frames", "boxes")}} for a, b in ((0, 30), (30, 100))
        )
        video["tubes"] = [action, {**idle, "label": None}]
    (root / "gt.json").write_text(json.dumps(gt))
    for video, annotated in zip(content["videos"].values(), gt["videos"].values(), strict=True):
        video["tubes"] = [{**annotated["tubes"][0], "score": 0.5}]
    (root / "pred.json").write_text(json.dumps(content))
    assert evaluate(root, root / "pred.json")[0]["v-mAP@0.5"] == 1
    assert "warning" not in capsys.readouterr().err
