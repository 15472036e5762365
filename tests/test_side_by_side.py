"""Videos with ground truth and predictions side by side, of the evaluations and of several detectors."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datasets.dataset import VideoFrames
from models.detectors import Detections
from scripts.compare_detectors import main as compare_detectors
from tests.stages import LOOSE, QUIET, Stages
from tests.videos import gradient_frames, write_video
from utils.box_ops import Tube
from utils.drawing.side_by_side import detections_panel, tubes_panel, write_side_by_side
from utils.misc import InputError


def grey_frames(n: int) -> list[np.ndarray]:
    return [np.full((120, 240, 3), 128, np.uint8) for _ in range(n)]


def test_each_panel_shows_its_boxes_in_their_frames(tmp_path: Path) -> None:
    box = np.array([[40, 30, 100, 100]] * 3, np.float32)
    truth = tubes_panel("ground truth", [Tube([0, 1, 4], box, 0, person_id=3)], ["walk"])
    found = detections_panel("detections", np.array([4, 1]), box[:2], np.array([0.5, 0.75]))
    assert truth.captions == ["3 walk"] * 3 and found.captions == ["0.50", "0.75"] and found.frames.tolist() == [4, 1]
    path = write_side_by_side(tmp_path / "out.mp4", grey_frames(6), (240, 120), 10, [truth, found])
    pages = list(VideoFrames(path))
    assert len(pages) == 6 and pages[0].shape[1] == 2 * 480 and pages[0].shape[0] > 240
    head = pages[0].shape[0] - 240

    for number, page in enumerate(pages):
        for panel, shown in ((0, number in (0, 1, 4)), (1, number in (1, 4))):
            edge = page[head + 128 : head + 132, panel * 480 + 196 : panel * 480 + 204].astype(int)  # the right one
            changed = np.abs(edge - 128).max()
            assert (changed > 60) if shown else (changed < 15), (number, panel)


def test_the_evaluations_write_the_videos_that_are_named(stages: Stages) -> None:
    flags = ("--qmm_name", "one", *LOOSE, "--side_by_side", "val_0000")
    stages.run("eval_qmm", *flags)
    stages.run("eval_map", *flags, "--min_tube_length", 1)
    written = sorted((stages.folder("one") / "results").glob("*/side_by_side/val_0000.mp4"))
    widths = {path.parents[1].name.partition("-")[0]: next(iter(VideoFrames(path))).shape[1] // 480 for path in written}
    assert widths == {"eval_map": 2, "eval_qmm": 3}
    low = ("--psn_score_th", 0.01, "--side_by_side", "val_0000")  # of which the cache has a tar of its own
    stages.run("eval_qmm", "--qmm_name", "one", *low, "--strict")
    (video,) = (stages.folder("one") / "results").glob("*psn0.01*/side_by_side/val_0000.mp4")
    assert next(iter(VideoFrames(video))).shape[1] // 480 == 3
    frames = len(list(VideoFrames(stages.data / "synthetic" / "videos" / "val_0000.avi")))
    assert all(len(list(VideoFrames(path))) == frames for path in written)
    with pytest.raises(InputError, match=r"--side_by_side val_000: no usable video .*did you mean val_"):
        stages.run("eval_map", *flags[:-1], "val_000")


def test_several_detectors_are_compared_on_a_clip(stages: Stages, tmp_path: Path, monkeypatch, capsys) -> None:
    detr, video = stages.folder("one") / "detr" / "epoch_1.pth", stages.data / "synthetic" / "videos" / "val_0000.avi"
    words = [
        video,
        "--detr",
        detr,
        detr,
        "--out",
        tmp_path / "out.mp4",
        "--max_frames",
        5,
        "--psn_score_th",
        0.3,
        *QUIET,
    ]
    monkeypatch.setattr(sys, "argv", ["compare_detectors.py", *map(str, words)])
    compare_detectors()
    one, other, _ = capsys.readouterr().out.splitlines()
    assert one == other and "detections of at least 0.3" in one
    pages = list(VideoFrames(tmp_path / "out.mp4"))
    assert len(pages) == 5 and pages[0].shape[1] == 2 * 480
    middle = np.abs(pages[2][:, :480].astype(int) - pages[2][:, 480:]).mean()  # the same detector: the same panels
    assert middle < 3


def test_compared_detectors_of_a_library_see_frames_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`image_size` is what their own image processor resizes to."""
    shapes, nothing = [], np.zeros(0, np.float32)

    def start(images: Iterable, *_: object) -> Iterator[tuple]:
        for batch in images:
            shapes.append(tuple(batch.shape))
            yield len(batch), lambda: Detections(nothing, nothing, nothing.reshape(0, 4), nothing)

    detector = SimpleNamespace(frame_size=0, image_size=32, batch_size=4, start=start)
    monkeypatch.setattr("models.person_queries.detector_of", lambda *_: detector)
    video = write_video(tmp_path / "a.mp4", gradient_frames(6))
    words = ["compare_detectors.py", video, "--detr", "hf:some", "--image_size", 32, "--out", tmp_path / "out.mp4"]
    monkeypatch.setattr(sys, "argv", [*map(str, words), "--device=cpu"])
    compare_detectors()
    assert shapes == [(4, 3, 48, 64), (2, 3, 48, 64)]
