"""Stages killed at random moments and gone on with; what they leave is compared with that of a run left alone."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from datasets.make_shards import main as make_shards
from predict import main as predict
from tests.processes import free_port, launch, set_rank, start_server
from tests.stages import LOOSE, QUIET, TINY_DETR, Stages, make_data

EVERY_STEP = ("--save_steps", 1)
NEEDS = {
    "make_shards": (),
    "train_detr": (),
    "train_qmm": ("one/detr",),
    "eval_qmm": ("one/detr", "one/encoder"),
    "train_action_head": ("one/encoder", "one/qmm_tubes"),
    "eval_map": ("one/encoder", "one/qmm_tubes", "one/head"),
    "predict": ("one/encoder", "one/head"),
}
"""The stages, and what each reads of those before it. `eval_qmm` also makes the queries anew."""

TOGETHER = ("train_detr", "train_qmm", "eval_qmm", "train_action_head")
"""The stages that run in several processes."""


def write_shards(data: Path, subset: str, *flags: object) -> None:
    """`python -m datasets.make_shards`."""
    with pytest.MonkeyPatch.context() as patch:
        argv = ["make_shards.py", "--dataset", "synthetic", "--data_root", data, "--subset", subset, *flags]
        patch.setattr(sys, "argv", list(map(str, argv)))
        make_shards()


def run_stage(stages: Stages, shards: Path, script: str, detr: Path, renames: int = 0) -> None:
    """One stage, in a process of its own; `renames` above 0 kills it just before it renames its n-th file."""
    left, replace = renames, Path.replace

    def counted(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = counted
    name = ("--qmm_name", "one")
    if script == "make_shards":
        write_shards(stages.data, "train", "--shards_path", shards, "--per_shard", 2, "--workers", 1)
    elif script == "train_detr":
        flags = ("--batch_size", 2, "--workers", 1, *EVERY_STEP)
        stages.run(script, "--ex_name", "one", *TINY_DETR, "--epochs", 2, *flags, "--resume")
    elif script == "train_qmm":
        flags = ("--epochs", 3, "--iou_th", 0.05, "--clips_per_video", 8, "--batch_size", 2, *EVERY_STEP)
        stages.run(script, *name, "--detr", detr, *flags, "--resume", *LOOSE)
    elif script == "train_action_head":
        stages.run(script, *name, "--epochs", 4, "--iter_update", 2, *EVERY_STEP, "--resume", *LOOSE)
    elif script == "predict":
        folder = stages.folder("one")
        argv = [*sorted((stages.data / "synthetic" / "videos").glob("val_*")), "--out", stages.checkpoint / "predicted"]
        argv += ["--encoder", folder / "encoder/epoch_3.pth", "--head", folder / "head/vanilla/epoch_4.pth"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["predict.py", *map(str, argv), "--detr", str(detr), *QUIET])
            predict()
    elif script == "eval_map":
        stages.run(script, *name, "--subset", "train", "--min_tube_length", 1, *LOOSE)
    else:
        stages.run(script, *name, "--subset", "train", *LOOSE)


def run_rank(number: int, port: int, *args: object) -> None:
    """`run_stage` as one of two processes that `torchrun` started."""
    set_rank(number, 2, port)
    run_stage(*args)


class Killing:
    """A whole chain under `root`, and stages of it killed and resumed in folders of their own."""

    def __init__(self, root: Path, seed: int) -> None:
        start_server()
        self.root, self.draw = root, random.Random(seed)
        make_data(root)
        self.whole = Stages(root / "data", root / "whole")
        self.seconds: dict[str, float] = {}
        for script in NEEDS:
            began = time.monotonic()
            status, said = self._finish(self.whole, script)
            self.seconds[script] = time.monotonic() - began
            assert status == 0, said

    def _launch(self, stages: Stages, script: str, renames: int = 0) -> tuple[BaseProcess, Path]:
        log = stages.checkpoint.with_suffix(".txt")
        detr = self.whole.folder("one") / "detr" / "epoch_2.pth"
        return launch(log, run_stage, stages, stages.checkpoint / "shards", script, detr, renames), log

    def _finish(self, stages: Stages, script: str, renames: int = 0) -> tuple[int, str]:
        process, log = self._launch(stages, script, renames)
        process.join()
        return process.exitcode, log.read_text()

    def _fresh(self, script: str) -> Stages:
        """A folder with what the stage needs."""
        stages = Stages(self.whole.data, self.root / "cut")
        shutil.rmtree(stages.checkpoint, ignore_errors=True)
        stages.checkpoint.mkdir()
        for part in NEEDS[script]:
            shutil.copytree(self.whole.folder(part), stages.folder(part))
        return stages

    def at_random(self, script: str, kills: int) -> None:
        """Kill the stage `kills` times, at moments spread evenly over its time, and compare whenever it has ended."""
        stages, done = self._fresh(script), 0
        while done < kills:
            process, log = self._launch(stages, script)
            process.join(self.draw.uniform(0, self.seconds[script]))
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                done += 1
                continue
            assert process.exitcode == 0, log.read_text()
            self.compare(stages, script)
            stages = self._fresh(script)
        self._end(stages, script)

    def at_renames(self, script: str, numbers: Iterator[int]) -> int:
        """Kill the stage, begun anew, just before its n-th file takes its place; how often there was an n-th."""
        killed = 0
        for number in numbers:
            stages = self._fresh(script)
            status, said = self._finish(stages, script, number)
            assert status in (0, -signal.SIGKILL), said
            if status == 0:
                break
            killed += 1
            self._end(stages, script)
        return killed

    def pairs_at_random(self, script: str, kills: int) -> None:
        """The same for the stage in two processes, of which one is killed. The other ends with a line, or is ended as
        torchrun does it; what they leave in the end is compared with that of two processes left alone."""
        stages = self._fresh(script)
        began, done = time.monotonic(), 0
        self._end_pair(stages, script)
        whole, seconds = contents(stages.checkpoint), time.monotonic() - began
        stages = self._fresh(script)
        while done < kills:
            pair = self._launch_pair(stages, script)
            hit, other = self.draw.sample(pair, 2)
            hit[0].join(self.draw.uniform(0, seconds))
            hit[0].kill()
            hit[0].join()
            for end in (lambda: None, other[0].terminate, other[0].kill):  # as torchrun, which gives it longer
                end()
                other[0].join(5)
            if hit[0].exitcode == 0:
                assert same(contents(stages.checkpoint), whole)
                stages = self._fresh(script)
                continue
            done += 1
            said = other[1].read_text()
            assert other[0].exitcode in (0, 2, 143, -signal.SIGKILL) and "Traceback" not in said, said
        self._end_pair(stages, script)
        assert same(contents(stages.checkpoint), whole)

    def _launch_pair(self, stages: Stages, script: str) -> list[tuple[BaseProcess, Path]]:
        detr = self.whole.folder("one") / "detr" / "epoch_2.pth"
        logs, port = [stages.checkpoint.with_suffix(f".{i}.txt") for i in range(2)], free_port()
        args = (port, stages, stages.checkpoint / "shards", script, detr)
        return [(launch(log, run_rank, i, *args), log) for i, log in enumerate(logs)]

    def _end_pair(self, stages: Stages, script: str) -> None:
        for process, log in self._launch_pair(stages, script):
            process.join()
            assert process.exitcode == 0, log.read_text()

    def _end(self, stages: Stages, script: str) -> None:
        status, said = self._finish(stages, script)
        assert status == 0, said
        self.compare(stages, script)

    def compare(self, stages: Stages, script: str) -> None:
        """Every file of the stage is there, and equal; nothing half made is left."""
        made, wanted = contents(stages.checkpoint), contents(self.whole.checkpoint)
        assert made, script
        for path, value in made.items():
            assert same(value, wanted[path]), f"{script}: {path} differs"
        parts = {"make_shards": ["shards"], "train_detr": ["synthetic/one/detr"], "eval_map": ["results/eval_map"]}
        parts["predict"] = ["predicted/"]
        needed = [path for path in wanted if any(part in path for part in parts.get(script, ()))]
        assert set(needed) <= made.keys(), f"{script}: files are missing"


def contents(folder: Path) -> dict[str, object]:
    """What the files under `folder` hold, without times and places; an assertion that none is half made."""
    held = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        assert not any(mark in name for mark in (".part", ".work", ".previous")), f"{name} is left"
        if path.suffix in (".tar", ".mp4"):
            held[name] = path.read_bytes()
        elif path.suffix == ".pth":
            state = torch.load(path, weights_only=True)
            held[name] = {key: state[key] for key in ("model", "optimizer", "epoch") if key in state}
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            held[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        elif path.suffix == ".json":
            value = json.loads(path.read_text())
            held[name] = value.get("metrics", value)
    return held


def same(a: object, b: object) -> bool:
    """Equal, tensors bit for bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
