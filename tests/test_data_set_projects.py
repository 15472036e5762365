"""Project files of data sets, and what is refused in them."""

import json

import pytest

from datasets.annotations import read_annotations
from datasets.config import DEFAULTS, known_projects, load_project
from tests.test_annotations import own_project, tube, video
from utils.gt_tubes import make_gt_tubes
from utils.misc import InputError


def test_keys_that_are_not_read_are_told(tmp_path, capsys):
    """A misspelt person_id makes each tube a person of its own, and missing labels make indices the project's."""
    path = own_project(tmp_path, {"a": {**video(tube(personid=3), tube(personid=3, note="x")), "fps": 25}})
    content = json.loads((tmp_path / "annotations.json").read_text())
    (tmp_path / "annotations.json").write_text(json.dumps({**content, "label": []}))
    read_annotations(load_project(path))
    lines = [line.partition(".json: ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "'label' of 1 file is not read; did you mean labels?",
        "'fps' of 1 video is not read",
        "'personid' of 2 tubes is not read; did you mean person_id?",
        "'note' of 1 tube is not read",
    ]


@pytest.mark.parametrize("line", ["v.mp4", "v\t1", "v.avi 1", "v 1", "v,1", "videos/v", "./v.mp4"])
def test_a_list_that_says_more_than_the_name_is_refused(tmp_path, line):
    path = own_project(tmp_path, {"v": video(tube())})
    (tmp_path / "val.txt").write_bytes(f"\r\n{line}\r\n\r\n".encode())
    with pytest.raises(InputError, match="the annotation has no video "):
        make_gt_tubes(load_project(path), "val")
    (tmp_path / "val.txt").write_bytes(b"\r\nv \r\nv\r\n\r\n")
    assert list(make_gt_tubes(load_project(path), "val")) == ["v"]


def test_defaults_are_the_project_files_by_the_first_name_it_gives(tmp_path):
    project = load_project(own_project(tmp_path, {"v": video()}, defaults={"psn_score_th": 0.7, "iou_th": 0.6}))
    assert project.default("psn_score_th") == 0.7 and project.default("sim_th") == DEFAULTS["sim_th"]
    assert project.default("qmm_psn_score_th", "psn_score_th") == 0.7
    assert project.default("qmm_psn_score_th") == DEFAULTS["qmm_psn_score_th"]


def test_missing_data_says_where_it_comes_from(tmp_path):
    project = load_project("ucf101-24", tmp_path)
    for read in (
        lambda: read_annotations(project),
        lambda: project.split("val"),
        lambda: load_project("jhmdb21", tmp_path),  # its labels stand in the annotation
    ):
        with pytest.raises(InputError, match=r"'Data sets' in README\.md"):
            read()
    with pytest.raises(InputError, match="render the data set with python -m datasets"):
        load_project("synthetic", tmp_path).split("val")
    own = tmp_path / "own.yml"
    own.write_text("{name: own, format: json, annotations: a.json, frames: '{name}.avi', splits: {}, labels: [a]}")
    with pytest.raises(InputError, match=f"see {own}"):
        read_annotations(load_project(own))


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(InputError, match="ucf101-24"):
        load_project("ucf")
    assert {"ucf101-24", "jhmdb21"} <= set(known_projects())
    path = own_project(tmp_path, {"v": video()})
    with pytest.raises(InputError, match="no subset 'test'; it has val"):
        make_gt_tubes(path, "test")
    (tmp_path / "val.txt").write_text("w\n")
    with pytest.raises(InputError, match="has no video 'w'"):
        make_gt_tubes(path, "val")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a\0b", "..\\x"])
def test_names_never_lead_outside_the_root(tmp_path, name):
    project = load_project(own_project(tmp_path, {"v": video()}))
    assert project.frames_path("a b/c.d@[1]") == tmp_path / "videos/a b/c.d@[1]"
    with pytest.raises(InputError, match="not a path below"):
        project.frames_path(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "not a readable"),
        ("- 1", "mapping"),
        ("[" * 1000, "not a readable"),
        ("\0", "not a readable"),
        ("name: a", "format: missing"),
        ({"name": "a/b"}, "name"),
        ({"format": "xml"}, "format"),
        ({"format": "jsn"}, "format: not one of .*; did you mean json?"),
        ({"frames": "x"}, "frames"),
        ({"splits": {"v": 3}}, "splits"),
        ({"splits": {"v": {"all_but": "v"}}}, "splits"),
        ({"labels": [False]}, "labels: is not a list of names"),  # `[no]` in YAML
        ({"labels": ["b", "b"]}, "labels: names one"),
        ({"typo": 1}, "typo"),
        ({"defaults": {"person_th": 0.5}}, "no such default"),
        ({"defaults": {"sim_th": 50}}, "between -1 and 1"),
        ({"defaults": {"psn_score_th": -1}}, "between 0 and 1"),
        ({"rate": 0}, "rate: is not a number above 0"),
        ({"rate": "fast"}, "rate: is not a number"),
        ({"stride": 2.5}, "stride: is not a whole number"),
        ({"stride": True}, "stride: is not a whole number from 1"),
        ({"rate": 5, "stride": 2}, "rate: says it alone; leave out stride"),
        ({"multi_label": 1}, "multi_label: is not true or false"),
        ({"format": "ava_csv", "rate": 1, "start": 902}, "start: of seconds only goes with format: ava"),
    ],
)
def test_damaged_project_files_are_told(tmp_path, content, message):
    """The whole text of a file, or fields in place of a sound one's."""
    sound = {"name": "a", "format": "json", "annotations": "a", "frames": "{name}", "splits": {"v": "v"}}
    (tmp_path / "p.yml").write_text(content if isinstance(content, str) else json.dumps(sound | content))
    with pytest.raises(InputError, match=rf"p\.yml.*{message}"):
        load_project(tmp_path / "p.yml")
