"""Annotation formats of other tools: every case is read, or refused with its reason, and written back."""

import itertools
import json
import re
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import check, convert
from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.formats import FORMATS, WRITERS, options_of
from datasets.formats.common import AnnotationFile, RawTube, RawVideo
from datasets.formats.cvat_writer import key_frames
from datasets.formats.options import OPTIONS
from datasets.formats.person_tubes import tubes_of_person
from tests.conftest import SHARED
from utils.cli import run
from utils.misc import InputError

OWN = Path(__file__).parent / "fixtures" / "formats"
CASES = {path.parent.relative_to(OWN).as_posix(): path.parent for path in sorted(OWN.glob("*/*/case.json"))}
for path in sorted((SHARED / "cases" / "formats").glob("*/*/case.json")):
    CASES.setdefault(f"{path.parts[-3]}/{path.parts[-2]}", path.parent)
CASES = {name: folder for name, folder in CASES.items() if name.split("/")[0] in FORMATS}
SAID = {  # where the line says it in other words than the case
    "cvat_video/8": ["ends in the middle", "line 11"],
    "cvat_video/12": ["track 0", "frame 4", "'fly'"],
    "label_studio/9": [],
    "label_studio/11": ["task 1", "region a", "24", "fps"],
}


def described(folder: Path) -> tuple[dict, Path]:
    case = json.loads((folder / "case.json").read_text())
    return case, folder / case["input"]


def tubes_in(content: dict) -> dict[str, list[tuple]]:
    """The tubes of a JSON of ours, sorted: label, frames, boxes, and which others are of the same person."""
    videos = {}
    for name, video in content["videos"].items():
        people: dict[object, list] = {}
        for i, tube in enumerate(video["tubes"]):
            people.setdefault(tube.get("person_id", f"alone {i}"), []).append((str(tube["label"]), tube["frames"]))
        rows = [(str(t["label"]), t["frames"], sorted(people[t.get("person_id", f"alone {i}")]), t["boxes"])
                for i, t in enumerate(video["tubes"])]  # fmt: skip
        videos[name] = sorted(rows, key=lambda row: (row[:3], row[3][0]))
    return videos


def assert_same(got: dict, expected: dict, within: float = 0.02) -> None:
    a, b = tubes_in(got), tubes_in(expected)
    assert a.keys() == b.keys()
    for name in a:
        assert [row[:3] for row in a[name]] == [row[:3] for row in b[name]]
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_allclose(x[3], y[3], atol=within)


def written_json(path: Path, format: str, options: dict, target: Path) -> dict:
    convert.convert(path, format, options, target)
    return json.loads(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_every_case_gives_its_tubes_or_its_complaint(name, tmp_path):
    case, path = described(CASES[name])
    expected = CASES[name] / "expected.json"
    if expected.exists():
        got = written_json(path, case["format"], case["options"], tmp_path / "out.json")
        expected = json.loads(expected.read_text())
        assert set(got["labels"]) == set(expected["labels"])
        assert_same(got, expected)
        for video in got["videos"]:
            sizes = [content["videos"][video].items() for content in (expected, got)]
            known = {key: value for key, value in sizes[0] if key in ("width", "height")}
            assert known.items() <= dict(sizes[1]).items()
        return
    words = SAID.get(name, re.findall(r"'[^']+'|\w+ \d[\d.]*|no \w+", case["complaint"]))
    if not words:
        assert len(written_json(path, case["format"], case["options"], tmp_path / "out.json")["videos"]) == 1
        return
    with pytest.raises(InputError) as stop:
        convert.convert(path, case["format"], case["options"], tmp_path / "out.json")
    line = str(stop.value)
    assert path.name in line and "\n" not in line and not (tmp_path / "out.json").exists()
    assert all(word in line for word in words), (line, words)


def test_shared_cases_are_there():
    if not (SHARED / "cases").is_dir():
        pytest.skip(f"the cases of real files are not at {SHARED}")
    assert len(CASES) > len(list(OWN.glob("*/*/case.json")))


# --- project files ---


def project(folder: Path, path: Path, format: str, **fields) -> Path:
    content = {"name": "own", "format": format, "annotations": str(path), "frames": "videos/{name}.mp4", **fields}
    (folder / "own.yml").write_text(json.dumps({"splits": {"val": "val.txt"}, **content}))
    return folder / "own.yml"


def as_json(loaded) -> dict:
    videos = {}
    for name, video in read_annotations(loaded).items():
        videos[name] = {"tubes": [
            {"label": loaded.labels[t.label] if t.label >= 0 else None, "person_id": t.person_id,
             "frames": t.frames.tolist(), "boxes": t.boxes.tolist()} for t in video.tubes]}  # fmt: skip
    return {"videos": videos}


def test_a_project_file_fills_the_frames_between_unless_it_says_not_to(tmp_path):
    case, path = described(OWN / "cvat_video/3")
    filled = json.loads((path.parent / "expected_filled.json").read_text())
    plain = json.loads((path.parent / "expected.json").read_text())
    fields = {**case["options"], "person_labels": ["person"]}
    assert_same(as_json(load_project(project(tmp_path, path, "cvat", **fields))), filled)
    assert_same(as_json(load_project(project(tmp_path, path, "cvat", **fields, fill=False))), plain)

    case, path = described(OWN / "mot/2")
    got = tubes_in(as_json(load_project(project(tmp_path, path, "mot", **case["options"]))))["yard"]
    (walk,) = (row for row in got if row[0] == "walk")
    assert walk[1] == [*range(10, 20)]  # the frame of the next class is the next tube's
    np.testing.assert_allclose(np.array(walk[3])[:6, 0], 100 + np.arange(6) * 0.05, atol=1e-3)
    assert [row[1] for row in got if row[0] == "wave"] == [[20, 30], [25]]  # a gap stays one


def test_labels_may_be_left_to_the_file(tmp_path):
    _, path = described(OWN / "cvat_video/3")
    loaded = load_project(project(tmp_path, path, "cvat", action_attribute="action", person_labels=["person"]))
    assert loaded.labels == ["walk", "sit & read"]


@pytest.mark.parametrize(
    ("format", "fields", "words"),
    [
        ("cvat", {"action_atribute": "action"}, ["action_atribute", "not a field", "action_attribute"]),
        ("cvat", {"person_labels": "person"}, ["person_labels", "not a list of names"]),
        ("mot", {"step": 0}, ["step", "not a whole number from 1"]),
        ("json", {"fps": 25}, ["fps", "not a field"]),
        ("label_studio", {"sizes": {"a": [3]}}, ["sizes", "not a mapping from video to [width, height]"]),
    ],
)
def test_a_field_that_the_format_lacks_or_cannot_take_is_refused(format, fields, words, tmp_path):
    with pytest.raises(InputError) as stop:
        load_project(project(tmp_path, tmp_path / "a.xml", format, **fields))
    assert all(word in str(stop.value) for word in words), stop.value


def test_every_option_of_a_reader_has_a_kind_and_a_meaning():
    assert {option for format in FORMATS for option in options_of(format)} <= OPTIONS.keys()


def test_the_check_names_the_place_in_the_file(tmp_path, monkeypatch, capsys):
    case, path = described(OWN / "cvat_video/12")
    (tmp_path / "val.txt").write_text("park_01\n")
    own = project(tmp_path, path, "cvat", **case["options"])
    monkeypatch.setattr(sys, "argv", ["check", "--dataset", str(own), "--annotations_only"])
    with pytest.raises(SystemExit):
        run(check.main)
    out = capsys.readouterr().out
    assert "error: video 'park_01', tube 0 (track 0), frame 4: label 'fly' is not among walk, sit & read" in out


def test_rates_and_sizes_that_a_file_lacks_are_the_videos_own(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "fast.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 30, (200, 100))
    for i in range(12):
        writer.write(np.full((100, 200, 3), 20 * i, np.uint8))
    writer.release()
    _, path = described(OWN / "label_studio/5")
    expected = json.loads((path.parent / "expected.json").read_text())
    options = {"videos": str(tmp_path / "{name}.mp4"), "labels": ["walk"]}
    assert_same(written_json(path, "label_studio", options, tmp_path / "out.json"), expected)
    with pytest.raises(InputError, match=r"size of video 'fast'.*`width`.*or `videos`"):
        convert.convert(path, "label_studio", {"fps": 30}, tmp_path / "out.json")


def test_times_of_via_are_frames_of_the_video(tmp_path):
    _, path = described(OWN / "via3/1")
    content = json.loads(path.read_text())
    content["file"] = {"1": {**content["file"]["1"], "fname": "ward.mp4"}}
    content["view"] = {"1": {"fid_list": ["1"]}}
    first = content["metadata"]["image1_a"]
    content["metadata"] = {"a": {**first, "z": [0.5]}, "b": {**first, "z": [0.5333]}, "c": {**first, "xy": []}}
    (tmp_path / "via.json").write_text(json.dumps(content))
    options = {"person_attribute": "person", "fps": 30}
    got = written_json(tmp_path / "via.json", "via3", options, tmp_path / "out.json")
    assert {tuple(t["frames"]) for t in got["videos"]["ward"]["tubes"]} == {(15, 16)}
    with pytest.raises(InputError, match="metadata a: a time in seconds; give `fps`"):
        convert.convert(tmp_path / "via.json", "via3", {"person_attribute": "person"}, tmp_path / "out.json")


def test_youtube_vis_has_an_annotation_a_track(tmp_path):
    names = [f"ab/0000{i}.jpg" for i in range(4)]
    content = {
        "videos": [{"id": 3, "width": 64, "height": 48, "length": 4, "file_names": names}],
        "categories": [{"id": 1, "name": "walk"}],
        "annotations": [
            {"id": 8, "video_id": 3, "category_id": 1, "bboxes": [None, [1, 2, 3, 4], None, [5, 6, 7, 8]]},
            {"id": 9, "video_id": 3, "category_id": 1, "bboxes": [[0, 0, 9, 9], None, None, None]},
            {"id": 10, "video_id": 3, "category_id": 1, "iscrowd": 1, "bboxes": [[0, 0, 9, 9]] * 4},
        ],
    }
    (tmp_path / "vis.json").write_text(json.dumps(content))
    got = written_json(tmp_path / "vis.json", "coco", {}, tmp_path / "out.json")["videos"]["ab"]
    assert (got["width"], got["height"], got["n_frames"]) == (64, 48, 4)
    tubes = {tuple(t["frames"]): t["boxes"] for t in got["tubes"]}
    assert tubes == {(1, 3): [[1, 2, 4, 6], [5, 6, 12, 14]], (0,): [[0, 0, 9, 9]]}


def test_annotations_of_label_studio_that_do_not_count(tmp_path):
    _, path = described(OWN / "label_studio/5")
    (task,) = json.loads(path.read_text())
    (annotation,) = task["annotations"]
    ranges = {"id": "t", "type": "timelinelabels", "value": {"ranges": [{"start": 1, "end": 5}]}}
    other = {**annotation, "id": 10, "was_cancelled": True}
    task["annotations"] = [{**annotation, "result": [*annotation["result"], ranges]}, other]
    content = [task, {"id": 2, "data": {"video": "untouched.mp4"}, "annotations": [], "predictions": [other]}]
    (tmp_path / "export.json").write_text(json.dumps(content))
    options = {"width": 200, "height": 100, "fps": 30}
    got = written_json(tmp_path / "export.json", "label_studio", options, tmp_path / "out.json")
    assert_same(got, json.loads((path.parent / "expected.json").read_text()))  # nobody has annotated the other video
    task["annotations"][1]["was_cancelled"] = False
    (tmp_path / "export.json").write_text(json.dumps(content))
    got = written_json(
        tmp_path / "export.json", "label_studio", {**options, "annotation_ids": [10]}, tmp_path / "out.json"
    )
    assert len(got["videos"]["fast"]["tubes"]) == 1


def test_a_file_in_steps_is_told(tmp_path):
    case, path = described(OWN / "mot/2")
    lines = convert.convert(path, "mot", {**case["options"], "fill": False}, tmp_path / "out.json")
    assert any("1 video annotated in steps" in line and "`fill`" in line for line in lines)
    lines = convert.convert(path, "mot", {**case["options"], "fill": True}, tmp_path / "out.json")
    assert not any("in steps" in line for line in lines)


# --- CVAT ---


def xml(tracks: str, meta: str = "<task><size>9</size><source>v.mp4</source></task>") -> str:
    return f"<annotations><version>1.1</version><meta>{meta}</meta>{tracks}</annotations>"


def box(frame: int, x: float = 0, outside: int = 0, **more) -> str:
    attributes = "".join(f'<attribute name="{k}">{v}</attribute>' for k, v in more.items())
    sides = f'xtl="{x}" ytl="0" xbr="{x + 10}" ybr="20"'
    return f'<box frame="{frame}" outside="{outside}" {sides}>{attributes}</box>'


def track(*boxes: str, number: int = 0, label: str = "person", **more: str) -> str:
    own = "".join(f' {key}="{value}"' for key, value in more.items())
    return f'<track id="{number}" label="{label}"{own}>{"".join(boxes)}</track>'


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE annotations [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + xml(track(box(0))).replace("person", "&b;"),
        '<!DOCTYPE annotations SYSTEM "file:///etc/passwd">' + xml(track(box(0))),
        '<?xml version="1.0"?>\n<!DOCTYPE annotations>' + xml(""),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_xml_with_a_document_type_or_entities_is_refused_unread(text, zipped, tmp_path, monkeypatch):
    path = tmp_path / "a.xml"
    path.write_text(text)
    if zipped:
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("annotations.xml", text)
    monkeypatch.setattr("xml.etree.ElementTree.iterparse", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(InputError, match=r"doctype.*refused unread"):
        convert.convert(path, "cvat", {}, tmp_path / "out.json")


def test_text_in_another_encoding_hides_nothing(tmp_path):
    path = tmp_path / "a.xml"
    path.write_bytes(('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a>' + xml("")).encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8"):
        convert.convert(path, "cvat", {}, tmp_path / "out.json")


def test_a_project_export_in_a_zip_has_its_tasks_frames_apart(tmp_path):
    about = "<task><id>{}</id><name>t</name><size>{}</size><subset>{}</subset><start_frame>{}</start_frame>" \
            "<stop_frame>{}</stop_frame><frame_filter>{}</frame_filter><source>{}.mp4</source></task>"  # fmt: skip
    tasks = [(4, 5, "train", 0, 4, "", "a"), (6, 3, "train", 10, 14, "step=2", "b"), (7, 4, "test", 0, 3, "", "c")]
    meta = f"<project><tasks>{''.join(about.format(*task) for task in tasks)}</tasks></project>"
    tracks = [
        track(box(1), box(3, 4), box(4, 4, 1), task_id="4"),
        track(box(5 + 10), box(5 + 12, 4), box(5 + 14, 4, 1), task_id="6"),
        track(box(2), task_id="7"),
    ]
    path = tmp_path / "project.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.xml", xml("".join(tracks), meta))
    got = written_json(path, "cvat", {}, tmp_path / "out.json")["videos"]
    frames = {name: [t["frames"] for t in video["tubes"]] for name, video in got.items()}
    assert frames == {"a": [[1, 2, 3]], "b": [[10, 12]], "c": [[2, 3]]}


def test_a_folder_of_exports_is_one_annotation(tmp_path):
    (tmp_path / "exports").mkdir()
    for name in ("a", "b"):
        meta = f"<task><size>9</size><source>{name}.mp4</source></task>"
        (tmp_path / "exports" / f"{name}.xml").write_text(xml(track(box(2), box(3, 1), box(4, 1, 1)), meta))
    got = written_json(tmp_path / "exports", "cvat", {}, tmp_path / "out.json")
    assert got["labels"] == ["person"] and {k: len(v["tubes"]) for k, v in got["videos"].items()} == {"a": 1, "b": 1}
    (tmp_path / "exports" / "again.xml").write_text((tmp_path / "exports" / "a.xml").read_text())
    with pytest.raises(InputError, match="video 'a' is there twice"):
        convert.convert(tmp_path / "exports", "cvat", {}, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["not XML", "ends in the middle"]),
        ("<html></html>", ["not an export of CVAT"]),
        (xml(track(box(2)), ""), ["task ''", "<meta>"]),
        (xml("", ""), ["no <meta> with a task"]),
        (xml(track(box(2)).replace('xtl="0"', 'xtl="left"')), ["track 0, frame 2", "left"]),
        (xml(track(box(2)).replace(' xtl="0"', "")), ["track 0, frame 2", "without 'xtl'"]),
        (xml(track(box(12))), ["track 0, frame 12", "frames 0 to 8"]),
        (xml(track(box(2), task_id="5"), "<project><tasks></tasks></project>"), ["track 0", "task '5'"]),
    ],
)
def test_damaged_xml_is_one_line(text, words, tmp_path):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError) as stop:
        convert.convert(tmp_path / "a.xml", "cvat", {}, tmp_path / "out.json")
    assert all(word in str(stop.value) for word in [*words, "a.xml"]) and "\n" not in str(stop.value), stop.value


# --- writing ---


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


# --- sparse key frames ---


def interpolated(boxes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(np.arange(len(boxes)), keys, side) for side in boxes[keys].T], 1)


def test_key_frames_are_the_fewest_that_keep_every_box_within_the_tolerance():
    draw = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 8, 11):
        for _ in range(12):
            boxes = draw.normal(0, draw.choice([0.3, 1, 3]), (n, 4)).cumsum(0)
            keys = key_frames(boxes, 2.0)
            assert keys[0] == 0 and keys[-1] == n - 1 and np.abs(interpolated(boxes, keys) - boxes).max() <= 2 + 1e-6
            inner = range(1, n - 1)
            fewer = itertools.chain.from_iterable(itertools.combinations(inner, k) for k in range(len(keys) - 2))
            for choice in fewer if n > 1 else ():
                chosen = np.array([0, *choice, n - 1])
                assert np.abs(interpolated(boxes, chosen) - boxes).max() > 2


def test_a_long_track_keeps_within_the_tolerance_with_few_key_frames():
    time = np.arange(3000)
    x = 300 + 200 * np.sin(time / 80)
    boxes = np.stack([x, 50 + 0 * x, x + 40, 150 + 10 * np.cos(time / 50)], 1).round(2)
    keys = key_frames(boxes, 2.0)
    assert np.abs(interpolated(boxes, keys) - boxes).max() <= 2 + 1e-6 and len(keys) < 150
    assert key_frames(np.tile(boxes[:1], (20000, 1)), 2.0).tolist() == [0, 19999]


@pytest.mark.parametrize("format", ["cvat", "mot", "coco"])
def test_labels_that_would_read_back_as_no_action_are_refused(format, tmp_path):
    file = AnnotationFile(Path("x"), {}, ["walk", "none"])
    with pytest.raises(InputError, match="'none' stands for no action"):
        WRITERS[format](file, tmp_path / "out.xml")
