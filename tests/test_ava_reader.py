"""Data in AVA's format: what is read, and the line that each usual mistake gets."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import check
from datasets.annotations import Video, read_annotations
from datasets.config import Project, load_project
from datasets.dataset import VideoFrames
from datasets.export_predictions import export_ava
from datasets.formats.ava import csv_options, csv_writing
from datasets.make_shards import make_shards
from datasets.predictions import data_set_options, read_predictions
from datasets.use_shards import ClipDataset
from tests.videos import write_video
from utils.box_ops import Tube
from utils.metrics.evaluation import Evaluation
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
    ids = {name: number for number, name in project.annotation_file.label_ids.items()}
    assert [ids[label] for label in project.labels[:3]] == [1, 4, 9]
    assert (video.width, video.height) == (100, 50)  # of the images themselves
    stand, talk = sorted(video.tubes, key=lambda tube: tube.label)
    assert (stand.label, stand.person_id, stand.frames.tolist()) == (0, 7, [0, 3])
    assert (talk.label, talk.person_id, talk.frames.tolist()) == (1, 7, [0, 1])
    np.testing.assert_allclose(stand.boxes, [[10, 10, 50, 50], [20, 10, 50, 50]])
    assert video.key_frames.tolist() == [0, 1, 3]


def test_ids_that_would_be_one_as_floats_are_refused(tmp_path: Path) -> None:
    rows = "a,0,0.1,0.2,0.5,1.0,1,{}\na,0.04,0.1,0.2,0.5,1.0,1,{}\n"
    _, video = read(own(tmp_path, rows.format(2**53 - 1, 2**53 - 2)))
    assert {tube.person_id for tube in video.tubes} == {2**53 - 1, 2**53 - 2}
    with pytest.raises(InputError, match=r"train\.csv, line 1: person id 9007199254740992 is not below 2\^53"):
        read(own(tmp_path, rows.format(2**53, 2**53 + 1)))


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
    assert "line 1: no person id" in project.annotation_file.notes[0]


def test_an_id_in_two_places_says_nothing_about_who_is_who(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, near = "0.1,0.2,0.5,1.0", "0.6,0.2,0.9,1.0", "0.12,0.2,0.5,1.0"
    rows = f"a,0,{one},1,7\na,0,{two},4,7\na,0,{two},1,7\na,0.04,{one},1,7\na,0.04,{near},4,7\na,0,{near},4,8\n"
    _, video = read(own(tmp_path, rows))
    people: dict[int, set] = {}
    for tube in video.tubes:
        people.setdefault(tube.person_id, set()).update((tube.label, frame) for frame in tube.frames.tolist())
    assert people.pop(7) == {(0, 1), (1, 1)} and people.pop(8) == {(1, 0)}
    assert sorted(map(sorted, people.values())) == [[(0, 0)], [(0, 0), (1, 0)]]
    line = "train.csv, line 1: person 7 is in two places in second 0; such boxes are people by themselves (3 lines)"
    assert line in capsys.readouterr().err


def test_clips_have_the_rows_of_their_part_of_the_source(tmp_path: Path) -> None:
    box = "0.1,0.2,0.5,1.0"
    rows = f"a,0060,{box},1\na,60.05,{box},4\na,0099,{box},1\nb,5,{box},1\n"
    path = own(tmp_path, rows, frames="'clips/{name}'", clips="true")
    clip = tmp_path / "clips" / "a_000060_000062"
    clip.parent.mkdir()
    (tmp_path / "frames" / "a").rename(clip)
    project = load_project(path)
    file = project.annotation_file
    assert list(file.videos) == [clip.name]
    assert "train.csv, line 3: no clip of 'a' has second 99; such rows are left out (2 lines)" in file.notes[1]
    video = read_annotations(project, [clip.name])[clip.name]
    assert sorted((tube.label, tube.frames.tolist()) for tube in video.tubes) == [(0, [0]), (1, [1])]
    (tmp_path / "train.csv").write_text(f"c,0060,{box},1\n")
    with pytest.raises(InputError, match=r"train.csv: no row has a clip .*clips/\{name\} named <name>_<first second>"):
        load_project(path)


def test_a_csv_of_predictions_has_the_seconds_of_key_frames(tmp_path: Path) -> None:
    """Whatever frame shows a second, and of clips the second of the source."""
    boxes = np.array([[10.0, 10, 50, 50]] * 2)
    written, clip = [], "a_000060_000062"
    of_clip = (clip, "a,60.05,0,0,1,1,1\n", "true")
    for name, rows, clips in (("a", ROWS.replace("0.04", "0.05"), "false"), of_clip):
        path = own(tmp_path, rows, clips=clips)
        (tmp_path / "frames" / clip).mkdir(exist_ok=True)
        file = load_project(path).annotation_file
        e = Evaluation({name: [Tube([1, 2], boxes, 0, frame_scores=np.array([0.5, 0.25]))]}, {}, {name: (100, 50, 5)},
                       ["stand"], [0.5], "ava", ava_csv=csv_writing(file))  # fmt: skip
        written += [line.split(",")[:2] for line in export_ava(tmp_path, e).read_text().splitlines()]
    assert written == [["a", "0.05"], ["a", "0.08"], ["a", "60.05"], ["a", "60.08"]]


def test_classes_of_predictions_are_those_of_a_label_map_with_gaps(tmp_path: Path) -> None:
    project, video = read(own(tmp_path))
    path = tmp_path / "detections.csv"
    path.write_text(ROWS.replace(",7\n", ",0.5\n"))
    options = csv_options(project.annotation_file)
    raw = read_predictions(path, "ava_csv", data_set_options("ava_csv", project.labels, {"a": (100, 50, 5)}, options))
    annotated = sorted((tube.label, frame) for tube in video.tubes for frame in tube.frames.tolist())
    assert raw.labels == project.labels
    assert sorted(zip(raw.label[raw.tube].tolist(), raw.frames.tolist(), strict=True)) == annotated


def test_files_of_excluded_seconds_may_be_empty_and_name_files(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "excluded.csv").write_text("a.mp4,0000\na.MP4,0.12\n")
    project, video = read(own(tmp_path, excluded="[empty.csv, excluded.csv]"))
    assert video.key_frames.tolist() == [1]
    assert "excluded.csv, line 1: 'a.mp4' ends with a file extension" in project.annotation_file.notes[0]


def test_a_label_map_of_80_classes_is_told(tmp_path: Path) -> None:
    names = {i: f"class {i}" for i in range(1, 81)} | {12: "stand", 80: "watch (a person)"}
    text = "".join(f'label {{\n  name: "{name}"\n  label_id: {i}\n}}\n' for i, name in names.items())
    project, _ = read(own(tmp_path, label_map=text))
    (note,) = project.annotation_file.notes
    assert "map.pbtxt: a label map of 80 classes; published figures of AVA are over 60 of them" in note


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
    video = project.open_video("b")
    assert [frame[0, 0, 0] for frame in video] == (video.chosen() + 1).tolist() == [image]


def test_seconds_between_frames_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Key frames of AVA-Kinetics are at fractions of seconds: at a rate of 1 boxes would be of another moment."""
    path = own(tmp_path, "".join(f"a,{time},0.1,0.2,0.5,1.0,1,7\n" for time in (0, 0.52, 1.14)))
    read(path)
    assert capsys.readouterr().err == ""  # half a frame
    path.write_text(path.read_text().replace("rate: 25", "rate: 2"))
    read(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "line 3: second 1.14 has no frame at 2 a second; its boxes go to one up to 0.14 s away (1 line)" in line


def test_a_first_frame_of_1_is_no_second_that_the_rate_begins_at(tmp_path: Path) -> None:
    rows = "".join(f"a,{frame},0.1,0.2,0.5,1.0,1,7\n" for frame in range(1, 26))
    path = own(tmp_path, rows, n_frames=25, time="frames", start=1)
    path.write_text(path.read_text().replace("rate: 25", "rate: 5"))
    project, video = read(path)
    (tube,) = video.tubes
    assert tube.frames.tolist() == list(range(5)) and len(list(project.open_video("a"))) == 5


@pytest.mark.parametrize(("fields", "frames"), [({}, [0, 2]), ({"stride": 2}, [0, 1])])
def test_boxes_of_frames_after_the_end_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict, frames: list[int]
) -> None:
    """Also where rows name frames and no rate chooses them."""
    rows = "".join(f"a,{frame},0.1,0.2,0.5,1.0,{label}\n" for frame, label in ((0, "1,7"), (2, "1,7"), (9, "4,7")))
    path = own(tmp_path, rows, n_frames=10, time="frames", start=0, end=0.1, **fields)  # 25 images a second: 3 frames
    path.write_text(path.read_text().replace("rate: 25\n", ""))
    project, video = read(path)
    (tube,) = video.tubes
    assert tube.frames.tolist() == frames
    assert "1 time: frame is after the last one used, left out; first in video 'a', frame 9" in capsys.readouterr().err
    assert make_shards(project, "train", tmp_path / "shards", workers=1) == {}
    assert ClipDataset(tmp_path / "shards").videos[0].frames.tolist() == frames


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
        (ROWS, MAP, {"clips": "true", "excluded": "[seconds.csv]"}, r"`excluded` and `included` go without them"),
        (ROWS, MAP, {"video_start": 900}, r"own.yml: start: 0 is before video_start 900, the first second of files"),
        (ROWS, MAP, {"start": 902, "end": 2}, r"own.yml: end: is before start 902"),
        (ROWS, MAP, {"proposal_file": "p.pkl"}, r"own.yml: proposal_file: not a field of a project file; known are"),
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


def test_the_check_names_videos_that_only_one_side_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(tmp_path, ROWS + ROWS.replace("a,", "b,"))
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    printed = run_check(path, monkeypatch, capsys)
    assert "error: the annotation has no video 'c'" in printed
    assert "frames/b: no such video file or folder of images" in printed
