"""Frames a second of DETR R101-DC5: the fast form on 4:3 frames against plain float32 padded to a square."""

import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detr import DETR, build_model, for_inference, normalize
from utils.misc import pick_device

HEIGHT, WIDTH = 384, 512  # a 4:3 video whose longer side is 512
GFLOP = 98  # of one such frame
MATRIX_TFLOPS = 790  # measured bf16 matrix rate of an H200
PIXELS = 0.5  # how far a box may move


@torch.no_grad()
def random_detr(device: torch.device) -> DETR:
    """R101-DC5 of random weights whose features keep their size through the layers and whose boxes are spread."""
    torch.manual_seed(0)
    detr, _, _ = build_model({"backbone": "resnet101", "dilation": True})
    for name, value in detr.backbone.state_dict().items():
        if name.endswith("bn3.weight"):
            value.fill_(0.2)
    detr.bbox_embed.layers[-1].weight.mul_(8)
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
def measure(device: str | None = None, batch: int = 0, rounds: int = 3) -> list[tuple[str, float, float, str]]:
    """Rows (what, figure, yardstick, unit); `batch` 0: 1 frame on a CPU, 64 on a GPU."""
    place = pick_device(device)
    gpu = place.type == "cuda"
    batch = batch or (64 if gpu else 1)
    plain = random_detr(place)
    frames = draw_frames(batch, place)
    square = F.pad(frames, (0, 0, 0, WIDTH - HEIGHT))
    mask = torch.zeros(batch, WIDTH, WIDTH, dtype=torch.bool, device=place)
    mask[:, HEIGHT:] = True
    slow = _rate(lambda: plain(normalize(square), mask), batch, rounds, place)
    wanted = plain(normalize(frames))["pred_boxes"]
    detr = for_inference(copy.deepcopy(plain), torch.bfloat16)
    if gpu:
        detr.compile()
    fast = _rate(lambda: detr(normalize(frames)), batch, rounds, place)
    found = detr(normalize(frames))["pred_boxes"]
    size = found.new_tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    moved = ((found - wanted) * size).abs().max().item()
    spread = (wanted * size).std(1).mean().item()
    rows = [
        (f"R101-DC5, bf16 {WIDTH}x{HEIGHT} / fp32 padded to {WIDTH}x{WIDTH}, {place.type}", fast, slow, "frames/s"),
        (f"bf16 boxes off by at most / allowed (boxes spread by {spread:.0f})", moved, PIXELS, "pixels"),
    ]
    if gpu:
        rows.append(("arithmetic / measured matrix rate of an H200", fast * GFLOP / 1000, MATRIX_TFLOPS, "TFLOP/s"))
    return rows


def main() -> None:
    """Print the rows."""
    for what, figure, yardstick, unit in measure():
        print(f"{what}: {figure:.3g} / {yardstick:.3g} {unit} = {figure / yardstick:.2f}")


if __name__ == "__main__":
    main()
