"""Annotation formats of other tools: every case is read, or refused with its reason; project files of them."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from datasets import check, convert
from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.formats import FORMATS, options_of, read_annotation_file
from datasets.formats.options import OPTIONS
from datasets.formats.sources import video_path
from tests.conftest import SHARED
from tests.format_cases import OWN, assert_same, described, tubes_in, written_json
from tests.videos import gradient_frames, write_video
from utils.cli import run
from utils.misc import InputError

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
        ("ava", {"label_map": {"stand": 1}}, ["label_map", "not a file's name or a mapping from class id to name"]),
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


@pytest.mark.parametrize("file", ["v1.mp4", "v1.MKV", "v1.webm"])
def test_a_video_of_any_extension_is_not_a_file_beside_it(file, tmp_path):
    for name in (file, "v1.2.mp4", "v1.en.vtt", "v1.info.json", "v1.jpg", "v1.csv"):
        (tmp_path / name).touch()
    assert video_path(tmp_path / "{name}.*", "v1") == tmp_path / file
    assert video_path(tmp_path / "{name}.*", "v1.2") == tmp_path / "v1.2.mp4"


def test_a_folder_of_images_has_the_fps_that_the_option_says(tmp_path):
    (tmp_path / "fast").mkdir()
    cv2.imwrite(str(tmp_path / "fast" / "0.png"), np.zeros((100, 200, 3), np.uint8))
    _, path = described(OWN / "label_studio/5")
    options = {"labels": ["walk"], "width": 200, "height": 100, "fps": 30, "videos": str(tmp_path / "{name}")}
    written_json(path, "label_studio", options, tmp_path / "out.json")


@pytest.mark.parametrize("option", [{}, {"fps": 25}])
def test_times_are_those_of_a_video_whose_rate_varies(tmp_path, option):
    times = [*range(10), *range(10, 40, 3)]  # in 1/25 s
    write_video(tmp_path / "fast.mp4", gradient_frames(20, 200, 100), times=times)
    _, path = described(OWN / "label_studio/5")
    content = json.loads(path.read_text())
    value = content[0]["annotations"][0]["result"][0]["value"]
    ends = {1: 10.0, 36: 45.0}  # the editor's frame: x in percent
    value["sequence"] = [{"frame": f, "time": f / 24, "enabled": f == 1, "x": x, "y": 10, "width": 10, "height": 10}
                         for f, x in ends.items()]  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(content))
    options = {**option, "videos": str(tmp_path / "{name}.mp4")}
    got = written_json(tmp_path / "export.json", "label_studio", options, tmp_path / "out.json")
    (tube,) = got["videos"]["fast"]["tubes"]
    assert tube["frames"] == list(range(20))
    shares = [10 + 35 * min(time / 25 * 24 / 35, 1) for time in times]
    np.testing.assert_allclose([box[0] for box in tube["boxes"]], [2 * share for share in shares], atol=0.1)


def test_an_fps_is_only_as_exact_as_it_is_written(tmp_path):
    """30 for 29.97 would be a frame too far after half a minute."""
    write_video(tmp_path / "fast.mp4", gradient_frames(12, 200, 100))
    _, path = described(OWN / "label_studio/5")
    options = {"videos": str(tmp_path / "{name}.mp4"), "labels": ["walk"]}
    exact = written_json(path, "label_studio", options, tmp_path / "out.json")
    assert written_json(path, "label_studio", {**options, "fps": 25.7}, tmp_path / "out.json") == exact


def test_a_region_of_two_rates_is_refused(tmp_path):
    """Its editor's rate was changed on the way, so that its frame numbers are of both."""
    _, path = described(OWN / "label_studio/5")
    content = json.loads(path.read_text())
    sequence = content[0]["annotations"][0]["result"][0]["value"]["sequence"]
    sequence.append({**sequence[-1], "frame": 60, "time": 2.0})  # at 30, those before at 24
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"region a: frame 9 is at second 0\.375, but later ones count 30 a second"):
        convert.convert(
            tmp_path / "export.json", "label_studio", {"fps": 30, "width": 200, "height": 100}, tmp_path / "out.json"
        )


def test_times_of_a_region_may_be_rounded_and_begin_at_0(tmp_path):
    _, path = described(OWN / "label_studio/5")
    content = json.loads(path.read_text())
    value = content[0]["annotations"][0]["result"][0]["value"]
    moments = ((frame, round((frame - 1) / 30, 2)) for frame in (1, 2, 300))
    value["sequence"] = [{**value["sequence"][0], "frame": frame, "time": time} for frame, time in moments]
    (tmp_path / "export.json").write_text(json.dumps(content))
    options = {"fps": 30, "width": 200, "height": 100}
    got = written_json(tmp_path / "export.json", "label_studio", options, tmp_path / "out.json")
    (tube,) = got["videos"]["fast"]["tubes"]
    assert tube["frames"] == list(range(300))


def test_ids_of_mot_that_would_be_one_as_floats_are_refused(tmp_path):
    (tmp_path / "gt.txt").write_text(f"1,{2**53},0,0,9,9,1,-1\n2,{2**53 + 1},50,50,9,9,1,-1\n")
    with pytest.raises(InputError, match=r"line 1: id 9007199254740992 is not below 2\^53"):
        convert.convert(tmp_path / "gt.txt", "mot", {}, tmp_path / "out.json")


def test_times_of_via_are_the_frames_on_screen(tmp_path):
    """A player is paused at any time that a frame is shown."""
    _, path = described(OWN / "via3/1")
    content = json.loads(path.read_text())
    content["file"] = {"1": {**content["file"]["1"], "fname": "ward.mp4"}}
    content["view"] = {"1": {"fid_list": ["1"]}}
    first = content["metadata"]["image1_a"]
    content["metadata"] = {"a": {**first, "z": [0.5]}, "b": {**first, "z": 0.5333 + 0.02}, "c": {**first, "xy": []}}
    (tmp_path / "via.json").write_text(json.dumps(content))
    options = {"person_attribute": "person", "fps": 30}
    got = written_json(tmp_path / "via.json", "via3", options, tmp_path / "out.json")
    assert {tuple(t["frames"]) for t in got["videos"]["ward"]["tubes"]} == {(15, 16)}
    with pytest.raises(InputError, match="metadata a: a time in seconds; give `fps`"):
        convert.convert(tmp_path / "via.json", "via3", {"person_attribute": "person"}, tmp_path / "out.json")


@pytest.mark.parametrize(("fname", "shown"), [("cam2/ward.mp4", "ward"), ("cam2/ward_000031.jpg", "ward_31")])
def test_files_of_one_name_in_two_folders_are_refused(fname, shown, tmp_path):
    """Their people would be people of one video."""
    _, path = described(OWN / "via3/1")
    content = json.loads(path.read_text())
    other = fname.replace("cam2", "cam1")
    content["file"] |= {"8": {"fid": "8", "fname": fname, "src": ""}, "9": {"fid": "9", "fname": other, "src": ""}}
    (tmp_path / "via.json").write_text(json.dumps(content))
    options = {"person_attribute": "person", "frame_step": 30}
    with pytest.raises(InputError, match=f"files are named '{shown}'"):
        convert.convert(tmp_path / "via.json", "via3", options, tmp_path / "out.json")


def test_a_video_is_opened_once_however_many_boxes_ask_for_its_rate(tmp_path, monkeypatch):
    opened = []
    video = SimpleNamespace(size=(640, 360), fps=30.0, own_times=np.arange(9) / 30)
    monkeypatch.setattr("datasets.dataset.VideoFrames", lambda path: opened.append(path.name) or video)
    (tmp_path / "ward.mp4").touch()
    _, path = described(OWN / "via3/1")
    content = json.loads(path.read_text())
    content["file"], content["view"] = {"1": {**content["file"]["1"], "fname": "ward.mp4"}}, {"1": {"fid_list": ["1"]}}
    first = content["metadata"]["image1_a"]
    content["metadata"] = {str(i): {**first, "z": [i / 30]} for i in range(9)}
    for about in content["attribute"].values():  # typed with blanks around
        about["options"] = {id: f" {name} " for id, name in about.get("options", {}).items()}
    (tmp_path / "via.json").write_text(json.dumps(content))
    options = {"person_attribute": "person", "videos": f"{tmp_path}/{{name}}.mp4"}
    got = written_json(tmp_path / "via.json", "via3", options, tmp_path / "out.json")
    assert all(tube["frames"] == [*range(9)] for tube in got["videos"]["ward"]["tubes"]) and opened == ["ward.mp4"]


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


def test_choices_of_a_region_do_not_take_its_labels_away(tmp_path):
    _, path = described(OWN / "label_studio/5")
    content = json.loads(path.read_text())
    result = content[0]["annotations"][0]["result"]
    value = {key: value for key, value in result[0]["value"].items() if key != "labels"}
    result.append({**result[0], "type": "choices", "value": {**value, "choices": ["blurred"]}})
    (tmp_path / "export.json").write_text(json.dumps(content))
    options = {"width": 200, "height": 100, "fps": 30}
    got = written_json(tmp_path / "export.json", "label_studio", options, tmp_path / "out.json")
    assert_same(got, json.loads((path.parent / "expected.json").read_text()))


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


BOX = '<box frame="0" keyframe="1" outside="0" xtl="1" ytl="1" xbr="6" ybr="6">{}</box>'
CVAT = """<annotations><meta><task><name>a</name><size>1</size><labels><label><name>person</name><attributes>
<attribute><name>action</name><values>walk</values></attribute></attributes></label></labels></task></meta>
<track id="0" label="person">{}</track></annotations>"""


@pytest.mark.parametrize(
    ("format", "text", "options"),
    [
        ("mot", "1,1,1,1,5,5,1,-1,1\n", {"names": ["walk"]}),
        ("cvat", CVAT.format(BOX.format("")), {"action_attribute": "action"}),
        ("cvat", CVAT.format(BOX.format('<attribute name="action"></attribute>')), {"action_attribute": "action"}),
    ],
)
def test_an_empty_action_is_none_whatever_else_no_action_names(format, text, options, tmp_path):
    path = tmp_path / "annotation"
    path.write_text(text)
    file = read_annotation_file(path, format, {**options, "no_action": ["idle"]})
    assert [tube.label for video in file.videos.values() for tube in video.tubes] == [None]
    assert file.labels == ["walk"]
