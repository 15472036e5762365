"""docs/own_data.md, followed to the letter: its files are written, its commands are run."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.faults import RULES
from datasets.make_shards import read_shards

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(mydata/[\w.]+)`[^`]*\n\n```\w+\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", "").splitlines()
DATA_COMMANDS = [c for c in COMMANDS if "convert.py" in c or " -m datasets." in c]
STAGES = [c for c in COMMANDS if c not in DATA_COMMANDS[:2]]  # from the shards on
RESULTS = "checkpoint/mydata/qmm/results/*.json"

# A detector small enough to learn two bars in seconds, and defaults for people of five frames.
SMALL = (
    " --detr scratch --backbone resnet18 --stages 2 --norm bn --image_size 64 --hidden_dim 32 --nheads 2 --enc_layers 1"
    " --dec_layers 2 --dim_feedforward 64 --num_queries 5 --pre_norm --dropout 0 --lr 2e-3 --lr_backbone 2e-3"
    " --jitter 0 --jitter_hue 0 --clips_per_video 16 --batch_size 8"
)
SHORT = "defaults: {psn_score_th: 0.5, qmm_psn_score_th: 0.5, qmm_iou_th: 0.1, filter_length: 2, min_tube_length: 2}"


def draw_video(path: Path, video: dict) -> None:
    """A dark picture with a bright bar where somebody is annotated."""
    size = (video["width"], video["height"])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, size)
    for i in range(video["n_frames"]):
        frame = np.full((*size[::-1], 3), 40, np.uint8)
        for tube in video["tubes"]:
            for left, top, right, bottom in (b for at, b in zip(tube["frames"], tube["boxes"], strict=True) if at == i):
                frame[top:bottom, left:right] = (200, 180, 90 * tube["person_id"])
        writer.write(frame)
    writer.release()


@pytest.fixture
def follow(own, monkeypatch, capsys):
    """Run a command of the document where `mydata` lies, `more` flags behind it; (exit status, stdout, stderr)."""

    def go(command: str, more: str = "") -> tuple[int, str, str]:
        python, *words = shlex.split(f"{command} {more}")
        assert python == "python"
        path = f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0]
        monkeypatch.setattr(sys, "argv", words[words[0] == "-m" :])
        status = 0
        try:
            runpy.run_path(str(own / path if (own / path).exists() else ROOT / path), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    monkeypatch.chdir(own)
    return go


@pytest.fixture
def one_thread():
    """`--threads` holds for the process, so the other tests get theirs back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with `mydata` in it, as the document lays it out, and the annotated videos, drawn."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mydata/videos").mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for name, video in json.loads(FILES["mydata/annotations.json"])["videos"].items():
        draw_video(folder / f"mydata/videos/{name}.mp4", video)
    return folder


def test_the_document_shows_each_file_and_each_command_of_the_data_part():
    names = {"own.yml", "train.txt", "val.txt", "annotations.json", "boxes.csv", "convert.py"}
    assert FILES.keys() == {f"mydata/{name}" for name in names}
    assert [c.split()[-1] for c in DATA_COMMANDS] == ["mydata/convert.py", "mydata/own.yml", "train", "val"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_table_of_boxes_becomes_the_annotation_that_is_shown(own, follow, mark):
    (own / "mydata/boxes.csv").write_text(mark + FILES["mydata/boxes.csv"], encoding="utf-8")
    (own / "mydata/annotations.json").write_text(FILES["mydata/annotations.json"])
    shown = read_annotations(load_project(own / "mydata/own.yml"))
    assert follow(DATA_COMMANDS[0]) == (0, "", "")
    converted = read_annotations(load_project(own / "mydata/own.yml"))
    assert shown.keys() == converted.keys()
    for name, video in shown.items():
        for a, b in zip(video.tubes, converted[name].tubes, strict=True):
            assert (a.label, a.person_id) == (b.label, b.person_id)
            np.testing.assert_array_equal(a.frames, b.frames)
            np.testing.assert_array_equal(a.boxes, b.boxes)


def test_the_check_and_the_shards(own, follow):
    check, *shards = DATA_COMMANDS[1:]
    status, out, err = follow(check)
    assert status == 0, err
    for line in ("2 videos (0 without tubes), people 3, tubes 4, boxes 13", "stand 1, walk 2, no action 1"):
        assert line in out
    assert "0 errors, 0 warnings" in out and cv2.imread(str(own / "check-mydata.png")) is not None
    for command, name in zip(shards, ("park_01", "park_02"), strict=True):
        status, _, err = follow(command)
        assert status == 0, err
        ((_, sample, _),) = read_shards(own / "data/mydata/shards" / command.split()[-1])
        assert (sample["name"], sample["width"], sample["height"], sample["n_frames"]) == (name, 320, 240, 24)


def test_the_document_says_what_happens_to_each_impossible_annotation():
    table = dict(re.findall(r"^\| ((?:box|frame|label|person|size|number) [^`|]+?) \| (\w+)", TEXT, re.MULTILINE))
    assert table == {kind: rule for kind, (rule, _) in RULES.items()}


def test_a_fault_is_told_with_its_place_and_skip_bad_goes_on(own, follow):
    annotation = json.loads(FILES["mydata/annotations.json"])
    annotation["videos"]["park_01"]["tubes"][1]["boxes"][1] = [50, 60, 20, 180]
    (own / "mydata/faulty.json").write_text(json.dumps(annotation))
    text = FILES["mydata/own.yml"].replace("annotations.json", "faulty.json")
    (own / "mydata/faulty.yml").write_text(text.replace("train: train.txt", "train: both.txt"))
    (own / "mydata/both.txt").write_text("park_01\npark_02\n")
    flags = "--dataset mydata/faulty.yml --subset train"
    status, out, _ = follow(f"python -m datasets.check {flags} --sheet faulty.png")
    assert status == 2 and "video 'park_01', tube 1, frame 4: box is reversed" in out
    shards = f"python -m datasets.make_shards {flags} --shards_path faulty"
    status, _, err = follow(shards)
    assert status == 2 and "frame 4: box is reversed" in err and err.count("\n") == 1
    status, _, err = follow(shards + " --skip_bad")
    assert status == 0 and "left out: " in err
    assert [sample["name"] for _, sample, _ in read_shards(own / "faulty/train")] == ["park_02"]


@pytest.mark.slow
def test_the_chain_and_predict(own, follow, one_thread):
    """The stages' commands one after another; only the detector is smaller, and the defaults fit short tubes."""
    (own / "mydata/own.yml").write_text(re.sub(r"defaults: .*", SHORT, FILES["mydata/own.yml"]))
    (own / "new_video.mp4").write_bytes((own / "mydata/videos/park_01.mp4").read_bytes())
    *stages, predict = STAGES
    for command in stages:
        stage = command.split()[1].removesuffix(".py")
        more = "" if stage == "-m" else "--device cpu --workers 0 --threads 1"
        more += " --comet disabled" * (stage != "-m") + SMALL * (stage == "train_detr")
        status, _, err = follow(command, more)
        assert status == 0, f"{command}: {err}"
    results = {p.name.split("-epoch")[0]: json.loads(p.read_text())["metrics"] for p in own.glob(RESULTS)}
    assert results["eval_qmm-train"]["recall@0.2"] >= 0.5
    assert results["eval_map-val"]["AP@0.5"]["stand"] is None

    status, out, err = follow(predict, "--min_tube_length 2 --device cpu --threads 1")
    assert status == 0 and out.startswith("new_video.mp4: 24 frames"), err
    prediction = json.loads((own / "predictions/new_video.json").read_text())
    assert prediction["labels"] == ["stand", "walk"] and prediction["people"] and prediction["n_frames"] == 24
    assert cv2.VideoCapture(str(own / "predictions/new_video.mp4")).read()[0]
