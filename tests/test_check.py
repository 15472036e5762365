"""The data set check: counts, faults with their places, a picture."""

import sys

import cv2
import numpy as np
import pytest

from datasets import check
from tests.test_annotations import own_project, tube, video
from utils.cli import run


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """Run the check on annotated videos of five drawn frames; give its exit status and what it printed."""

    def go(videos: dict) -> tuple[int, str]:
        for name in videos:
            folder = tmp_path / "videos" / name
            folder.mkdir(parents=True)
            for i in range(5):
                cv2.imwrite(str(folder / f"{i}.png"), np.full((80, 100, 3), 40 * i, np.uint8))
        path = own_project(tmp_path, videos)
        monkeypatch.setattr(sys, "argv", ["check", "--dataset", str(path), "-sheet", str(tmp_path / "sheet.png")])
        status = 0
        try:
            run(check.main)
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().out

    return go


def test_a_sound_data_set_is_counted_and_drawn(checked, tmp_path):
    status, out = checked({"a": video(tube((0, 1, 2)), tube((0, 1), label=None), n_frames=5), "b": video(n_frames=5)})
    assert status == 0
    for line in ("videos 2 (1 without tubes), people 2", "tubes 2, boxes 5", "stand 1, walk 0, no action 1"):
        assert line in out
    assert "sizes: 100 x 80 (2)" in out and "0 errors, 0 warnings" in out
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    orange = (sheet == (0, 159, 230)).all(2)
    assert orange.any() and np.nonzero(orange)[1].min() in (15, 16)  # x = 10 of 100 pixels, in a cell of 160


def test_every_fault_is_listed_with_its_place(checked):
    status, out = checked(
        {
            "sound": video(tube(), n_frames=5),
            "late": video(tube((0, 30)), n_frames=0),
            "nan": video(tube(), tube((1, 2), boxes=[[0, 0, 9, 9], [0, 0, float("nan"), 9]]), n_frames=5),
            "edge": video(tube((3, 4), boxes=[[0, 0, 9, 9], [-4, 0, 9, 9]]), n_frames=5),
            "wide": {**video(tube()), "width": 300},
        }
    )
    assert status == 2 and "3 errors, 1 warning" in out
    assert "video 'nan', tube 1, frame 2: box is not finite" in out
    assert "video 'edge', tube 0, frame 4: box sticks out" in out
    assert "late: a box is annotated at frame 30, but the video has 5 frames" in out
    assert "100 x 80 pixels, annotated as 300 x 80" in out
