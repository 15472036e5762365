"""The data set check: counts, faults with their places, a picture."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import check
from tests.test_annotations import own_project, tube, video
from utils.cli import run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checked(tmp_path, monkeypatch, capsys):
    """Run the check on annotated videos of `length` frames; give its exit status and what it printed."""

    def go(videos: dict, *flags: str, length: int = 5, **fields) -> tuple[int, str]:
        for name in videos:
            folder = tmp_path / "videos" / name
            folder.mkdir(parents=True)
            for i in range(length):
                cv2.imwrite(str(folder / f"{i}.png"), np.full((80, 100, 3), 40 * i % 256, np.uint8))
        path = own_project(tmp_path, videos, **fields)
        command = ["check", "--dataset", str(path), "-sheet", str(tmp_path / "sheet.png"), *flags]
        monkeypatch.setattr(sys, "argv", command)
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
    for line in ("2 videos (1 without tubes), people 2, tubes 2, boxes 5", "stand 1, walk 0, no action 1"):
        assert line in out
    assert "sizes: 100 x 80 (2)" in out and "0 errors, 0 warnings" in out
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    orange = (sheet == (0, 159, 230)).all(2)
    assert orange.any() and np.nonzero(orange)[1].min() in (15, 16)  # x = 10 of 100 pixels, in a cell of 160


def test_every_fault_is_listed_with_its_place(checked):
    nan = [[0, 0, 9, 9], [0, 0, float("nan"), 9]]
    status, out = checked(
        {
            "sound": video(tube((0, 1)), n_frames=5),
            "late": video(tube((0, 30)), n_frames=0),
            "nan": video(tube(), tube((1, 2), boxes=nan), n_frames=5),
            "edge": video(tube((3, 4), boxes=[[0, 0, 9, 9], [-4, 0, 9, 9]]), n_frames=5),
            "wide": {**video(tube()), "width": 300},
            "big": {"tubes": [tube((1, 2), boxes=[[0, 0, 9, 9], [180, 60, 285, 210]])]},
            "short": video(tube(), n_frames=9),
            "label": video(tube((0, 1, 2), label="Walk"), n_frames=5),
        },
    )
    assert status == 2 and "5 errors, 2 warnings" in out
    assert "video 'nan', tube 1, frame 2: box is not finite (0, 0, nan, 9)" in out
    assert "warning: video 'edge', tube 0, frame 4: box extends beyond the frame (-4, 0, 9, 9)" in out
    assert "video 'late', frame 30: frame is beyond the video's end (5 frames decode)" in out
    assert "video 'wide': 100 x 80 pixels, but annotated as 300 x 80" in out
    assert "error: " in out and "video 'big', frame 2: box is outside the frame (180, 60, 285, 210)" in out
    assert "video 'short': 5 frames decode, but 9 are annotated" in out
    assert "error: video 'label', tube 0: label 'Walk' is not among stand, walk\n" in out


def box(*corners: float, n: int = 2) -> list:
    return [list(corners)] * n


@pytest.mark.parametrize(
    ("tubes", "text"),
    [
        ([tube((0, 1), box(0.1, 0.2, 0.3, 0.9))], "2 videos: all boxes lie between 0 and 1"),
        ([tube((0, 5, 10), box(9, 9, 20, 20, n=3))], "2 videos: only every k-th frame has boxes"),
        ([tube((0, 1)), tube((0, 1))], "2 videos: a tube is annotated twice"),
        ([tube((1, 12))], "2 videos: a box in frame n of n frames, and in no video one in frame 0"),
        ([], "no box in any video"),
    ],
)
def test_what_is_probably_a_mistake_is_one_counted_warning(checked, tubes, text):
    status, out = checked({"a": {"tubes": tubes}, "b": {"tubes": tubes}}, length=12)
    lines = [line for line in out.splitlines() if line.startswith("warning: ") and text in line]
    assert status == 0 and len(lines) == 1, out


def test_a_video_in_two_subsets_is_told(checked, tmp_path):
    (tmp_path / "train.txt").write_text("b\n")
    splits = {"val": "val.txt", "train": "train.txt"}
    status, out = checked({"a": video(n_frames=5), "b": video(tube(), n_frames=5)}, splits=splits)
    assert status == 0 and "warning: 1 video in val and in train;" in out and "0 errors, 1 warning" in out


def test_more_people_than_queries_are_told(checked):
    people = [tube((0, 1), box(10 + i, 10, 40 + i, 50)) for i in range(3)]
    videos = {"a": video(*people, n_frames=5)}
    status, out = checked(videos, "--num_queries", "2")
    assert status == 0 and "3 people in frame 0 of 'a', but a detector of 2 queries" in out


def test_help_needs_no_pytorch():
    code = "import sys, datasets.check; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
