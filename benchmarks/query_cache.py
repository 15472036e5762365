"""Seconds an epoch of train_qmm.py from the cache of queries, against one that runs DETR on augmented clips.

The script itself, as its `metrics.jsonl` tells, on synthetic videos of UCF101's size. The detector is a whole DETR R50
of random weights (R101-DC5, the default, takes four times its arithmetic), so people are matched at a low IoU.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.rows import Row, show
from datasets.config import load_project
from datasets.make_shards import make_shards
from datasets.synthetic.videos import make_synthetic
from models.detr import build_model, full_config
from utils.storage.files import save_torch

ROOT = Path(__file__).parents[1]
VIDEOS, LENGTH, SIZE = 3, 30, (320, 240)
CONFIG = {"backbone": "resnet50", "image_size": SIZE[0], "num_classes": 2}
LOOSE = ("--psn_score_th", "0.1", "--iou_th", "0.05")  # a detector of random weights is not sure of anything
ASKED = 20


@torch.no_grad()
def write_random_detr(path: Path, config: dict) -> None:
    """A checkpoint of a detector of random weights whose boxes are spread over the picture."""
    torch.manual_seed(0)
    detr, _, _ = build_model(config)
    for name, value in detr.backbone.state_dict().items():
        if name.endswith("bn3.weight"):
            value.fill_(0.2)  # features keep their size through the layers
    detr.bbox_embed.layers[-1].weight.mul_(8)
    save_torch(path, {"model": detr.state_dict(), "config": full_config(config), "epoch": 0})


def _epoch_seconds(root: Path, name: str, epochs: int, *flags: str) -> float:
    """The median epoch of a run of `train_qmm.py` on the synthetic data set under `root`, the first left out."""
    common = ("--dataset", "synthetic", "--data_root", root, "--checkpoint_root", root, "--device", "cpu")
    what = ("--qmm_name", name, "--detr", root / "detr.pth", "--epochs", epochs, "--comet", "disabled")
    command = [sys.executable, "train_qmm.py", *common, *what, *LOOSE, *flags]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"train_qmm.py failed:\n{done.stderr}")
    lines = (root / "synthetic" / name / "encoder" / "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["seconds"] for line in lines[1:])


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_synthetic(root / "synthetic", VIDEOS, 1, *SIZE, length=(LENGTH, LENGTH))
        make_shards(load_project("synthetic", root), "train", root / "synthetic" / "shards" / "train")
        write_random_detr(root / "detr.pth", CONFIG)
        live = _epoch_seconds(root, "live", 2, "--no_query_cache")
        cached = _epoch_seconds(root, "cached", 8, "--threads", "1")  # a small network gains nothing from more
    what = f"epoch of train_qmm, {VIDEOS} clips of 8 frames, R50 at {SIZE[0]}x{SIZE[1]}: cache / DETR in each step"
    return [Row(what, 1 / cached, 1 / live, "epochs/s", at_least=ASKED)]


if __name__ == "__main__":
    show(__doc__, measure)
