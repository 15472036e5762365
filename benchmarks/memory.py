"""Peak memory of extracting queries and linking them, of a video of 20,000 frames and of one of 2,000.

eval_qmm.py itself, each run in a process of its own: it decodes the video, runs a small detector of full query width
over every frame, links 10 people a frame, writes the tar of tracks and evaluates it.
"""

import contextlib
import io
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.query_cache import ROOT, write_random_detr
from benchmarks.rows import Row, show
from models.detectors import open_detector
from models.person_encoder import PersonEncoder
from utils.storage.files import save_torch, write_json

SHORT, LONG, PEOPLE = 2000, 20000, 10
SIZE = (64, 48)  # width, height
CONFIG = {
    "backbone": "resnet18",
    "stages": 1,
    "nheads": 4,
    "enc_layers": 1,
    "dec_layers": 1,
    "dim_feedforward": 64,
    "num_queries": PEOPLE,
    "num_classes": 2,
    "image_size": SIZE[0] // 2,
}
ASKED = 1.1


def _write_video(path: Path, n_frames: int) -> None:
    """A video of noise that drifts."""
    width, height = SIZE
    wide = np.random.default_rng(0).integers(0, 256, (height, 2 * width, 3), np.uint8)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, SIZE)
    for i in range(n_frames):
        writer.write(np.ascontiguousarray(wide[:, i % width : i % width + width]))
    writer.release()


def _write_data(root: Path, lengths: list[int]) -> None:
    """A data set of one video for each length, a subset named by it, and models of random weights."""
    videos = {}
    for n in lengths:
        _write_video(root / f"{n}.avi", n)
        (root / f"{n}.txt").write_text(f"{n}\n")
        tube = {"label": 0, "person_id": 0, "frames": list(range(20)), "boxes": [[8, 8, 30, 40]] * 20}
        videos[str(n)] = {"width": SIZE[0], "height": SIZE[1], "n_frames": n, "tubes": [tube]}
    write_json(root / "annotations.json", {"labels": ["walk"], "videos": videos})
    splits = ", ".join(f"'{n}': {n}.txt" for n in lengths)
    (root / "long.yml").write_text(
        f"name: long\nroot: .\nformat: json\nannotations: annotations.json\nframes: '{{name}}.avi'\n"
        f"splits: {{{splits}}}\ndefaults: {{psn_score_th: 0.05, iou_th: 0.3, sim_th: 0.5, filter_length: 8}}\n"
    )
    write_random_detr(root / "detr.pth", CONFIG)
    torch.manual_seed(0)
    encoder = {"in_d": 256, "out_d": 256, "skip": True}
    detector = open_detector(root / "detr.pth", torch.device("cpu")).config()
    checkpoint = {"model": PersonEncoder(**encoder).state_dict(), "config": {"encoder": encoder, "detector": detector}}
    save_torch(root / "long" / "qmm" / "encoder" / "epoch_1.pth", {**checkpoint, "epoch": 1})


def peak_of_script(argv: list[str]) -> float:
    """Run a stage's script in this process and return the most memory that the process ever took, in MiB."""
    sys.argv = argv
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        runpy.run_path(str(ROOT / argv[0]), run_name="__stage__")["main"]()
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def _peak(root: Path, subset: int) -> float:
    """The peak of `eval_qmm.py` over a subset, in a fresh process."""
    flags = ["--dataset", root / "long.yml", "--subset", subset, "--checkpoint_root", root, "--n_frames", 16]
    flags += ["--device", "cpu", "--threads", 1, "--workers", 1, "--comet", "disabled"]
    code = "import sys; from benchmarks.memory import peak_of_script; print(peak_of_script(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "eval_qmm.py", *map(str, flags)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def measure(short: int = SHORT, long: int = LONG) -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_data(root, [short, long])
        least, most = (_peak(root, n) for n in (short, long))
    what = f"peak of eval_qmm, {PEOPLE} people a frame: video of {long:,} frames / of {short:,}"
    return [Row(what, most, least, "MiB", at_most=ASKED)]


if __name__ == "__main__":
    show(__doc__, measure)
