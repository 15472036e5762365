"""The synthetic data set: fixed by its seed, annotated as rendered, and as hard as documented."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.dataset import VideoFrames
from datasets.synthetic.people import ACTIONS, IDLE, LIFT, mirrored, random_looks, skeleton
from datasets.synthetic.videos import FAST_EVERY, MIN_VISIBLE, Scene, _tubes, make_synthetic, plan, render
from tests.pickled_layouts import FILES, write_pickled_layout
from tests.processes import start_server
from utils.box_ops import Tube, motion_category, paired_iou
from utils.misc import InputError, rng

SMALL = {"n_train": 3, "n_val": 1, "width": 96, "height": 72, "length": (14, 18)}
BONES = [("shoulder_l", "elbow_l"), ("elbow_r", "hand_r"), ("hip_l", "knee_l"), ("knee_r", "foot_r"), ("hip", "neck")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_synthetic(root / "synthetic", **SMALL)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def scenes(n: int, fast: bool, n_frames: int = 40) -> list[Scene]:
    return [plan(rng(7, i), n_frames, 160, 120, 4, fast) for i in range(n)]


def annotated(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (T, P, 4) and visible shares (T, P) of all frames."""
    _, boxes, seen = zip(*(render(scene, t) for t in range(len(scene.poses))), strict=True)
    return np.stack(boxes), np.stack(seen)


def test_a_seed_fixes_every_byte_whatever_the_workers(data: Path, tmp_path: Path) -> None:
    start_server()
    make_synthetic(tmp_path / "two", **SMALL, workers=2)
    make_synthetic(tmp_path / "other", **SMALL, seed=1)
    same, other = digests(data / "synthetic"), digests(tmp_path / "other")
    assert len(same) == 3 + 1 + 3
    assert digests(tmp_path / "two") == same
    assert same.keys() == other.keys()
    assert all(same[name] != other[name] for name in same if not name.endswith(".txt"))


@pytest.fixture(scope="module")
def two_at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough for several key frames a second apart; walkers and runners wave."""
    root = tmp_path_factory.mktemp("two") / "synthetic"
    make_synthetic(root, 2, 1, 96, 72, (51, 55), two_at_once=1.0, layout="ava")
    return root


def test_people_do_two_things_at_once_and_nothing_else_changes(two_at_once: Path, tmp_path: Path) -> None:
    make_synthetic(tmp_path, 2, 1, 96, 72, (51, 55))
    both, single = (json.loads((root / "annotations.json").read_text()) for root in (two_at_once, tmp_path))
    walk, run, wave = (both["labels"].index(name) for name in ("walk", "run", "wave"))
    pairs = 0
    for name, video in both["videos"].items():
        before = [(t["label"], t["person_id"], t["frames"][0]) for t in single["videos"][name]["tubes"]]
        after = [(t["label"], t["person_id"], t["frames"][0]) for t in video["tubes"]]
        added = [key for key in after if key not in before]
        assert len(added) == sum(label in (walk, run) for label, _, _ in before)
        assert all(label == wave for label, _, _ in added)
        assert {(p, first) for _, p, first in added} == {(p, f) for label, p, f in before if label in (walk, run)}
        pairs += len(added)
    assert pairs >= 2
    assert digests(two_at_once / "videos") != digests(tmp_path / "videos")  # the arm is up


def test_the_layout_of_ava_holds_every_person_on_key_frames(two_at_once: Path) -> None:
    project = load_project(two_at_once / "project.yml")
    annotation = json.loads((two_at_once / "annotations.json").read_text())
    assert (project.labels, project.multi_label) == (annotation["labels"], True)
    assert [len(project.split(subset)) for subset in ("train", "val")] == [2, 1]
    held = 0
    for name, video in read_annotations(project).items():
        expected = {}
        for tube in annotation["videos"][name]["tubes"]:
            for frame, box in zip(tube["frames"], tube["boxes"], strict=True):
                if frame % 25 == 0:
                    expected[frame // 25, tube["person_id"], -1 if tube["label"] is None else tube["label"]] = box
        boxes = {(f, t.person_id, t.label): b for t in video.tubes for f, b in zip(t.frames, t.boxes, strict=True)}
        assert boxes.keys() == expected.keys()
        np.testing.assert_allclose([boxes[key] for key in expected], list(expected.values()), atol=0.01)
        assert video.key_frames.tolist() == [0, 1, 2]
        held += len(boxes)
        assert sum(1 for _ in VideoFrames(project.frames_path(name), project.sampling)) == 3
    assert held > 10


@pytest.mark.parametrize("layout", ["multisports", "jhmdb21", "ucf101-24"])
def test_other_layouts_hold_the_action_tubes(layout: str, tmp_path: Path) -> None:
    size = (320, 240) if layout == "ucf101-24" else (96, 72)
    of_pickle = layout in FILES
    make_synthetic(tmp_path, 1, 1, *size, (30, 34), two_at_once=1.0, layout="json" if of_pickle else layout)
    if of_pickle:
        write_pickled_layout(tmp_path, layout)
    project = load_project(tmp_path / "project.yml")
    annotation = json.loads((tmp_path / "annotations.json").read_text())
    assert len([*tmp_path.glob("*.pkl")]) == of_pickle
    videos = read_annotations(project)
    assert sorted(videos) == sorted(annotation["videos"]) == sorted(project.split("train") + project.split("val"))
    for name, video in videos.items():
        expected = {}
        for tube in annotation["videos"][name]["tubes"]:
            if tube["label"] is not None:
                for frame, box in zip(tube["frames"], tube["boxes"], strict=True):
                    expected.setdefault((tube["label"], frame), []).append(box)
        found = {}
        for tube in video.tubes:
            assert (np.diff(tube.frames) == 1).all()
            for frame, box in zip(tube.frames.tolist(), tube.boxes.tolist(), strict=True):
                found.setdefault((tube.label, frame), []).append(box)
        assert found.keys() == expected.keys()
        for key, boxes in expected.items():
            np.testing.assert_allclose(sorted(found[key]), sorted(boxes), atol=0.01)
        assert video.n_frames == annotation["videos"][name]["n_frames"]


def test_videos_do_not_depend_on_how_many_there_are(data: Path, tmp_path: Path) -> None:
    make_synthetic(tmp_path, **{**SMALL, "n_train": 2})
    few, many = digests(tmp_path), digests(data / "synthetic")
    assert all(many[name] == few[name] for name in few if name.endswith(".avi"))


def test_the_chain_reads_it_as_any_other_data_set(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = load_project("synthetic", data)
    held = json.loads((data / "synthetic" / "annotations.json").read_text())
    assert project.labels == list(ACTIONS) == held["labels"]
    names = {subset: project.split(subset) for subset in ("train", "val")}
    assert [len(names["train"]), len(names["val"])] == [3, 1]
    videos = read_annotations(project)
    assert sorted(videos) == sorted(names["train"] + names["val"])
    assert capsys.readouterr().err == ""  # no box was dropped, clipped or warned of
    for name, video in videos.items():
        frames = VideoFrames(project.frames_path(name))
        assert frames.size == (video.width, video.height) == (96, 72)
        assert frames.announced == video.n_frames == sum(1 for _ in frames)
        assert 14 <= video.n_frames <= 18
        for tube in video.tubes:
            assert (tube.boxes[:, :2] >= 0).all()
            assert (tube.boxes[:, 2:] <= (video.width, video.height)).all()
            assert (tube.boxes[:, 2:] > tube.boxes[:, :2]).all()
            assert tube.frames[-1] < video.n_frames
        for person in {tube.person_id for tube in video.tubes}:
            frames_of = np.concatenate([t.frames for t in video.tubes if t.person_id == person])
            assert len(set(frames_of)) == len(frames_of)  # one tube after another


@pytest.mark.parametrize("fast", [False, True])
def test_boxes_bound_what_can_be_seen(fast: bool) -> None:
    checked = 0
    for scene in scenes(4, fast):
        for t in (0, 17, 39):
            everyone = range(len(scene.looks))
            frame, boxes, seen = render(scene, t)
            for p in everyone:
                without, _, _ = render(scene, t, [q for q in everyone if q != p])
                changed = (frame != without).any(-1)
                if seen[p] < MIN_VISIBLE or np.abs(frame - without.astype(int)).max(-1).astype(bool).sum() < 20:
                    continue
                rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
                extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                assert (extent[:2] >= np.floor(boxes[p, :2])).all()
                assert (extent[2:] <= np.ceil(boxes[p, 2:])).all()
                assert np.abs(extent - boxes[p]).max() < 2.5
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("fast", [False, True])
def test_the_visible_share_falls_as_people_stand_before(fast: bool) -> None:
    shares = []
    for scene in scenes(12, fast):
        for t in (5, 30):
            alone = [render(scene, t, [p])[2][p] for p in range(len(scene.looks))]
            together = render(scene, t)[2]
            assert (together <= np.array(alone) + 1e-9).all()
            nearest = scene.feet[t, :, 1].argmax()
            assert together[nearest] == alone[nearest]
            shares += list(together)
    assert min(shares) < 0.9 and max(shares) <= 1


@pytest.mark.slow
def test_fast_videos_break_linking_by_overlap_and_others_do_not() -> None:
    wrong, low, categories = {}, {}, {}
    for fast in (False, True):
        stolen, ious, motion = [], [], []
        for scene in scenes(4, fast):
            boxes, seen = annotated(scene)
            motion += map(motion_category, action_tubes(scene, boxes, seen))
            visible = seen >= MIN_VISIBLE
            for p in range(len(scene.looks)):
                moving = (scene.labels[:-1, p] >= 0) & visible[:-1, p] & visible[1:, p]
                own = paired_iou(boxes[:-1, p], boxes[1:, p])[moving]
                others = paired_iou(boxes[:-1, p, None], boxes[1:]) * visible[1:]
                others[:, p] = 0
                stolen += list(others.max(1)[moving] > own)
                ious += list(own)
        wrong[fast], low[fast], categories[fast] = np.mean(stolen), np.mean(np.array(ious) < 0.1), motion
    assert wrong[True] > 0.3 > 0.1 > wrong[False]
    assert low[True] > 0.35 > 0.1 > low[False]
    assert categories[True].count("large") > 0.7 * len(categories[True])
    assert {"small", "medium", "large"} <= set(categories[False])
    assert FAST_EVERY <= 3  # the held-out videos have enough of them


def action_tubes(scene: Scene, boxes: np.ndarray, seen: np.ndarray) -> list[Tube]:
    return [Tube(t["frames"], t["boxes"]) for t in _tubes(scene, boxes, seen) if t["label"] is not None]


def test_people_pause_before_between_and_after() -> None:
    before, between, after, acting = 0, 0, 0, set()
    for fast in (False, True):
        for scene in scenes(20, fast, 64):
            for labels in scene.labels.T:
                runs = labels[np.flatnonzero(np.diff(labels, prepend=-2))]
                before, after = before + (runs[0] < 0), after + (runs[-1] < 0)
                between += (runs[1:-1] < 0).any()
                acting |= set(runs[runs >= 0])
    assert min(before, between, after) >= 20
    assert acting == set(range(len(ACTIONS)))


def test_people_of_a_video_look_different() -> None:
    looks = [random_looks(rng(3, i), 4) for i in range(50)]
    clothes = np.array([[(*a.shirt, *a.trousers) for a in group] for group in looks], float)
    distance = np.linalg.norm(clothes[:, :, None] - clothes[:, None], axis=-1)
    assert distance[:, ~np.eye(4, dtype=bool)].min() > 60
    assert len({look for group in looks for look in group}) == 200


@pytest.mark.parametrize("name", ["idle", *ACTIONS])
def test_bodies_keep_their_bones_and_stand_on_the_floor(name: str) -> None:
    action = IDLE if name == "idle" else ACTIONS[name]
    poses = np.array([action.pose(cycle) for cycle in np.linspace(0, 1, 25)])
    bodies = [skeleton(pose) for pose in poses]
    for a, b in BONES:
        lengths = [np.linalg.norm(body[a] - body[b]) for body in bodies]
        np.testing.assert_allclose(lengths, lengths[0], rtol=0.02)
    lowest = [min(body[f"{part}_{side}"][1] for part in ("foot", "toe") for side in "lr") for body in bodies]
    np.testing.assert_allclose(lowest, poses[:, LIFT] + 0.028, atol=1e-9)
    np.testing.assert_array_equal(mirrored(mirrored(poses)), poses)
    np.testing.assert_allclose(poses[0], poses[-1], atol=1e-6)  # a cycle ends where it began


def test_actions_differ_in_how_the_body_moves() -> None:
    """No two actions share a series of poses, whatever the moment they start at."""
    cycles = np.arange(24) / 24
    series = {name: np.array([action.pose(c) for c in cycles]) for name, action in ACTIONS.items()}
    for a in series:
        for b in series:
            if a < b:
                gaps = [np.abs(series[a] - np.roll(series[b], k, 0)).mean(0).max() for k in range(24)]
                assert min(gaps) > 15, (a, b)  # degrees, of the joint that differs most


@pytest.mark.parametrize(
    "wrong", [{"layout": "ucf101-24"}, {"length": (9, 3)}, {"length": (0, 3)}, {"width": 8}, {"width": 1000}]
)
def test_sizes_that_cannot_be_used_are_refused(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--"):
        make_synthetic(tmp_path / "never", **{**SMALL, **wrong})
    assert not (tmp_path / "never").exists()


def test_single_frames_and_single_people_are_possible(tmp_path: Path) -> None:
    make_synthetic(tmp_path, 2, 1, 64, 48, (1, 1), max_people=1)
    videos = json.loads((tmp_path / "annotations.json").read_text())["videos"]
    assert [video["n_frames"] for video in videos.values()] == [1, 1, 1]
    assert all({t["person_id"] for t in video["tubes"]} == {0} for video in videos.values())
