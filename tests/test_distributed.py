"""The stages in two processes: gradients and weights of the joined batch, and one tar of tracks."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import free_port, launch, set_rank
from tests.stages import LOOSE, QUIET, TINY_DETR, Stages
from utils.storage.tracks import TrackStore

ROOT = Path(__file__).parents[1]
FROZEN = [flag if flag != "bn" else "frozen" for flag in TINY_DETR]  # statistics of a batch are each process's own
MATCHED = ("--iou_th", "0.05", *LOOSE)


def as_rank(number: int, port: int, stages: Stages, script: str, *flags: object) -> None:
    """A stage as one of two processes that `torchrun` started."""
    set_rank(number, 2, port)
    stages.run(script, *flags)


def in_two(stages: Stages, script: str, *flags: object) -> None:
    """A stage in two processes."""
    port = free_port()
    logs = [stages.checkpoint / f"{script}-{i}.txt" for i in range(2)]
    ranks = [launch(log, as_rank, i, port, stages, script, *flags) for i, log in enumerate(logs)]
    for process, log in zip(ranks, logs, strict=True):
        process.join(60)
        if process.exitcode is None:
            for one in ranks:
                one.kill()
        assert process.exitcode == 0, log.read_text()


def assert_same_training(one: Path, two: Path) -> None:
    """The same gradients (AdamW's first moments hold them), metrics and weights, up to rounding."""
    states = [torch.load(folder / "train_state.pth", weights_only=True) for folder in (one, two)]
    moments = [state["optimizer"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys() and moments[0]
    whole = torch.stack([state["exp_avg"].norm() for state in moments[0].values()]).norm()
    for key, state in moments[0].items():
        apart = (moments[1][key]["exp_avg"] - state["exp_avg"]).norm()
        assert apart < 1e-3 * state["exp_avg"].norm() + 1e-5 * whole
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, two)
    ]
    for a, b in zip(*lines, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        for name in {"accuracy", "nearest_is_same", "queries"} & {*a}:
            assert b[name] == pytest.approx(a[name], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def compare(stages: Stages, script: str, kind: str, name_flag: str, batch_flag: str, size: int, *flags: object) -> None:
    """A trainer with `size` samples a process in two processes, and with twice as many in one."""
    names = [f"{script}-{size}-{n}" for n in (1, 2)]
    stages.run(script, *flags, name_flag, names[0], batch_flag, 2 * size)
    in_two(stages, script, *flags, name_flag, names[1], batch_flag, size)
    assert_same_training(*(stages.folder(kind.format(name=name)) for name in names))


# One step of 3 + 2 clips; steps of 2 + 2, 2 + 2, 1 + 1.
STEPS = pytest.mark.parametrize(("size", "clips"), [(3, 1), (2, 2)])


@pytest.mark.slow
@STEPS
def test_two_processes_train_detr_as_one_does(stages: Stages, size: int, clips: int) -> None:
    rate = 1e-4  # AdamW makes steps of its rate out of gradients that are all rounding
    flags = (*FROZEN, "--clips_per_video", clips, "--epochs", 1, "--lr", rate)
    compare(stages, "train_detr", "{name}/detr", "--ex_name", "--batch_size", size, *flags)


@pytest.mark.slow
def test_two_processes_have_the_auxiliary_losses_of_one(stages: Stages) -> None:
    """Steps of 3 + 2 clips of two frames, with different numbers of people."""
    flags = (*FROZEN, "--clips_per_video", 1, "--n_frames", 2, "--epochs", 1, "--lr", 1e-4, "--id_loss_same_clip", 3)
    flags += ("--id_loss_coef", 1, "--action_loss_coef", 1, "--place_loss_coef", 1)
    compare(stages, "train_detr", "{name}/detr", "--ex_name", "--batch_size", 6, *flags)


@pytest.mark.slow
@STEPS
def test_two_processes_train_query_matching_as_one_does(stages: Stages, size: int, clips: int) -> None:
    detr = stages.folder("one") / "detr" / "epoch_1.pth"
    flags = ("--detr", detr, "--dropout", 0, "--epochs", 2, "--clips_per_video", clips, *MATCHED)
    compare(stages, "train_qmm", "{name}/encoder", "--qmm_name", "--batch_size", size, *flags)


@pytest.mark.slow
def test_two_processes_train_the_action_head_as_one_does(stages: Stages) -> None:
    """Also where one process has a tube more than the other, and pads one batch more."""
    tars = stages.folder("one") / "qmm_tubes" / "train"
    for sim_th, length in itertools.product((0.9, 0.995, 0.999), (2, 3, 4, 5)):
        flags = ("--qmm_name", "one", "--sim_th", sim_th, "--filter_length", length, "--iou_th", 0.01, *LOOSE)
        stages.run("eval_qmm", *flags, "--subset", "train")
        people = len(list(TrackStore(next(tars.glob(f"*-sim{sim_th}-len{length}-*.tar")))))
        if people % 2:
            break
    assert people % 2 and people > 2
    flags += ("--dropout", 0, "--epochs", 2, "--batch_size", people // 2)
    compare(stages, "train_action_head", "one/head/{name}", "--head_name", "--iter_update", people, *flags)


@pytest.mark.slow
def test_two_processes_write_the_tars_that_one_writes(stages: Stages) -> None:
    """`torchrun eval_qmm.py`, from the frames on: queries and tracks are the same, byte for byte."""
    (tar,) = stages.folder("one/qmm_tubes/train").glob("*-sim0.4-*.tar")
    (queries,) = stages.folder("queries").glob("train-*.tar")
    for path in (tar, queries):
        shutil.move(path, path.with_suffix(".one"))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        ROOT / "eval_qmm.py",
    ]
    command += ["--dataset", "synthetic", "--data_root", stages.data, "--checkpoint_root", stages.checkpoint, *QUIET]
    command += ["--qmm_name", "one", "--subset", "train", *LOOSE]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=stages.data)
    assert done.returncode == 0, done.stderr
    for path in (tar, queries):
        assert path.read_bytes() == path.with_suffix(".one").read_bytes()
    assert done.stdout.count("tracks: ") == 1
