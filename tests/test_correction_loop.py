"""Annotation by correcting predictions, from end to end: predict, export, correct, export again, train on it."""

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import predict
from datasets import check, make_shards
from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.synthetic import __main__ as render

SIDES = ("xtl", "ytl", "xbr", "ybr")


def as_cvat_exports(path: Path) -> ET.Element:
    """What CVAT gives out of what it was given: key frames alone count, and every visible frame is listed."""
    root = ET.parse(path).getroot()
    last = int(root.findtext("meta/task/stop_frame"))
    for track in root.findall("track"):
        keys = sorted((box for box in track if box.get("keyframe") == "1"), key=lambda box: int(box.get("frame")))
        frames = [int(box.get("frame")) for box in keys]
        corners = np.array([[float(box.get(side)) for side in SIDES] for box in keys])
        for box in list(track):
            track.remove(box)
        for frame in range(frames[0], last + 1):
            at = int(np.searchsorted(frames, frame, "right")) - 1
            if keys[at].get("outside") == "1" and frame != frames[at]:
                continue
            sides = {s: f"{np.interp(frame, frames, c):.2f}" for s, c in zip(SIDES, corners.T, strict=True)}
            state = {"frame": str(frame), "keyframe": str(int(frame in frames)), "outside": keys[at].get("outside")}
            ET.SubElement(track, "box", **state, **sides).extend(keys[at].findall("attribute"))
    return root


@pytest.mark.slow
def test_predictions_are_corrected_and_come_back_as_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(main: Callable[[], None], *words: object) -> None:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, words)])
        main()

    call(render.main, "--data_root", tmp_path, "--n_train", 0, "--n_val", 1, "--seed", 7)
    (video,) = sorted((tmp_path / "synthetic/videos").iterdir())
    weights = ["--encoder", "synthetic", "--head", "synthetic", "--linker", "robust", "--device", "cpu", "--threads", 1]
    call(predict.main, video, *weights, "--export", "cvat", "--no_video", "--out", tmp_path / "first")
    found = json.loads((tmp_path / "first" / f"{video.stem}.json").read_text())
    root = as_cvat_exports(tmp_path / "first" / f"{video.stem}.xml")
    assert found["people"] and root.find("track") is not None

    (actions,) = ({b[0].text for b in t} - {"none"} for t in root.findall("track")[:1])
    corrected = sorted(actions)[0]  # a person says that it was another action
    for attribute in root.find("track").iter("attribute"):
        if attribute.text == corrected:
            attribute.text = "wave"
    (tmp_path / "own/exports").mkdir(parents=True)
    ET.ElementTree(root).write(tmp_path / "own/exports/corrected.xml", encoding="utf-8")

    fields = {"name": "own", "format": "cvat", "annotations": "exports", "action_attribute": "action"}
    fields |= {"person_labels": ["person"], "frames": f"{tmp_path}/synthetic/videos/{{name}}.avi"}
    (tmp_path / "own/train.txt").write_text(f"{video.stem}\n")
    own = tmp_path / "own/own.yml"
    own.write_text(yaml.safe_dump({**fields, "splits": {"train": "train.txt"}}))
    project = load_project(own)
    assert project.labels == found["labels"]
    (annotated,) = read_annotations(project).values()
    boxes = {(t.person_id, f): b for t in annotated.tubes for f, b in zip(t.frames.tolist(), t.boxes, strict=True)}
    predicted = {(i, f): b for i, p in enumerate(found["people"]) for f, b in zip(p["frames"], p["boxes"], strict=True)}
    assert boxes.keys() == predicted.keys()
    assert all(np.abs(boxes[key] - predicted[key]).max() <= 2.011 for key in boxes)
    labels = {project.labels[t.label] for t in annotated.tubes if t.person_id == 0 and t.label >= 0}
    assert "wave" in labels and corrected not in labels - {"wave"}

    call(check.main, "--dataset", own, "--sheet", tmp_path / "sheet.png")
    assert "0 errors" in capsys.readouterr().out
    call(make_shards.main, "--dataset", own, "--subset", "train", "--shards_path", tmp_path / "shards")
    assert list((tmp_path / "shards").rglob("*.tar"))
