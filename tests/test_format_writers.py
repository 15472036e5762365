"""What is written in another tool's format reads back the same, and what a format cannot hold is told."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets import convert
from datasets.export_predictions import export_mot
from datasets.formats import WRITERS
from datasets.formats.common import AnnotationFile, RawTube, RawVideo
from datasets.formats.person_tubes import tubes_of_person
from tests.format_cases import OWN, assert_same, described, written_json
from utils.metrics.evaluation import Evaluation
from utils.misc import InputError


def random_file(seed: int) -> AnnotationFile:
    """Two videos of people with gaps, changing actions and none, as the formats can hold them."""
    draw = np.random.default_rng(seed)
    videos = {}
    for name in ("a/b", 'c "<&> 日本'):
        tubes = []
        for person in range(draw.integers(0, 4)):
            present = np.flatnonzero(draw.random(40) < 0.8)
            walk = draw.normal(0, 2, (40, 2)).cumsum(0)
            at = {}
            for frame in present.tolist():
                x, y = 100 + walk[frame]
                label = [None, "walk", "sit & <read>"][(frame // draw.integers(4, 9)) % 3]
                at[frame] = {label: np.round([x, y, x + 20, y + 50], 2)}
            tubes += tubes_of_person(at, person)
        videos[name] = RawVideo(320, 240, 40, tubes)
    return AnnotationFile(Path("random"), videos, ["walk", "sit & <read>"])


def content_of(file: AnnotationFile) -> dict:
    videos = {
        name: {"tubes": [
            {"label": t.label, "person_id": t.person_id, "frames": t.frames.tolist(), "boxes": t.boxes.tolist()}
            for t in video.tubes]}
        for name, video in file.videos.items()
    }  # fmt: skip
    return {"labels": file.labels, "videos": videos}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("format", "target", "options"),
    [
        ("json", "out.json", {}),
        ("cvat", "out.xml", {"action_attribute": "action"}),
        ("cvat", "out", {"action_attribute": "action"}),
        ("mot", "out", {}),
        ("coco", "out.json", {}),
    ],
)
def test_what_is_written_reads_back_the_same(format, target, options, seed, tmp_path):
    file = random_file(seed)
    assert WRITERS[format](file, tmp_path / target) == []
    back = written_json(tmp_path / target, format, options, tmp_path / "back.json")
    assert back["labels"] == file.labels
    assert_same(back, content_of(file))
    sizes = {(v["width"], v["height"]) for v in back["videos"].values() if "width" in v}
    assert sizes == {(320, 240)}


def by_frame(content: dict) -> dict[tuple, list[float]]:
    """(video, person, frame, label) -> box."""
    return {
        (name, tube["person_id"], frame, tube["label"]): box
        for name, video in content["videos"].items()
        for tube in video["tubes"]
        for frame, box in zip(tube["frames"], tube["boxes"], strict=True)
    }


@pytest.mark.parametrize("seed", range(4))
def test_avas_csv_holds_every_box_and_what_reads_it_lies_beside(seed, tmp_path):
    file = random_file(seed)
    lost = WRITERS["ava"](file, tmp_path / "out.csv")
    paused = sum(len(v.tubes) - len({(t.person_id, t.label) for t in v.tubes}) for v in file.videos.values())
    assert any(line.startswith(f"{paused} tube") for line in lost) == (paused > 0)
    options = json.loads((tmp_path / "out.options.json").read_text(encoding="utf-8"))
    back, written = (by_frame(c) for c in (
        written_json(tmp_path / "out.csv", "ava_csv", options, tmp_path / "back.json"), content_of(file)))  # fmt: skip
    people = [len({(key[0], key[1]) for key in content}) for content in (back, written)]
    assert people[0] == people[1] and back.keys() == written.keys()
    assert all(np.abs(np.subtract(back[key], written[key])).max() < 0.02 for key in written)


def test_a_second_action_at_a_time_is_a_person_of_its_own_where_a_format_has_one_action(tmp_path):
    boxes = np.tile([0.0, 0, 10, 20], (4, 1))
    tubes = [RawTube(np.arange(4), boxes, "walk", 7), RawTube(np.arange(1, 3), boxes[:2], "wave", 7)]
    file = AnnotationFile(Path("two"), {"v": RawVideo(100, 80, 6, tubes)}, ["walk", "wave"])
    for format, target in (("cvat", "v.xml"), ("mot", "v")):
        (line,) = WRITERS[format](file, tmp_path / target)
        assert line.startswith("1 track of a second action")
        options = {"action_attribute": "action"} if format == "cvat" else {}
        back = written_json(tmp_path / target, format, options, tmp_path / "back.json")
        (only,) = back["videos"].values()
        assert [(t["label"], t["frames"]) for t in only["tubes"]] == [("walk", [0, 1, 2, 3]), ("wave", [1, 2])]
        assert len({t["person_id"] for t in only["tubes"]}) == 2
    assert WRITERS["coco"](file, tmp_path / "coco.json") == []
    back = written_json(tmp_path / "coco.json", "coco", {}, tmp_path / "back.json")
    assert_same(back, content_of(file))


@pytest.mark.parametrize(("format", "target"), [("cvat", "v.xml"), ("mot", "v"), ("coco", "v.json")])
def test_actions_that_are_read_back_as_one_are_told(format, target, tmp_path):
    """The number of ground-truth tubes changes, and AP with it."""
    spans = [("walk", 0, 4), ("walk", 4, 8), (None, 8, 9), (None, 9, 10), ("sit", 10, 12), ("sit", 15, 17)]
    tubes = [RawTube(np.arange(a, b), np.tile([0.0, 0, 10, 20], (b - a, 1)), label, 7) for label, a, b in spans]
    file = AnnotationFile(Path("again"), {"v": RawVideo(100, 80, 20, tubes)}, ["walk", "sit"])
    (line,) = WRITERS[format](file, tmp_path / target)
    assert line == "2 tubes: read back as part of another of the same person and action"
    options = {"action_attribute": "action"} if format == "cvat" else {}
    back = written_json(tmp_path / target, format, options, tmp_path / "back.json")
    (only,) = back["videos"].values()
    assert sorted((t["label"] or "", t["frames"][0]) for t in only["tubes"]) == [("", 8), ("sit", 10), ("walk", 0)]


def test_the_input_is_not_written_over(tmp_path, monkeypatch):
    (path := tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["convert", str(path), str(tmp_path / "." / "a.json"), "--from", "json"])
    with pytest.raises(InputError, match=r"a.json: the input would be written over"):
        convert.main()
    assert path.read_text() == "{}"


def test_the_command_prints_what_was_read_and_lost(tmp_path, monkeypatch, capsys):
    case, path = described(OWN / "via3/1")
    (tmp_path / "options.json").write_text(json.dumps(case["options"]))
    flags = ["--from", "via3", "--options", str(tmp_path / "options.json"), "--to", "cvat"]
    monkeypatch.setattr(sys, "argv", ["convert", *flags, str(path), str(tmp_path / "out.xml")])
    convert.main()
    out = capsys.readouterr().out
    assert out.startswith("1 video (0 without tubes), people 1, tubes 4, boxes 5\n")
    assert "stand 1, sit 0, write 1, wave 1, no action 1" in out
    assert "2 tracks of a second action" in out and "without n_frames" in out


@pytest.mark.parametrize("format", ["cvat", "mot", "coco"])
def test_labels_that_would_read_back_as_no_action_are_refused(format, tmp_path):
    file = AnnotationFile(Path("x"), {}, ["walk", "none"])
    with pytest.raises(InputError, match="'none' stands for no action"):
        WRITERS[format](file, tmp_path / "out.xml")


@pytest.mark.parametrize("format", ["cvat", "mot"])
@pytest.mark.parametrize("name", ["../out of it", "/root"])
def test_no_file_is_written_outside_the_folder(format, name, tmp_path):
    video = random_file(1).videos["a/b"]
    with pytest.raises(InputError, match=f"in.json: video name '{name}' is not a path below "):
        WRITERS[format](AnnotationFile(Path("in.json"), {"b": video, name: video}, ["walk"]), tmp_path / "a" / "out")
    assert not list(tmp_path.rglob("*"))


def test_predictions_are_exported_within_their_folder(tmp_path):
    e = Evaluation({"a": [], "../b": []}, {}, {}, ["walk"], [0.5])
    with pytest.raises(InputError, match=r"--export mot: video name '\.\./b' is not a path below "):
        export_mot(tmp_path, e)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["a,b", '"a"'])
def test_avas_csv_refuses_names_that_would_read_back_as_others(name, tmp_path):
    video = random_file(1).videos["a/b"]
    text = r"in\.json: video .*: AVA's csv cannot hold a name with a comma or a quote at its beginning"
    with pytest.raises(InputError, match=text):
        WRITERS["ava"](AnnotationFile(Path("in.json"), {name: video}, ["walk"]), tmp_path / "out.csv")
