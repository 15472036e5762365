"""DETR R101-DC5: frames a second of the fast form on 4:3 frames, against plain float32 padded to a square; and of
smaller detectors of `transformers`, where it is installed, against R101-DC5 in the same form.

    python -m benchmarks.detr_inference [checkpoint of a trained detector] [--profile]

On a GPU it also tells what compiling and 16 bits change: frames a second, and memory beyond the weights.

Speed needs no trained weights. Whether 16 bits move boxes does: the queries of random weights are nearly one. That is
measured on synthetic people with a trained detector, by default the one that `scripts/demo.sh` leaves, if it is there.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.hf_models import MODELS, random_detector
from benchmarks.rows import Row, print_rows, seconds
from datasets.dataset import VideoFrames
from datasets.synthetic.videos import make_synthetic
from datasets.transforms import resize
from models import hf_detector
from models.detr import DETR, PERSON, build_model, for_inference, normalize
from models.hf_detector import for_inference as hf_fast
from models.weights import build_detr, read_detector
from utils.cli import Parser, run
from utils.misc import InputError, pick_device
from utils.storage.files import epoch_path

HEIGHT, WIDTH = 384, 512  # a 4:3 video whose longer side is 512
GFLOP = 98  # of one such frame
MATRIX_TFLOPS = 790  # measured bf16 matrix rate of an H200
PIXELS = 0.5  # how far a box may move
THRESHOLDS = (0.05, 0.3, 0.5, 0.75, 0.9)  # of the person score
ASKED = {"cpu": 1.8, "cuda": 0.0}  # times the plain path
DEMO = "checkpoint/synthetic/demo/detr"
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16"}
SHARE = 0.25  # of the peak, on a GPU
D_FINE_N = {"cpu": 8.0, "cuda": 0.0}  # times R101-DC5


@torch.no_grad()
def random_detr(device: torch.device) -> DETR:
    """R101-DC5 of random weights whose features keep their size through the layers."""
    torch.manual_seed(0)
    detr, _, _ = build_model({"backbone": "resnet101", "dilation": True})
    for name, value in detr.backbone.state_dict().items():
        if name.endswith("bn3.weight"):
            value.fill_(0.2)
    return detr.to(device).eval()


def draw_frames(n: int, device: torch.device) -> Tensor:
    """uint8 (n, 3, HEIGHT, WIDTH): smooth patches under some noise."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 12, 16, generator=draw)
    noise = torch.randn(n, 3, HEIGHT, WIDTH, generator=draw)
    picture = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic") * 50 + noise * 8 + 128
    return picture.clamp(0, 255).to(device, torch.uint8)


@torch.inference_mode()
def measure(trained: str | Path = DEMO, profiled: bool = False) -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds); `profiled`: prints where R101-DC5's time goes, too."""
    device = pick_device()
    gpu = device.type == "cuda"
    batch = 64 if gpu else 1
    plain, frames = random_detr(device), draw_frames(batch, device)
    square = F.pad(frames, (0, 0, 0, WIDTH - HEIGHT))
    mask = torch.zeros(batch, WIDTH, WIDTH, dtype=torch.bool, device=device)
    mask[:, HEIGHT:] = True
    slow = batch / seconds(lambda: plain(normalize(square), mask), warm_up=2)
    detr = for_inference(copy.deepcopy(plain), torch.bfloat16)
    eager = batch / seconds(lambda: detr(normalize(frames)), warm_up=2)
    memory = [peak_memory(lambda: plain(normalize(square), mask)), peak_memory(lambda: detr(normalize(frames)))]
    fast = eager
    if gpu:
        detr.compile()
        fast = batch / seconds(lambda: detr(normalize(frames)), warm_up=2)
    path = f"bf16 {WIDTH}x{HEIGHT} / fp32 padded to {WIDTH}x{WIDTH}"
    rows = [Row(f"R101-DC5, {path}, {device.type}", fast, slow, "frames/s", at_least=ASKED[device.type])]
    if gpu:
        what = "arithmetic / measured matrix rate of an H200"
        rows.append(Row(what, fast * GFLOP / 1000, MATRIX_TFLOPS, "TFLOP/s", at_least=SHARE))
        rows.append(Row("R101-DC5 in bf16: compiled / not", fast, eager, "frames/s"))
        rows.append(Row(f"memory of {batch} frames, {path}", memory[1], memory[0], "MiB", at_most=1))
    if profiled:
        print_profile(lambda: detr(normalize(frames)), device)
    if Path(trained).is_dir():
        trained = epoch_path(trained, None, "detector", "scripts/demo.sh")
    rows += other_detectors(plain, frames, device)
    return rows + (accuracy(trained, device) if Path(trained).is_file() else [])


def peak_memory(function: Callable[[], object]) -> float:
    """The MiB of a GPU's memory that a call takes beyond what is there before it; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def print_profile(function: Callable[[], object], device: torch.device) -> None:
    """Print the ten operations on which a call spends most time, on the GPU where there is one."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        function()
    print(
        profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=10, max_name_column_width=50)
    )


def other_detectors(plain: DETR, frames: Tensor, device: torch.device) -> list[Row]:
    """Frames a second of today's small detectors against R101-DC5's, all in 16 bits and compiled on a GPU, in float32
    on a CPU; the rows tell the GFLOP of a frame and the share of the measured matrix rate."""
    try:
        hf_detector.load_transformers()
    except InputError as error:
        print(f"no rows of other detectors: {error}", file=sys.stderr)
        return []
    half, side = (torch.bfloat16, 8192) if device.type == "cuda" else (None, 1024)
    square = torch.randn(side, side, device=device, dtype=half)
    peak = 2 * side**3 / 1e9 / seconds(lambda: square @ square, warm_up=2)
    rows, r101 = [], 0.0
    for name in ("R101-DC5", *MODELS):
        detector = random_detector(name, device) if name in MODELS else plain
        prepare = detector.prepare if name in MODELS else lambda images: (normalize(images),)
        with FlopCounterMode(display=False) as counter:
            detector.requires_grad_(False)(*prepare(frames[:1]))
        fast = for_inference(copy.deepcopy(plain), half) if detector is plain else hf_fast(detector, half)
        if half:
            fast.compile()
        rate = len(frames) / seconds(lambda fast=fast, prepare=prepare: fast(*prepare(frames)), warm_up=2)
        r101 = r101 or rate
        gflop = counter.get_total_flops() / 1e9
        what = f"{name}, {gflop:.1f} GFLOP a frame, {rate * gflop / peak:.0%} of the matrix rate / R101-DC5"
        rows.append(Row(what, rate, r101, "frames/s", at_least=D_FINE_N[device.type] * (name == "D-FINE-N")))
    return rows


@torch.inference_mode()
def accuracy(trained: str | Path, device: torch.device) -> list[Row]:
    """How far 16 bits move the boxes of a trained detector's people, and how many people across a threshold."""
    plain, config = build_detr(*read_detector(trained, "checkpoint"), device)
    detectors = [plain, *(for_inference(copy.deepcopy(plain), dtype) for dtype in SHORT)]
    boxes, scores = [], []
    with tempfile.TemporaryDirectory() as folder:
        make_synthetic(folder, n_train=1, n_val=6)
        for path in sorted(Path(folder, "videos").glob("val_*.avi")):
            frames = [resize(frame, config["image_size"]) for frame in VideoFrames(path)][::4]
            images = normalize(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).to(device))
            outputs = [detr(images) for detr in detectors]
            size = images.new_tensor(VideoFrames(path).size * 2)
            boxes.append(torch.stack([out["pred_boxes"] for out in outputs]).flatten(1, 2) * size)
            scores.append(torch.stack([out["pred_logits"].softmax(-1)[..., PERSON] for out in outputs]).flatten(1))
    moved, scores = torch.cat(boxes, 1), torch.cat(scores, 1)
    moved = (moved - moved[0]).abs().amax(-1)[:, scores[0] > THRESHOLDS[0]].amax(1).tolist()
    above = scores[..., None] > torch.tensor(THRESHOLDS, device=device)
    changed, total = (above != above[0]).sum((1, 2)).tolist(), int(above[0].sum())
    rows = []
    for dtype, far, n in zip(SHORT, moved[1:], changed[1:], strict=True):
        name = f"{config['backbone']} at {config['image_size']}, trained on synthetic people, {SHORT[dtype]}"
        rows.append(Row(f"{name}: boxes off by at most / allowed", far, PIXELS, "pixels", at_most=1))
        what = f"{name}: people across any of {len(THRESHOLDS)} thresholds / above"
        rows.append(Row(what, n, total, "people", at_most=0))
    return rows


def main() -> None:
    """The command line."""
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("trained", nargs="?", default=DEMO, help="checkpoint or run of a trained detector")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, too")
    args = parser.parse_args()
    print_rows(measure(args.trained, args.profile))


if __name__ == "__main__":
    run(main)
