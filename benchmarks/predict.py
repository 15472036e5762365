"""What predict.py costs with the annotated video and without it, and how fast videos are read and written.

The script itself, on a video of `LENGTH` frames of `SIZE`, with a small detector of random weights whose detections
all count.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from benchmarks.query_cache import ROOT, write_random_detr
from benchmarks.rows import Row, seconds, show
from datasets.dataset import VideoFrames
from models.action_head import build_action_head
from models.detectors import open_detector
from models.person_encoder import PersonEncoder
from models.weights import weights_hash
from utils.drawing.timeline import Person
from utils.drawing.video_writer import annotated_video, resize_image
from utils.misc import rng
from utils.storage.files import save_torch

LENGTH, SIZE, PEOPLE = 795, (768, 576), 4
CONFIG = {
    "backbone": "resnet18", "stages": 3, "norm": "bn", "hidden_dim": 128, "nheads": 8, "enc_layers": 1, "dec_layers": 3,
    "dim_feedforward": 256, "num_queries": PEOPLE, "num_classes": 2, "image_size": 128,
}  # fmt: skip
LABELS = ["walk", "run", "sit"]
WRITTEN = 200  # frames
ASKED_TIME, ASKED_SPEED = 1.3, 0.95


def drifting_frames(n: int) -> Iterator[np.ndarray]:
    """Smooth texture that drifts, with some noise: uint8 RGB of `SIZE`."""
    width, height = SIZE
    random = rng(0)
    coarse = random.integers(0, 256, (height // 16, width // 8, 3), np.uint8)
    wide = cv2.resize(coarse, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    noise = random.integers(0, 8, (height, width, 3), np.uint8)
    for i in range(n):
        start = 2 * i % width
        yield cv2.add(wide[:, start : start + width], noise)


def write_plain_video(path: Path, n: int) -> None:
    """An H.264 video of `drifting_frames`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height = SIZE
        for frame in drifting_frames(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))


def write_models(folder: Path) -> None:
    """A detector, a person encoder and an action head of random weights, as the trainers write them."""
    write_random_detr(folder / "detr.pth", CONFIG)
    d = CONFIG["hidden_dim"]
    sizes = {"in_d": d, "out_d": d, "skip": True}
    encoder, head = PersonEncoder(**sizes), build_action_head("vanilla", len(LABELS), d)
    detector = open_detector(folder / "detr.pth", torch.device("cpu")).config()
    config = {"encoder": sizes, "detector": detector}
    save_torch(folder / "encoder.pth", {"model": encoder.state_dict(), "config": config, "epoch": 1})
    settings = {"psn_score_th": 0.0, "sim_th": 0.2, "filter_length": 8, "end_consecutive_frames": 8}
    settings |= {"linker": "published", "strict": False, "link_cues": "feature"}
    settings |= {"encoder": weights_hash(encoder.state_dict()), "detector": detector}
    config = {"head": head.config, "labels": LABELS, "settings": settings, "frames": None, "min_tube_length": 9}
    save_torch(folder / "head.pth", {"model": head.state_dict(), "config": config, "epoch": 1})


def predict_seconds(folder: Path, video: Path, *flags: str) -> float:
    """Seconds that predict.py takes, its start included."""
    models = [f"--{name}={folder / name}.pth" for name in ("detr", "encoder", "head")]
    command = [sys.executable, "predict.py", *models, f"--out={folder / 'out'}", "--device=cpu", *flags, str(video)]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def write_annotated(path: Path, frames: list[np.ndarray]) -> None:
    """An annotated video of `frames` with `PEOPLE` in each, in the way that predict.py writes it."""
    boxes = [np.float32([90 * i + 20, 100, 90 * i + 100, 400]) for i in range(PEOPLE)]
    people = [Person(i, box, i % len(LABELS), 0.5) for i, box in enumerate(boxes)]
    with annotated_video(path, SIZE, 25.0, LABELS, len(frames)) as write:
        for frame in frames:
            write(resize_image(frame), people)


def write_with_opencv(path: Path, frames: list[np.ndarray]) -> None:
    """The same frames by OpenCV's VP9, the codec that browsers play among those that its wheels encode."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"vp09"), 25, SIZE)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def read_with_opencv(path: Path) -> int:
    """Read a video with OpenCV, RGB; the number of frames."""
    capture, count = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), 0
    while (result := capture.read())[0]:
        cv2.cvtColor(result[1], cv2.COLOR_BGR2RGB)
        count += 1
    return count


def measure(length: int = LENGTH, written: int = WRITTEN) -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    size = f"{SIZE[0]} x {SIZE[1]}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = folder / "video.mp4"
        write_plain_video(video, length)
        write_models(folder)
        predict_seconds(folder, video, "--no_video")  # to warm up
        times = [(predict_seconds(folder, video), predict_seconds(folder, video, "--no_video")) for _ in range(2)]
        with_video, without = (min(column) for column in zip(*times, strict=True))
        read = length / seconds(lambda: sum(1 for _ in VideoFrames(video)))
        read_opencv = length / seconds(lambda: read_with_opencv(video))
        frames = list(drifting_frames(written))
        write = written / seconds(lambda: write_annotated(folder / "a.mp4", frames), 1)
        few = list(islice(frames, 20))
        write_opencv = len(few) / seconds(lambda: write_with_opencv(folder / "b.mp4", few), 1)
    return [
        Row(
            f"predict.py, {length} frames of {size}: with the video / without",
            with_video,
            without,
            "s",
            at_most=ASKED_TIME,
        ),
        Row(f"frames of {size} read: VideoFrames / cv2.VideoCapture", read, read_opencv, "frames/s", ASKED_SPEED),
        Row(f"frames of {size} drawn and written: H.264 / OpenCV's VP9, undrawn", write, write_opencv, "frames/s", 5),
    ]


if __name__ == "__main__":
    show(__doc__, measure)
