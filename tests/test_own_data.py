"""docs/own_data.md, followed to the letter: its files are written, its commands are run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.annotations import RULES, read_annotations
from datasets.make_shards import read_shards
from datasets.project import load_project

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(mydata/[\w.]+)`[^`]*\n\n```\w+\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", "").splitlines()


def draw_video(path: Path, width: int, height: int, n_frames: int) -> None:
    """A bright bar that moves over a dark picture."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (width, height))
    for i in range(n_frames):
        frame = np.full((height, width, 3), 40, np.uint8)
        frame[60:180, 40 + 4 * i : 80 + 4 * i] = 200
        writer.write(frame)
    writer.release()


def follow(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command of the document where `mydata` lies, with this Python."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with `mydata` in it, as the document lays it out, and two drawn videos."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mydata/videos").mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for name, video in json.loads(FILES["mydata/annotations.json"])["videos"].items():
        draw_video(folder / f"mydata/videos/{name}.mp4", *(video[key] for key in ("width", "height", "n_frames")))
    return folder


def data_commands() -> list[str]:
    return [c for c in COMMANDS if "mydata/convert.py" in c or " -m datasets." in c]


def test_the_document_shows_each_file_and_each_command_of_the_data_part():
    names = {"own.yml", "train.txt", "val.txt", "annotations.json", "boxes.csv", "convert.py"}
    assert FILES.keys() == {f"mydata/{name}" for name in names}
    assert [c.split()[-1] for c in data_commands()] == ["mydata/convert.py", "mydata/own.yml", "train", "val"]


def test_the_table_of_boxes_becomes_the_annotation_that_is_shown(own):
    shown = read_annotations(load_project(own / "mydata/own.yml"))
    done = follow(data_commands()[0], own)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    converted = read_annotations(load_project(own / "mydata/own.yml"))
    assert shown.keys() == converted.keys()
    for name, video in shown.items():
        for a, b in zip(video.tubes, converted[name].tubes, strict=True):
            assert (a.label, a.person_id) == (b.label, b.person_id)
            np.testing.assert_array_equal(a.frames, b.frames)
            np.testing.assert_array_equal(a.boxes, b.boxes)


def test_the_check_and_the_shards(own):
    check, *shards = data_commands()[1:]
    done = follow(check, own)
    assert done.returncode == 0, done.stderr
    for line in ("videos 2 (0 without tubes), people 3", "tubes 4, boxes 13", "stand 1, walk 2, no action 1"):
        assert line in done.stdout
    assert "0 errors, 0 warnings" in done.stdout and cv2.imread(str(own / "check-mydata.png")) is not None
    for command, name in zip(shards, ("park_01", "park_02"), strict=True):
        done = follow(command, own)
        assert done.returncode == 0, done.stderr
        ((_, sample),) = read_shards(own / "data/mydata/shards" / command.split()[-1])
        assert (sample["name"], sample["width"], sample["height"], sample["n_frames"]) == (name, 320, 240, 24)


def test_the_document_says_what_happens_to_each_impossible_annotation(own):
    table = dict(re.findall(r"^\| ((?:box|frame|label|person) [^`|]+?) \| (\w+)", TEXT, re.MULTILINE))
    assert table == RULES


def test_a_fault_is_told_with_its_place_and_skip_bad_goes_on(own, tmp_path):
    project = load_project(own / "mydata/own.yml")
    held = json.loads(FILES["mydata/annotations.json"])
    held["videos"]["park_01"]["tubes"][1]["boxes"][1] = [50, 60, 20, 180]
    (tmp_path / "faulty.json").write_text(json.dumps(held))
    text = FILES["mydata/own.yml"].replace("annotations: annotations.json", f"annotations: {tmp_path / 'faulty.json'}")
    text = text.replace("train: train.txt", "train: {all_but: none}, none: empty.txt")
    (project.root / "faulty.yml").write_text(text)
    (project.root / "empty.txt").write_text("nothing\n")
    command = "python -m datasets.check --dataset mydata/faulty.yml --subset train --sheet {}"
    done = follow(command.format(tmp_path / "sheet.png"), own)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "video 'park_01', tube 1, frame 4: box is reversed" in done.stdout
    command = "python -m datasets.make_shards --dataset mydata/faulty.yml --subset train --shards_path faulty"
    done = follow(command, own)
    assert done.returncode == 2 and "frame 4: box is reversed" in done.stderr and done.stderr.count("\n") == 1
    done = follow(command + " --skip_bad", own)
    assert done.returncode == 0 and "left out: " in done.stderr
    assert [sample["name"] for _, sample in read_shards(own / "faulty/train")] == ["park_02"]
