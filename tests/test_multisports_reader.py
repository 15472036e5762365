"""MultiSports' ground truth: people are joined from tubes without identities, and by one rule."""

from pathlib import Path

import numpy as np
import pytest

from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.formats.common import RawTube
from datasets.formats.multisports import person_ids
from utils.metrics.multisports import read_groundtruth

BOX = np.array([10, 10, 30, 50])


def tube(first: int, last: int, shift: float = 0, label: int = 0) -> RawTube:
    frames = np.arange(first, last + 1)
    return RawTube(frames, np.tile(BOX + np.array([shift, 0, shift, 0]), (len(frames), 1)).astype(float), label)


@pytest.mark.parametrize(
    ("tubes", "persons"),
    [
        ([tube(0, 9), tube(10, 19, 1)], [0, 0]),  # the next action, one pixel apart
        ([tube(10, 19, 1), tube(0, 9)], [0, 0]),
        ([tube(0, 9), tube(11, 19)], [0, 1]),  # a frame between: nothing says who that is
        ([tube(0, 9), tube(10, 19, 12)], [0, 1]),  # somebody else, a little to the side
        ([tube(0, 9), tube(5, 14, 2)], [0, 0]),  # two actions at a time
        ([tube(0, 9), tube(5, 14, 15)], [0, 1]),  # two people side by side
        ([tube(0, 9), tube(10, 19, 3), tube(10, 19, 1)], [0, 0, 0]),  # two further actions, at a time
        ([tube(0, 9), tube(10, 19, 6), tube(10, 19, -4)], [0, 1, 0]),  # two successors: the nearer one
        ([tube(0, 9), tube(10, 19, 4), tube(20, 29, 8)], [0, 0, 0]),  # a walk of three actions
        ([], []),
    ],
)
def test_tubes_that_meet_in_time_and_overlap_are_one_person(tubes: list[RawTube], persons: list[int]) -> None:
    assert person_ids(tubes, 0.5) == persons


def test_nobody_is_in_two_places() -> None:
    """A chain of overlaps must not join two people who stand side by side in one frame."""
    tubes = [tube(0, 9), tube(10, 19, 5), tube(10, 19, -5), tube(20, 29, 0)]
    persons = person_ids(tubes, 0.5)
    assert persons[1] != persons[2]


def test_the_project_file_reads_what_the_official_code_reads(fixtures: Path) -> None:
    folder = fixtures / "multisports" / "edge_cases"
    project = load_project("multisports", root=str(folder))
    gt, labels, names = read_groundtruth(folder / "multisports_GT.pkl")
    assert (project.labels, project.split("val")) == (labels, names)
    for name, video in read_annotations(project, names).items():
        mine = sorted((t.label, t.frames[0] + 1, len(t), t.boxes.tobytes()) for t in video.tubes)
        assert mine == sorted((t.label, t.frames[0], len(t), t.boxes.tobytes()) for t in gt[name])
