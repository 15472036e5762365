"""Frames a second of DETR R101-DC5: the fast form on 4:3 frames against plain float32 padded to a square.

Weights are random, but spread boxes over the picture and person scores from 0 to 1, so that both can be compared.
"""

import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rows import Row, print_rows
from models.detr import DETR, PERSON, build_model, for_inference, normalize
from utils.misc import pick_device

HEIGHT, WIDTH = 384, 512  # a 4:3 video whose longer side is 512
GFLOP = 98  # of one such frame
MATRIX_TFLOPS = 790  # measured bf16 matrix rate of an H200
PIXELS = 0.5  # how far a box may move
THRESHOLDS = (0.05, 0.3, 0.5, 0.75, 0.9)  # of the person score
ASKED = {"cpu": 1.8, "cuda": 0.0}  # times the plain path
SHARE = 0.25  # of the peak, on a GPU


@torch.no_grad()
def random_detr(device: torch.device) -> DETR:
    """R101-DC5 of random weights whose features keep their size through the layers; boxes and scores are spread."""
    torch.manual_seed(0)
    detr, _, _ = build_model({"backbone": "resnet101", "dilation": True})
    for name, value in detr.backbone.state_dict().items():
        if name.endswith("bn3.weight"):
            value.fill_(0.2)
    detr.bbox_embed.layers[-1].weight.mul_(8)
    detr.class_embed.weight.mul_(4)
    detr.class_embed.bias.fill_(-30)
    detr.class_embed.bias[[PERSON, -1]] = 0  # a person or nothing
    return detr.to(device).eval()


def draw_frames(n: int, device: torch.device) -> Tensor:
    """uint8 (n, 3, HEIGHT, WIDTH): smooth patches under some noise."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 12, 16, generator=draw)
    noise = torch.randn(n, 3, HEIGHT, WIDTH, generator=draw)
    picture = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic") * 50 + noise * 8 + 128
    return picture.clamp(0, 255).to(device, torch.uint8)


def _rate(run: Callable[[], dict], frames: int, rounds: int, device: torch.device) -> float:
    """Frames a second of the fastest round, after two to warm up."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return frames / min(seconds[2:])


@torch.inference_mode()
def measure(device: str | None = None, batch: int = 0, rounds: int = 3) -> list[Row]:
    """Rows (what, figure, yardstick, unit, bounds); `batch` 0: 1 frame on a CPU, 64 on a GPU."""
    place = pick_device(device)
    gpu = place.type == "cuda"
    batch = batch or (64 if gpu else 1)
    plain = random_detr(place)
    frames = draw_frames(batch, place)
    square = F.pad(frames, (0, 0, 0, WIDTH - HEIGHT))
    mask = torch.zeros(batch, WIDTH, WIDTH, dtype=torch.bool, device=place)
    mask[:, HEIGHT:] = True
    slow = _rate(lambda: plain(normalize(square), mask), batch, rounds, place)
    wanted = plain(normalize(frames))
    detr = for_inference(copy.deepcopy(plain), torch.bfloat16)
    if gpu:
        detr.compile()
    fast = _rate(lambda: detr(normalize(frames)), batch, rounds, place)
    found = detr(normalize(frames))
    size = frames.new_tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float32)
    moved = ((found["pred_boxes"] - wanted["pred_boxes"]) * size).abs().max().item()
    spread = (wanted["pred_boxes"] * size).std(1).mean().item()
    above = [
        out["pred_logits"].softmax(-1)[..., PERSON, None] > torch.tensor(THRESHOLDS, device=place)
        for out in (found, wanted)
    ]
    changed, people = (above[0] != above[1]).sum().item(), above[1].sum().item()
    path = f"bf16 {WIDTH}x{HEIGHT} / fp32 padded to {WIDTH}x{WIDTH}"
    rows = [
        Row(f"R101-DC5, {path}, {place.type}", fast, slow, "frames/s", at_least=ASKED[place.type]),
        Row(f"bf16 boxes off by at most / allowed (boxes spread by {spread:.0f})", moved, PIXELS, "pixels", at_most=1),
        Row(f"bf16 people across any of {len(THRESHOLDS)} thresholds / above", changed, people, "people", at_most=0),
    ]
    if gpu:
        what = "arithmetic / measured matrix rate of an H200"
        rows.append(Row(what, fast * GFLOP / 1000, MATRIX_TFLOPS, "TFLOP/s", at_least=SHARE))
    return rows


if __name__ == "__main__":
    print_rows(measure())
