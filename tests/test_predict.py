"""predict.py on small videos with models of random weights: every frame drawn in its place, and bad input told."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import predict
from benchmarks.predict import write_models
from datasets.config import DEFAULTS
from datasets.dataset import VideoFrames
from datasets.formats import cvat_video, cvat_writer
from datasets.frame_batches import AHEAD
from datasets.sampling import Sampling
from models.detectors import Detections, Detector
from models.linkers import LINKERS
from tests.videos import gradient_frames, write_video
from utils.drawing.timeline import Person, Strip
from utils.drawing.video_writer import MIN_SIDE
from utils.flags import DETECTOR_BATCH
from utils.misc import InputError
from utils.storage.files import save_torch

LENGTH = 3 * predict.BLOCK + 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


def run(models: Path, out: Path, *flags: object) -> None:
    weights = [f"--{name}={models / name}.pth" for name in ("detr", "encoder", "head")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["predict.py", *map(str, flags), *weights, f"--out={out}", "--threads=1"])
        patch.setattr(sys, "argv", [*sys.argv, "--device=cpu", "--image_size=32"])
        predict.main()


def result(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_video_shows_every_frame_and_changes_no_number(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [np.full((48, 64, 3), (i, 255 - i, 128), np.uint8) for i in range(LENGTH)]
    video = write_video(tmp_path / "a.mp4", frames, options={"crf": "10"})
    waiting = []
    draw = predict.Drawing.draw

    def watched(drawing: predict.Drawing, last: int) -> None:
        waiting.append(len(drawing.images))
        draw(drawing, last)

    monkeypatch.setattr(predict.Drawing, "draw", watched)
    run(models, tmp_path / "with", video)
    run(models, tmp_path / "without", video, "--no_video")
    assert f"{LENGTH} frames, " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "with").iterdir()) == ["a.json", "a.mp4"]
    assert [path.name for path in (tmp_path / "without").iterdir()] == ["a.json"]
    numbers, plain = (result(tmp_path / name / "a.json") for name in ("with", "without"))
    assert numbers == plain and numbers["n_frames"] == LENGTH and numbers["people"] and numbers["tubes"]
    shown = np.stack([frame[:8, -8:].mean((0, 1)) for frame in VideoFrames(tmp_path / "with" / "a.mp4")])
    expected = np.stack([frame[0, 0] for frame in frames])
    away = np.abs(shown - expected).max(1) < 6  # where no box covers the corner
    assert len(shown) == LENGTH and away.mean() > 0.5
    assert max(waiting) <= 2 * predict.BLOCK + (AHEAD + 4) * DETECTOR_BATCH["cpu"]


def detect(monkeypatch: pytest.MonkeyPatch, present: Sequence[set[int]]) -> None:
    """Have two people detected, each in the frames of `present`, with features that nobody confuses."""
    looks, boxes = np.eye(2, 128, dtype=np.float32), np.float32([[2, 2, 12, 40], [40, 2, 50, 40]])

    def start(detector: Detector, images: Iterable[torch.Tensor], *_: object) -> Iterator[tuple]:
        first = 0
        for batch in images:
            rows = [(t, p) for t in range(first, first + len(batch)) for p in (0, 1) if t in present[p]]
            frames, people = np.array(rows, np.int64).reshape(-1, 2).T
            detections = Detections(frames, np.full(len(frames), 0.9, np.float32), boxes[people], looks[people])
            yield len(batch), lambda detections=detections: detections
            first += len(batch)

    monkeypatch.setattr(Detector, "start", start)
    monkeypatch.setattr("predict.encode", lambda encoder, queries: queries)


def test_the_video_shows_the_first_pass_and_the_json_the_second(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person away for longer than a track survives is another number in the video, and the same one in the JSON."""
    present = [{*range(30), *range(45, 80)}, {*range(50, 80)}]
    drawn: dict[int, set[int]] = {}
    mark = Strip.mark

    def marked(strip: Strip, frame: int, people: list[Person]) -> None:
        drawn[frame] = {person.person_id for person in people}
        mark(strip, frame, people)

    detect(monkeypatch, present)
    monkeypatch.setattr(Strip, "mark", marked)
    video = write_video(tmp_path / "a.mp4", gradient_frames(80, 64, 48))
    flags = ("--linker=robust", "--filter_length=4", "--sim_th=0.4")
    run(models, tmp_path / "with", video, *flags)
    run(models, tmp_path / "without", video, "--no_video", *flags)
    shown = {n: {t for t, numbers in drawn.items() if n in numbers} for n in range(3)}
    assert shown == {0: set(range(30)), 1: set(range(45, 80)), 2: present[1]}
    numbers, plain = (result(tmp_path / name / "a.json")["people"] for name in ("with", "without"))
    assert numbers == plain
    assert {person["person_id"]: {*person["frames"]} for person in numbers} == {0: present[0], 2: present[1]}


def test_people_have_the_same_numbers_whatever_the_batch_size(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second person is long enough in frame 7, the first one in frame 9."""
    present = [{0, 6, 7, *range(9, 30)}, {*range(4, 30)}]
    detect(monkeypatch, present)
    video = write_video(tmp_path / "a.mp4", gradient_frames(30))
    for size in (1, 8, 16):
        run(models, tmp_path / str(size), video, "--no_video", "--filter_length=4", f"--detr_batch={size}")
        people = result(tmp_path / str(size) / "a.json")["people"]
        assert {person["person_id"]: {*person["frames"]} for person in people} == {0: present[1], 1: present[0]}


def test_a_linker_that_averages_features_is_refused_where_boxes_link(models: Path, tmp_path: Path) -> None:
    head = torch.load(models / "head.pth", weights_only=True)
    head["config"]["settings"]["link_cues"] = "iou"
    save_torch(tmp_path / "head.pth", head)
    for name in ("detr.pth", "encoder.pth"):
        (tmp_path / name).symlink_to(models / name)
    video = write_video(tmp_path / "a.mp4", gradient_frames(12))
    with pytest.raises(InputError, match="--linker: averages person features, and a track has no mean iou"):
        run(tmp_path, tmp_path / "out", video, "--no_video", "--linker=robust")


def test_more_actions_a_frame_than_there_are_are_refused(models: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", gradient_frames(12))
    with pytest.raises(InputError, match=r"--topk 200: there are \d+ actions, and no action counts as one more"):
        run(models, tmp_path / "out", video, "--topk=200")


def test_boxes_are_drawn_where_they_were_predicted(models: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", [np.full((120, 160, 3), 128, np.uint8)] * 20)
    out = tmp_path / "out"
    run(models, out, video)
    person = result(out / "a.json")["people"][0]
    frame = list(VideoFrames(out / "a.mp4"))[person["frames"][10]]
    scale = MIN_SIDE / 160
    x0, y0, x1, y1 = np.clip(np.array(person["boxes"][10]) * scale, 0, [479, 359, 479, 359]).astype(int)
    edge = frame[max(y0 - 3, 0) : y0 + 4, (x0 + x1) // 2].astype(int)
    assert np.abs(edge - 128).max() > 40
    assert y1 > y0


def test_a_video_of_nobody_has_an_empty_result(models: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", gradient_frames(12))
    for flags in (("--filter_length", 100_000), ("--psn_score_th", 1)):
        run(models, tmp_path / "out", video, "--no_video", *flags)
        assert result(tmp_path / "out" / "a.json")["people"] == []


def test_a_page_of_all_videos(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [write_video(tmp_path / f"{name}.mp4", gradient_frames(12)) for name in "ab"]
    out = tmp_path / "out"
    run(models, out, *videos, "--no_video", "--report")
    assert f"report: {out}/report/index.html" in capsys.readouterr().out
    text = (out / "report" / "index.html").read_text()
    shown = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [(video["name"], video["n_frames"]) for video in shown["videos"]] == [("a", 12), ("b", 12)]
    for video in shown["videos"]:
        held = result(out / f"{video['name']}.json")
        data = (out / "report" / video["data"]).read_text()
        tubes = json.loads(data[data.index("{") : data.rindex("}") + 1])["pred"]
        assert video["counts"] == {"action tubes": len(held["tubes"]), "people": len(held["people"])}
        assert sum(len(tube["boxes"]) for tube in tubes) >= sum(4 * len(person["frames"]) for person in held["people"])
        assert (out / "report" / video["src"]).stat().st_size > 1000


def test_a_bad_video_does_not_stop_the_others(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [write_video(tmp_path / f"good{i}.mp4", gradient_frames(12)) for i in range(2)]
    cut = write_video(tmp_path / "cut.mkv", gradient_frames(60))
    cut.write_bytes(cut.read_bytes()[:-800])
    (tmp_path / "text.avi").write_text("not a video")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"2 videos of 4 could not be used: .*cut\.mkv, .*text\.avi") as stop:
        run(models, out, good[0], cut, tmp_path / "text.avi", good[1])
    assert "\n" not in str(stop.value)
    assert sorted(path.name for path in out.iterdir()) == ["good0.json", "good0.mp4", "good1.json", "good1.mp4"]
    errors = [line for line in capsys.readouterr().err.split("\n") if "error: " in line]
    assert len(errors) == 2 and "packets are missing or broken" in errors[0]
    with pytest.raises(InputError, match=r"cut\.mkv: frame \d+ cannot be decoded"):
        run(models, out, cut)


def test_a_folders_whole_name_is_its_name(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("v1.0_cam", "v1.1_cam"):
        (tmp_path / name).mkdir()
        for i in range(3):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.zeros((32, 48, 3), np.uint8))
    run(models, tmp_path / "out", tmp_path / "v1.0_cam", f"{tmp_path}/v1.1_cam/", "--no_video")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v1.0_cam.json", "v1.1_cam.json"]
    monkeypatch.chdir(tmp_path / "v1.0_cam")
    run(models, tmp_path / "here", ".", "--no_video")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["v1.0_cam.json"]


def test_a_folder_has_as_many_images_a_second_as_those_of_the_head(models: Path, tmp_path: Path) -> None:
    """AVA's folders hold 30 a second: at 25, a head of one frame a second would see the wrong ones."""
    sampling = Sampling(rate=2, start=902, image_rate=10).for_other_videos
    head = torch.load(models / "head.pth", weights_only=True)
    settings = head["config"]["settings"] | {"sampling": sampling}
    save_torch(tmp_path / "head.pth", {**head, "config": head["config"] | {"settings": settings}})
    for name in ("detr.pth", "encoder.pth"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "a").mkdir()
    for i, image in enumerate(gradient_frames(20)):
        cv2.imwrite(str(tmp_path / "a" / f"{i}.png"), image)
    run(tmp_path, tmp_path / "out", tmp_path / "a", "--no_video")
    assert result(tmp_path / "out" / "a.json")["n_frames"] == 4


def test_two_inputs_of_one_output_are_told_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a.mp4", "a.avi"):
        (tmp_path / name).write_bytes(b"")
    for first, second in (("a.mp4", "a.avi"), ("a", "a.mp4"), ("a.mp4", "a.mp4")):
        with pytest.raises(InputError, match=r"would both be written to .*a\.json"):
            run(tmp_path / "no models", tmp_path / "out", tmp_path / first, tmp_path / second)
    assert not (tmp_path / "out").exists()


def test_the_head_says_how_long_an_action_tube_must_be(models: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", gradient_frames(30))
    head = torch.load(models / "head.pth", weights_only=True)
    lengths = {}
    for least in (None, 5, 25, 31):
        folder = tmp_path / str(least)
        folder.mkdir()
        for name in ("detr.pth", "encoder.pth"):
            (folder / name).symlink_to(models / name)
        config = head["config"] | ({"min_tube_length": least} if least else {})  # without: 9
        save_torch(folder / "head.pth", {**head, "config": config})
        run(folder, folder / "out", video, "--no_video")
        found = result(folder / "out" / "a.json")
        assert found["settings"]["min_tube_length"] == (least or 9)
        lengths[least] = [len(tube["frames"]) for tube in found["tubes"]]
    assert min(lengths[5]) >= 5 and lengths[5] and not lengths[31]
    run(tmp_path / "31", tmp_path / "flag", video, "--no_video", "--min_tube_length", 1)
    assert result(tmp_path / "flag" / "a.json")["tubes"]


def test_the_json_has_every_digit(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def watched(*args: object) -> list:
        made.extend(action_tubes(*args))
        return action_tubes(*args)

    action_tubes = predict.action_tubes
    monkeypatch.setattr(predict, "action_tubes", watched)
    run(
        models,
        tmp_path / "out",
        write_video(tmp_path / "a.mp4", gradient_frames(30)),
        "--no_video",
        "--min_tube_length=1",
    )
    written = result(tmp_path / "out" / "a.json")["tubes"]
    expected = sorted(made, key=lambda tube: -tube.score)
    assert [tube["score"] for tube in written] == [tube.score for tube in expected] and written
    for entry, tube in zip(written, expected, strict=True):
        scores = tube.frame_scores
        assert np.array_equal(np.float32(entry["boxes"]), tube.boxes)
        assert np.array_equal(np.array(entry["scores"], scores.dtype), scores)


def test_a_linker_other_than_the_heads_brings_its_own_patience() -> None:
    def patience(trained: str, end: int, *flags: str) -> int:
        args = predict.make_parser().parse_args(["a.mp4", "--encoder", "e.pth", "--head", "h.pth", *flags])
        settings = {"psn_score_th": 0.9, "sim_th": 0.5, "filter_length": 8, "end_consecutive_frames": end}
        config = {"settings": settings | {"linker": trained, "strict": False}, "min_tube_length": 9}
        return predict.resolve_settings(args, config, multi_label=False).end_consecutive_frames

    assert patience("robust", 20) == patience("robust", 20, "--linker", "robust") == 20
    assert patience("published", 8, "--linker", "robust") == LINKERS["robust"].end_consecutive_frames != 8
    assert patience("robust", 20, "--linker", "published") == 20
    own = LINKERS["robust"].end_consecutive_frames
    assert patience("robust", own, "--linker", "published") == DEFAULTS["end_consecutive_frames"] != own
    assert patience("published", 8, "--linker", "robust", "--end_consecutive_frames", "5") == 5


def test_people_are_exported_for_correction_with_sparse_key_frames(models: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", gradient_frames(40))
    run(models, tmp_path / "out", video, "--no_video", "--export", "cvat", "--min_tube_length", 3)
    found, path = result(tmp_path / "out" / "a.json"), tmp_path / "out" / "a.xml"
    read = cvat_video.read(path, action_attribute="action").videos["a"]
    assert (read.width, read.height) == (found["width"], found["height"]) and found["people"]
    boxes = {
        (t.person_id, f): (t.label, b) for t in read.tubes for f, b in zip(t.frames.tolist(), t.boxes, strict=True)
    }
    listed = 0
    for number, person in enumerate(found["people"]):
        tubes = [tube for tube in found["tubes"] if tube["person_id"] == person["person_id"]]
        for frame, box in zip(person["frames"], person["boxes"], strict=True):
            label, exported = boxes.pop((number, frame))
            assert np.abs(exported - box).max() <= 2 + 1e-6
            scores = {t["scores"][t["frames"].index(frame)]: t["label"] for t in tubes if frame in t["frames"]}
            assert label == (scores[max(scores)] if scores else None)
            listed += 1
    assert not boxes  # nobody is shown where nobody was found
    assert path.read_text().count('outside="0"') < listed
    definition = json.loads((tmp_path / "out" / "cvat_labels.json").read_text())
    assert definition[0]["attributes"][0]["values"] == ["none", *found["labels"]]


def test_frames_that_were_not_used_are_interpolated_in_the_export(tmp_path: Path) -> None:
    people = [{"person_id": 0, "frames": [0, 1, 3], "boxes": [[0, 0, 10, 10], [30, 0, 40, 10], [60, 0, 70, 10]]}]
    tubes = [{"person_id": 0, "label": "walk", "frames": [1, 3], "scores": [0.5, 0.5]}]
    about = {"width": 90, "height": 50, "n_frames": 4, "labels": ["walk"], "people": people, "tubes": tubes}
    cvat_writer.write_predicted(about, tmp_path / "v.xml", np.array([0, 3, 6, 8]))
    (nothing, walk) = cvat_video.read(tmp_path / "v.xml", action_attribute="action").videos["v"].tubes
    assert (
        nothing.label is None and nothing.frames.tolist() == [0, 1, 2] and nothing.boxes[:, 0].tolist() == [0, 10, 20]
    )
    assert walk.label == "walk" and walk.frames.tolist() == [3, 8] and walk.boxes[:, 0].tolist() == [30, 60]
