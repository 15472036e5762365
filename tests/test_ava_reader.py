"""Data in AVA's format: what is read, and the line that each usual mistake gets."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import check
from datasets.annotations import Video, read_annotations
from datasets.config import Project, load_project
from datasets.dataset import VideoFrames
from tests.videos import write_video
from utils.misc import InputError

MAP = "".join(f'item {{\n  name: "{name}"\n  id: {i}\n}}\n' for i, name in ((1, "stand"), (4, "talk"), (9, "wave")))
PROJECT = """
name: own
format: ava
annotations: train.csv
label_map: map.pbtxt
frames: frames/{name}
splits: {train: train.txt}
rate: 25
multi_label: true
"""
ROWS = "a,0,0.1,0.2,0.5,1.0,1,7\na,0000,0.1,0.2,0.5,1.0,4,7\na,0.04,0.1,0.2,0.5,1.0,4,7\na,0.12,0.2,0.2,0.5,1.0,1,7\n"


def own(folder: Path, rows: str = ROWS, label_map: str = MAP, n_frames: int = 5, **fields: object) -> Path:
    """A project of one video, 100 x 50 pixels."""
    text = PROJECT + "".join(f"{name}: {value}\n" for name, value in fields.items())
    for name, content in (("own.yml", text), ("train.csv", rows), ("map.pbtxt", label_map), ("train.txt", "a\n")):
        (folder / name).write_text(content)
    (folder / "frames" / "a").mkdir(parents=True, exist_ok=True)
    for i in range(n_frames):
        cv2.imwrite(str(folder / "frames" / "a" / f"{i:04d}.png"), np.full((50, 100, 3), 10 * i, np.uint8))
    return folder / "own.yml"


def read(path: Path) -> tuple[Project, Video]:
    project = load_project(path)
    return project, read_annotations(project, ["a"])["a"]


def test_an_action_is_a_tube_and_a_person_has_several(tmp_path: Path) -> None:
    project, video = read(own(tmp_path))
    assert project.labels == ["stand", "talk", "wave"]
    assert [project.label_id(label) for label in range(3)] == [1, 4, 9]
    assert (video.width, video.height) == (100, 50)  # of the images themselves
    stand, talk = sorted(video.tubes, key=lambda tube: tube.label)
    assert (stand.label, stand.person_id, stand.frames.tolist()) == (0, 7, [0, 3])
    assert (talk.label, talk.person_id, talk.frames.tolist()) == (1, 7, [0, 1])
    np.testing.assert_allclose(stand.boxes, [[10, 10, 50, 50], [20, 10, 50, 50]])
    assert video.key_frames.tolist() == [0, 1, 3]


def test_boxes_without_an_evaluated_action_are_people_all_the_same(tmp_path: Path) -> None:
    rows = ROWS + "a,0.12,0.6,0.2,0.9,1.0,80,8\na,0,0.1,0.2,0.5,1.0,80,7\na,0.16\n"
    _, video = read(own(tmp_path, rows, other_classes="true"))
    idle = [tube for tube in video.tubes if tube.label < 0]
    assert [(tube.person_id, tube.frames.tolist()) for tube in idle] == [(8, [3])]
    assert video.key_frames.tolist() == [0, 1, 3, 4]
    assert video.empty_frames.tolist() == [4]


def test_excluded_and_included_seconds(tmp_path: Path) -> None:
    (tmp_path / "excluded.csv").write_text("a,0000\nb,0.04\n")
    (tmp_path / "included.txt").write_text("0\n0.04\n0.08\n")
    _, video = read(own(tmp_path, excluded="[excluded.csv]", included="included.txt"))
    assert {frame for tube in video.tubes for frame in tube.frames.tolist()} == {1, 3}
    assert video.key_frames.tolist() == [1, 2, 3]


def test_rows_without_a_person_are_people_by_themselves(tmp_path: Path) -> None:
    rows = "a,0,0.1,0.2,0.5,1.0,1\na,0,0.1,0.2,0.5,1.0,4\na,0,0.6,0.2,0.9,1.0,4\na,0.04,0.1,0.2,0.5,1.0,4\n"
    project, video = read(own(tmp_path, rows))
    people = {}
    for tube in video.tubes:
        people.setdefault(tube.person_id, []).append(tube.label)
    assert sorted(map(sorted, people.values())) == [[0, 1], [1], [1]]
    assert "line 1: no person id" in project.annotation_file().notes[0]


def test_subsets_of_a_folder_are_lists(tmp_path: Path) -> None:
    path = own(tmp_path)
    text = path.read_text().replace("train.csv", "csv").replace("map.pbtxt", "../map.pbtxt")
    text = text.replace("{train: train.txt}", "{train: {list: train, number: 1}, val: {list: val, number: 1}}")
    path.write_text(text + "subsets: {train: a.csv, val: b.csv}\n")
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.csv").write_text(ROWS)
    (tmp_path / "csv" / "b.csv").write_text(ROWS.replace("a,", "b,"))
    project = load_project(path)
    assert [project.split(subset) for subset in ("train", "val")] == [["a"], ["b"]]
    assert len(read_annotations(project, ["a"])["a"].tubes) == 2


@pytest.mark.parametrize(("offset", "image"), [(None, 61), (1, 62), (-1, 60)])
def test_the_image_of_a_second_is_the_one_that_each_code_takes(offset: int | None, image: int, tmp_path: Path) -> None:
    """Folders at 30 images a second of videos cut from 15:00: SlowFast's, and mmaction2's two data sets."""
    fields = {"start": 902, "end": 902, "video_start": 900, "image_rate": 30, "rate": 1}
    fields |= {} if offset is None else {"image_offset": offset}
    project = load_project(own(tmp_path, "a,0902,0.1,0.2,0.5,1.0,1,7\n", **fields))
    for i in range(1, 64):
        path = tmp_path / "frames" / "b" / f"b_{i:06d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((2, 2, 3), i, np.uint8))
    frames = list(VideoFrames(project.frames_path("b"), project.sampling))
    assert [frame[0, 0, 0] for frame in frames] == [image]


def test_whole_and_cut_videos_show_the_same_seconds(tmp_path: Path) -> None:
    frames = [np.full((16, 16, 3), 6 * i, np.uint8) for i in range(40)]
    write_video(tmp_path / "whole.mkv", frames, "ffv1", "bgr0", times=range(0, 200, 5))  # 5 a second, from second 0
    write_video(tmp_path / "cut.mkv", frames[10:], "ffv1", "bgr0", times=range(0, 150, 5))
    shown = []
    for name, fields in (("whole", {}), ("cut", {"video_start": 2})):
        path = own(tmp_path, "a,3,0.1,0.2,0.5,1.0,1,7\n", rate=1, start=3, end=6, **fields)
        video = VideoFrames(tmp_path / f"{name}.mkv", load_project(path).sampling)
        shown.append([int(frame[0, 0, 0]) for frame in video])
    assert shown == [[6 * i for i in (15, 20, 25, 30)]] * 2


def test_videos_are_found_with_any_extension(tmp_path: Path) -> None:
    path = own(tmp_path, frames="'videos/{name}.*'")
    (tmp_path / "videos").mkdir()
    for name in ("a.webm", "ab.mp4", "a[1].mkv"):
        (tmp_path / "videos" / name).touch()
    project = load_project(path)
    found = [project.frames_path(name).name for name in ("a", "ab", "a[1]", "missing")]
    assert found == ["a.webm", "ab.mp4", "a[1].mkv", "missing.*"]


@pytest.mark.parametrize(
    ("rows", "label_map", "fields", "message"),
    [
        ("a,0,10,20,50,60,1,7\n", MAP, {}, r"train.csv, line 1: x1 10.0 is no share of the picture \(0 to 1\)"),
        (ROWS + "a,0,0.1,0.2,0.5,1.0,0,7\n", MAP, {}, r"train.csv, line 5: class 0 is not in the label map"),
        (ROWS.replace("1.0,1,", "1.0,80,").replace("1.0,4,", "1.0,81,"), MAP, {"other_classes": "true"},
         r"train.csv: not one of its classes is in the label map \(ids 1 to 9\)"),
        (ROWS, "classes: 3", {}, r"map.pbtxt: not a label map: no class in it"),
        ("video,second\n" + ROWS, MAP, {}, r"train.csv, line 1: 'second' is not a number \(a header line"),
        (ROWS, MAP, {"start": 900}, r"train.csv, line 1: second 0 lies before the first frame, .* set start to .*more"),
        (ROWS + "a,0,0.5,0.2,0.1,1.0,1,7\n", MAP, {}, r"train.csv, line 5: the box \(.*\) is reversed"),
        (ROWS + "a,0,0.1,0.2,0.5,1.0,1,0.93\n", MAP, {}, r"train.csv, line 5: person id 0.93 is not a whole"),
        (ROWS + "a,0.05,0.1,0.2,0.5,1.0,1,7\n", MAP, {}, r"two of its seconds are frame 1 at 25 a second"),
        (ROWS, MAP, {"rate": ""}, r"rate"),
    ],
)  # fmt: skip
def test_mistakes_name_their_line(rows: str, label_map: str, fields: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(own(tmp_path, rows, label_map, **fields))


def run_check(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["check", "--dataset", str(path), "--sheet", str(path.parent / "sheet.png")])
    try:
        check.main()
    except InputError as error:
        return capsys.readouterr().out + str(error)
    return capsys.readouterr().out


def test_the_check_names_the_second_that_has_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(tmp_path, ROWS + "a,0008,0.1,0.2,0.5,1.0,1,7\n")
    printed = run_check(path, monkeypatch, capsys)
    assert "frame is beyond the video's end (5 frames decode), second 8 (train.csv, line 5)" in printed
    assert "key frames" not in printed  # gaps are what this format is made of


def test_the_check_tells_of_names_with_extensions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run_check(own(tmp_path, ROWS.replace("a,", "a.mp4,")), monkeypatch, capsys)
    assert "train.csv, line 1: 'a.mp4' ends with a file extension" in printed
    assert "0 errors, 1 warning" in printed
