"""Running the stage scripts inside the tests' own process, on a tiny data set."""

import importlib
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from datasets.config import load_project
from datasets.make_shards import make_shards
from datasets.synthetic.videos import make_synthetic

TINY_DETR = shlex.split(
    "--detr scratch --backbone resnet18 --stages 2 --norm bn --hidden_dim 32 --nheads 4 --enc_layers 1 --dec_layers 2 "
    "--dim_feedforward 64 --num_queries 6 --pre_norm --dropout 0 --image_size 64 --lr 1e-3 --clips_per_video 4 "
    "--position_in_features --temperature 0.05"
)
QUIET = ("--threads", "1", "--workers", "1", "--device", "cpu")
LOOSE = ("--psn_score_th", "0.3")  # a detector of one epoch is not sure of anything


def make_data(root: Path) -> None:
    """The tiny data set and its shards, in `root/data`."""
    make_synthetic(root / "data" / "synthetic", n_train=5, n_val=2, width=64, height=48, length=(12, 16))
    project = load_project("synthetic", root / "data")
    for subset in ("train", "val"):
        make_shards(project, subset, root / "data" / "synthetic" / "shards" / subset)


class Stages:
    """The scripts, called with the flags that all of them need; `checkpoint` is where they write."""

    def __init__(self, data: Path, checkpoint: Path) -> None:
        self.data, self.checkpoint = data, checkpoint

    def run(self, script: str, *flags: object) -> None:
        """`python <script>.py <flags>`; what it raises passes through."""
        common = ["--dataset", "synthetic", "--data_root", self.data, "--checkpoint_root", self.checkpoint, *QUIET]
        common += ["--comet", "disabled"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{script}.py", *map(str, [*common, *flags])])
            importlib.import_module(script).main()

    def copy(self, root: Path) -> "Stages":
        """The same data and checkpoints in another folder."""
        shutil.copytree(self.data, root / "data")
        shutil.copytree(self.checkpoint, root / "checkpoint")
        return Stages(root / "data", root / "checkpoint")

    def results(self, name: str, stage: str) -> list[dict]:
        """What a stage's results files hold."""
        return [json.loads(p.read_text()) for p in sorted((self.folder(name) / "results").glob(f"{stage}-*.json"))]

    def folder(self, name: str) -> Path:
        """Where the runs of `name` write."""
        return self.checkpoint / "synthetic" / name

    def chain(self, name: str, *head_flags: object) -> None:
        """Every stage, from shards that are there to action tubes."""
        self.run("train_detr", "--ex_name", name, *TINY_DETR, "--epochs", 1)
        detr = self.folder(name) / "detr" / "epoch_1.pth"
        self.run("train_qmm", "--qmm_name", name, "--detr", detr, "--epochs", 2, "--iou_th", 0.05, *LOOSE)
        for subset in ("train", "val"):
            self.run("eval_qmm", "--qmm_name", name, "--subset", subset, *LOOSE)
        self.run("train_action_head", "--qmm_name", name, *head_flags, "--epochs", 2, *LOOSE)
        self.run("eval_map", "--qmm_name", name, *head_flags, "--min_tube_length", 1, *LOOSE)
