"""What a user waits for before anything is computed: `--help`, synthetic videos and shards."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.query_cache import ROOT
from benchmarks.rows import Row, seconds, show, timed
from datasets.config import load_project
from datasets.make_shards import make_shards
from datasets.synthetic.videos import make_synthetic
from utils.misc import available_cores

SCRIPTS = ("train_detr", "train_qmm", "eval_qmm", "train_action_head", "eval_map", "predict")
VIDEOS = 24
ASKED_HELP, ASKED_CORES = 0.5, 0.75  # share of importing PyTorch; of the time of one core on each of n


def command_seconds(*words: str) -> float:
    """The time of `python <words>`, after a run to warm up."""
    command = [sys.executable, *words]
    return seconds(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, check=True), rounds=1)


def call_seconds(function: Callable[..., object], *args: object, **options: object) -> float:
    """The time of one call."""
    return timed(partial(function, *args, **options))[1]


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    torch_seconds = command_seconds("-c", "import torch")
    slowest = max(command_seconds(f"{script}.py", "--help") for script in SCRIPTS)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_synthetic(root / "warm", 1, 1, workers=cores)
        rendered = [call_seconds(make_synthetic, root / f"{n}" / "synthetic", VIDEOS, 1, workers=n) for n in (cores, 1)]
        project = load_project("synthetic", root / "1")
        written = [call_seconds(make_shards, project, "train", root / f"shards-{n}", workers=n) for n in (cores, 1)]
    most = 1 / (cores * ASKED_CORES)
    return [
        Row("--help, the slowest of the stages / importing PyTorch", slowest, torch_seconds, "s", at_most=ASKED_HELP),
        Row(f"rendering {VIDEOS} synthetic videos: {cores} cores / 1", *rendered, "s", at_most=most),
        Row(f"their shards: {cores} cores / 1", *written, "s", at_most=most),
    ]


if __name__ == "__main__":
    show(__doc__, measure)
