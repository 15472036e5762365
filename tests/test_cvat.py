"""CVAT's exports: hostile and damaged XML, several tasks, sparse key frames."""

import itertools
import zipfile

import numpy as np
import pytest

from datasets import convert
from datasets.formats.cvat_writer import key_frames
from tests.format_cases import written_json
from utils.misc import InputError


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
    monkeypatch.setattr("xml.etree.ElementTree.fromstring", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(InputError, match=r"doctype.*refused unread"):
        convert.convert(path, "cvat", {}, tmp_path / "out.json")


def test_text_in_another_encoding_hides_nothing(tmp_path):
    path = tmp_path / "a.xml"
    path.write_bytes(('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a>' + xml("")).encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8"):
        convert.convert(path, "cvat", {}, tmp_path / "out.json")


@pytest.mark.parametrize("text", ["step=3", "step = 3", " step =3"])
def test_a_step_may_have_blanks(text, tmp_path):
    meta = f"<task><start_frame>0</start_frame><stop_frame>8</stop_frame><frame_filter>{text}</frame_filter></task>"
    (tmp_path / "a.xml").write_text(xml(track(box(0), box(6, 6)), meta))
    (tube,) = written_json(tmp_path / "a.xml", "cvat", {}, tmp_path / "out.json")["videos"]["job_None"]["tubes"]
    assert tube["frames"] == [0, 3, 6]


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
