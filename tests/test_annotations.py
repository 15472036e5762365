"""Annotations, and what is refused in them."""

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.annotations import Video, fit_to_video, keep_fitting, read_annotations, read_video
from datasets.check import crowd
from datasets.config import load_project
from datasets.convert import convert
from datasets.formats import FORMATS
from datasets.formats.common import AnnotationFile, RawTube, RawVideo
from tests.pickles import pickled
from utils.box_ops import Tube
from utils.gt_tubes import label_frames, make_gt_tubes
from utils.misc import InputError
from utils.results import ground_truth_checksum

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


def own_project(folder: Path, videos: dict, labels=("stand", "walk"), **fields) -> Path:
    """A project of one's own with these annotated videos, all in the subset `val`."""
    (folder / "annotations.json").write_text(json.dumps({"labels": list(labels), "videos": videos}))
    (folder / "val.txt").write_text("".join(f"{name}\n" for name in videos))
    project = {
        "name": "own", "format": "json", "annotations": "annotations.json", "frames": "videos/{name}",
        "splits": {"val": "val.txt"}, "labels": list(labels) if fields else None, **fields,
    }  # fmt: skip
    (folder / "own.yml").write_text(json.dumps({k: v for k, v in project.items() if v is not None}))
    return folder / "own.yml"


def video(*tubes: dict, n_frames: int = 10) -> dict:
    return {"width": 100, "height": 80, "n_frames": n_frames, "tubes": list(tubes)}


def tube(frames=(0, 1), boxes=None, label=0, **more) -> dict:
    return {"label": label, "frames": list(frames), "boxes": boxes or [[10, 10, 30, 50]] * len(frames), **more}


@pytest.fixture(scope="module")
def ucf101():
    return read_annotations(load_project("ucf101-24", DATA, annotations="pyannot.pkl"))


@needs_data
def test_both_ucf101_files_give_the_same_4458_tubes(ucf101):
    a, b = ucf101, read_annotations(load_project("ucf101-24", DATA, annotations="finalAnnots.mat"))
    assert list(a) == list(b) or set(a) == set(b)
    assert sum(len(v.tubes) for v in a.values()) == 4458
    for name, x in a.items():
        y = b[name]
        assert (x.n_frames, len(x.tubes)) == (y.n_frames, len(y.tubes))
        for s, t in zip(x.tubes, y.tubes, strict=True):
            np.testing.assert_array_equal(s.frames, t.frames)
            np.testing.assert_array_equal(s.boxes, t.boxes)
            assert (s.label, s.person_id) == (t.label, t.person_id)
            assert s.frames[-1] < x.n_frames and s.frames[0] >= 0
            assert (s.boxes[:, 2:] > s.boxes[:, :2]).all() and (s.boxes[:, 2:] <= (320, 240)).all()


@needs_data
def test_ucf101_labels_and_subsets_agree_with_the_video_names(ucf101):
    project = load_project("ucf101-24", DATA)
    for name, annotated in ucf101.items():
        assert {project.labels[t.label] for t in annotated.tubes} <= {name.split("/")[0]}
    train, val = project.split("train"), project.split("val")
    assert (len(train), len(val), len(set(train) & set(val))) == (2284, 910, 0)


@needs_data
def test_jhmdb21_counts_frames_from_0_and_keeps_corners():
    tubes = make_gt_tubes("jhmdb21", "val", {"data_root": DATA})
    labels = load_project("jhmdb21", DATA).labels
    assert (len(tubes), len(labels), labels[0], labels[-1]) == (268, 21, "brush_hair", "wave")
    (first,) = tubes["brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0"]
    assert first.frames[0] == 0 and first.frames[-1] == 39
    np.testing.assert_array_equal(first.boxes[0], [72, 49, 248, 240])


@needs_data
def test_an_empty_subset_is_told():
    with pytest.raises(InputError, match=r"'train' is empty"):
        make_gt_tubes("jhmdb21", "train", {"data_root": DATA})


def test_ucf101_boxes_of_small_integers_do_not_overflow(tmp_path):
    boxes = np.array([[200, 150, 100, 90]], np.uint8)
    annotation = {
        "A/v": {"numf": np.uint8(3), "label": 0, "annotations": [{"label": 0, "sf": 2, "ef": 3, "boxes": boxes}]}
    }
    (tmp_path / "pyannot.pkl").write_bytes(pickled(annotation))
    (tmp_path / "list.txt").write_text("A/v.avi 1\n")
    path = own_project(
        tmp_path, {}, format="ucf101-24", annotations="pyannot.pkl", labels=["A"], splits={"val": "list.txt"}
    )
    (only,) = make_gt_tubes(path, "val")["A/v"]
    assert only.frames.tolist() == [2] and only.boxes.tolist() == [[200, 150, 300, 240]]


def test_own_format_labels_person_ids_and_videos_without_tubes(tmp_path):
    path = own_project(
        tmp_path,
        {"a.b c": video(tube(label="walk"), tube(label=None, person_id=7), tube(label=0)), "none": video()},
    )
    tubes = make_gt_tubes(path, "val")
    assert list(tubes) == ["a.b c", "none"] and tubes["none"] == []
    assert [(t.label, t.person_id) for t in tubes["a.b c"]] == [(1, 0), (-1, 7), (0, 2)]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (tube(boxes=[[0, 0, 5, 5], [0, 0, float("nan"), 5]]), "frame 1: box is not finite"),
        (tube(boxes=[[0, 0, 5, 5], [0, 0, float("inf"), 5]]), "frame 1: box is not finite"),
        (tube(boxes=[[9, 0, 5, 5], [0, 0, 5, 5]]), "frame 0: box is reversed"),
        (tube(boxes=[[200, 0, 205, 5], [0, 0, 5, 5]]), "frame 0: box is outside the frame"),
        (tube(frames=(8, 10)), "frame 10: frame is beyond"),
        (tube(frames=(-1, 0)), "frame -1: frame is negative"),
        (tube(frames=(3, 3)), "frame 3: frame does not come after"),
        (tube(boxes=[[90, 10, 160, 50], [0, 0, 5, 5]]), "frame 0: box is mostly outside the frame"),
        (tube(label=2), r"label 2 is not an index of the annotation's 2 labels"),
        (tube(label="Walk"), "label 'Walk' is not among stand, walk;"),
        (tube(frames=(1, 2, 3), boxes=[[1, 2, 3, 4]]), "3 frames, but 1 boxes"),
        (tube(frames=(1, 2.5)), "frames are not whole numbers"),
        (tube(frames=("1", "2")), "frames are text"),
        (tube(person_id="1"), "person_id '1' is not a whole number"),
        (tube(label=["walk"]), r"label \['walk'\] is not a whole number"),
        ([[0, 0, 5, 5]], "not a mapping"),
        (tube(boxes=[["0", "0", "5", "5"], [0, 0, 5, 5]]), "boxes are text; write numbers without quotes"),
        (tube(boxes=[[0, 0, 5], [0, 0, 5]]), "boxes are not rows of 4 numbers"),
        (tube(boxes=[[0, 0, 5], [0, 0, 5, 5]]), "boxes are not rows of one length"),
        ({"label": 0}, "'frames' is missing"),
        ({"frames": [0], "boxes": [[0, 0, 5, 5]]}, "'label' is missing"),
    ],
)
def test_impossible_annotations_are_refused_with_their_place(tmp_path, bad, text):
    path = own_project(tmp_path, {"good": video(tube()), "v": video(tube(), bad)})
    with pytest.raises(InputError, match=rf"annotations\.json: video 'v', tube 1.*{text}"):
        make_gt_tubes(path, "val")


def test_bad_videos_can_be_left_out_and_are_listed(tmp_path):
    path = own_project(tmp_path, {"good": video(tube()), "v": video(tube(label=9))})
    bad = {}
    assert list(read_annotations(load_project(path), bad=bad)) == ["good"]
    assert "'v', tube 0" in bad["v"]


def test_one_person_in_two_places_is_refused_and_with_two_actions_is_not(tmp_path):
    path = own_project(tmp_path, {"v": video(tube(person_id=3), tube(label=1, person_id=3))})
    assert len(make_gt_tubes(path, "val")["v"]) == 2
    away = tube(person_id=3, boxes=[[10, 10, 30, 50], [60, 10, 90, 50]])
    path = own_project(tmp_path, {"v": video(tube(person_id=3), away)})
    with pytest.raises(InputError, match="frame 1: person has two boxes"):
        make_gt_tubes(path, "val")


def test_empty_boxes_are_dropped_and_those_over_the_edge_kept_with_a_count(tmp_path, capsys):
    boxes = [[5, 5, 5, 9], [-3, 5, 20, 90], [7, 7, 8, 8]]
    path = own_project(tmp_path, {"v": video(tube(frames=(0, 1, 2), boxes=boxes))})
    (only,) = make_gt_tubes(path, "val")["v"]
    assert only.boxes.tolist() == boxes[1:] and only.frames.tolist() == [1, 2]
    warnings = capsys.readouterr().err
    assert "1 time: box is empty" in warnings and "1 time: box extends beyond" in warnings


def test_one_pixel_one_frame_and_unknown_sizes_are_no_faults():
    raw = RawTube(np.array([0]), np.array([[0.0, 0.0, 1.0, 1.0]]), None)
    video, faults = read_video("v", AnnotationFile(Path("a"), {"v": RawVideo(0, 0, 0, [raw])}), ["a"])
    assert not faults and video.tubes[0].label == -1 and video.tubes[0].person_id == 0


def test_a_tube_without_person_id_is_nobody_who_has_one(tmp_path):
    """Its index is taken where an id of another tube is not the same number."""
    away = [[60, 10, 90, 50]] * 2
    tubes = tube(), tube(person_id=2, boxes=away), tube(), tube(person_id=-1)
    path = own_project(tmp_path, {"v": video(*tubes)})
    assert [t.person_id for t in make_gt_tubes(load_project(path), "val")["v"]] == [0, 2, 4, 3]


@pytest.mark.parametrize("scale", [1, 3])
def test_the_rules_hold_against_the_decoded_size_where_the_annotation_states_none(tmp_path, scale):
    boxes = scale * np.array([[10, 10, 30, 50], [60, 20, 95, 70]], float)
    path = own_project(tmp_path, {"v": {"tubes": [tube((0, 1), boxes.tolist())]}})
    project, decoded = load_project(path), {"v": {"width": 100, "height": 80, "n_frames": 2}}
    assert list(read_annotations(project)) == ["v"]
    if scale == 1:
        assert list(keep_fitting(project, read_annotations(project), decoded)) == ["v"]
        return
    with pytest.raises(InputError, match=r"'v', frame 1: box is outside the frame \(180, 60, 285, 210\)"):
        keep_fitting(project, read_annotations(project), decoded)
    bad = {}
    assert (
        keep_fitting(project, read_annotations(project, ["v"], bad), decoded, bad) == {}
        and "box is outside" in bad["v"]
    )


def test_an_annotation_is_compared_with_the_frames_that_decode():
    boxes = np.tile(np.float32([10, 10, 30, 50]), (4, 1))
    annotated = read_video(
        "v", AnnotationFile(Path("a"), {"v": RawVideo(0, 0, 9, [RawTube(np.arange(4), boxes, 0)])}), "a"
    )
    video = annotated[0]
    fitted, faults = fit_to_video(video, (100, 80), 2)
    assert (fitted.width, fitted.height, fitted.n_frames) == (100, 80, 2) and fitted.tubes[0].frames.tolist() == [0, 1]
    assert [(fault.kind, fault.count) for fault in faults] == [
        ("number of frames is not the video's", 1),
        ("frame is after the last decoded one", 2),
    ]
    assert not fit_to_video(video, (100, 80), 12)[1]  # three more are a difference between decoders
    assert [fault.refused for fault in fit_to_video(video, (100, 80), 0)[1]] == [False, True]


@pytest.mark.parametrize("named", [False, True])
def test_label_indices_refer_to_the_annotation_files_own_list(tmp_path, named):
    """In a project file of another order every action would be another one."""
    labels = ["walk", "stand"]
    tubes = tube(label="walk" if named else 0), tube(label="stand" if named else 1)
    path = own_project(tmp_path, {"v": video(*tubes)}, labels=labels)
    project = json.loads(path.read_text()) | {"labels": ["sit", "stand", "walk"]}
    path.write_text(json.dumps(project))
    assert [t.label for t in make_gt_tubes(load_project(path), "val")["v"]] == [2, 1]
    path.write_text(json.dumps(project | {"labels": ["stand", "run"]}))
    with pytest.raises(InputError, match="tube 0: label 'walk' is not among stand, run;"):
        make_gt_tubes(load_project(path), "val")


def test_files_with_a_byte_order_mark_are_read_as_without(tmp_path):
    path = own_project(tmp_path, {"v": video(tube())})
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert list(make_gt_tubes(load_project(path), "val")) == ["v"]


def test_whole_frame_numbers_and_padded_labels_are_taken_as_meant(tmp_path):
    path = own_project(tmp_path, {"v": video(tube(frames=(1.0, 2.0), label="walk ", person_id=3.0))})
    (only,) = make_gt_tubes(load_project(path), "val")["v"]
    assert (only.frames.tolist(), only.label, only.person_id) == ([1, 2], 1, 3)


def test_a_conversion_to_json_keeps_the_ground_truth_to_the_last_bit(tmp_path):
    corner = np.random.default_rng(0).uniform(0, [50, 40], (500, 1, 2))
    boxes = np.concatenate([corner, np.add(corner, [1 / 3, 30.1])], 1).reshape(-1, 4)
    shown = tube(label="walk", frames=range(500), boxes=boxes.tolist(), person_id=3)
    project = own_project(tmp_path, {"a": video(shown, n_frames=500)})
    before = make_gt_tubes(project, "val")
    written = tmp_path / "annotations.json"
    convert(written, "json", {}, tmp_path / "converted.json")
    (tmp_path / "converted.json").replace(written)
    after = make_gt_tubes(project, "val")
    labels = ["stand", "walk"]
    assert ground_truth_checksum(after, labels) == ground_truth_checksum(before, labels)
    np.testing.assert_array_equal(after["a"][0].boxes, boxes.astype(np.float32))


def test_a_video_twice_in_the_json_is_refused(tmp_path):
    path = own_project(tmp_path, {"v": video(tube())})
    text = (tmp_path / "annotations.json").read_text()
    (tmp_path / "annotations.json").write_text(text.replace('"videos": {', '"videos": {"v": {"tubes": []}, '))
    with pytest.raises(InputError, match="'v' is there twice"):
        make_gt_tubes(load_project(path), "val")


def test_people_in_a_frame_are_counted_once_whatever_they_do():
    boxes = np.tile(np.float32([0, 0, 9, 9]), (3, 1))
    tubes = [Tube(np.arange(3) + i, boxes, 0, person_id=person) for i, person in enumerate([7, 8, 8, 9])]
    five = [Tube(np.arange(3), boxes, 0, person_id=i) for i in range(5)]
    videos = {name: Video(name, 0, 0, 0, of) for name, of in {"a": tubes[:1], "b": tubes, "c": [], "d": five}.items()}
    assert not list(crowd({"c": videos["c"]}, 1)) and not list(crowd(videos, 5))
    assert next(crowd(videos, 4)).startswith("5 people in frame 0 of 'd', but a detector of 4 queries")
    del videos["d"]
    assert not list(crowd(videos, 2)) and next(crowd(videos, 1)).startswith("2 people in frame 1 of 'b'")


def test_a_format_is_one_function_in_the_table(tmp_path, monkeypatch):
    def read(path: Path) -> AnnotationFile:
        raw = RawTube(np.array([int(path.read_text())]), np.array([[1.0, 2.0, 3.0, 4.0]]), "walk")
        return AnnotationFile(path, {"v": RawVideo(0, 0, 0, [raw])})

    monkeypatch.setitem(FORMATS, "one number", read)
    path = own_project(tmp_path, {"v": video()}, format="one number")
    (tmp_path / "annotations.json").write_text("5")
    (only,) = make_gt_tubes(load_project(path), "val")["v"]
    assert only.frames.tolist() == [5] and only.label == 1


def test_a_persons_whole_track_does_not_take_its_actions_away(tmp_path):
    boxes = [[10 + i, 10, 30 + i, 40] for i in range(8)]
    whole, walk = tube(range(8), boxes, None, person_id=1), tube(range(2, 5), boxes[2:5], "walk", person_id=1)
    other = tube(range(3), boxes[:3], None, person_id=2)
    (read,) = read_annotations(load_project(own_project(tmp_path, {"v": video(whole, walk, other)}))).values()
    tubes = [(t.person_id, t.label, t.frames.tolist()) for t in read.tubes]
    assert tubes == [(1, -1, [0, 1, 5, 6, 7]), (1, 1, [2, 3, 4]), (2, -1, [0, 1, 2])]
    assert read.tubes[0].boxes[:, 0].tolist() == [10, 11, 15, 16, 17]
    labels = label_frames(np.arange(8), np.array(boxes, np.float32), read.tubes[:2], 0.5, no_action=2)
    assert labels.tolist() == [2, 2, 1, 1, 1, 2, 2, 2]
