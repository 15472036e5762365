"""Clips a second from shards with one worker thread, against bare `cv2.imdecode`."""

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.rows import Row, one_thread, show, timed
from datasets.annotations import Video
from datasets.make_shards import encode_video
from datasets.use_shards import ClipDataset, epoch_batches, make_loader
from utils.box_ops import Tube
from utils.storage.files import write_sealed
from utils.storage.tars import write_tar

CLIP, RATE, BATCH, ROUNDS = 8, 4, 8, 3
CLIPS = 200  # of one video
SIZE = (320, 240)  # width, height: UCF101's
ASKED, SAME = 0.85, 0.9


def _write_video(path: Path, n_frames: int, seed: int) -> None:
    """A video whose JPEGs are about as large as those of real ones: drifting smooth texture with some noise."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    coarse = rng.integers(0, 256, (height // 8, width // 4, 3), np.uint8)
    wide = cv2.resize(coarse, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 24, (height, width, 3), np.uint8)
    path.mkdir(parents=True)
    for i in range(n_frames):
        frame = cv2.add(wide[:, i % width : i % width + width], noise)
        cv2.imwrite(str(path / f"{i:06d}.png"), frame)


def _shards(folder: Path, lengths: list[int]) -> Path:
    """Shards of synthetic videos of these lengths."""
    out, samples = folder / "shards", []
    for i, length in enumerate(lengths):
        name = f"video{i}"
        _write_video(folder / name, length, i)
        boxes = np.tile(np.float32([40, 30, 120, 200]), (length, 1))
        video = Video(name, *SIZE, length, [Tube(np.arange(length), boxes, 0, person_id=0)])
        settings = {"image_size": 0, "quality": 95}
        meta, jpegs, _ = encode_video(video, folder / name, folder / f"{name}.frames", settings)
        samples.append((meta, jpegs))
    write_tar(out / "shard-000000.tar", samples)
    write_sealed(out / "index.json", {"shards": ["shard-000000.tar"]})
    return out


def _imdecode_rate(dataset: ClipDataset) -> float:
    """Clips a second of decoding JPEGs that lie in memory, and nothing else."""
    jpegs = [np.frombuffer(jpeg, np.uint8) for video in dataset.videos for jpeg in video.read(range(len(video)))]
    cv2.setNumThreads(0)
    _, spent = timed(lambda: [cv2.imdecode(jpeg, cv2.IMREAD_COLOR).size for jpeg in jpegs * 3])
    return 3 * len(jpegs) / spent / CLIP


def _loader_rate(dataset: ClipDataset) -> float:
    """Clips a second out of `make_loader` after its worker has started."""
    batches = epoch_batches(dataset, 0, BATCH)
    seen, start = 0, 0.0
    for i, batch in enumerate(make_loader(dataset, batches, workers=1)):
        if i == 4:  # the first batches were prepared while nobody waited
            seen, start = 0, time.perf_counter()
        seen += len(batch["names"])
    return (seen - BATCH) / (time.perf_counter() - start)


def _one(length: int) -> float:
    """Clips a second of one video of this length."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = ClipDataset(_shards(Path(folder), [length]), CLIP, RATE, clips_per_video=CLIPS)
        cv2.setNumThreads(0)
        return CLIPS / timed(lambda: [dataset.pack([(0, i)])["names"] for i in range(CLIPS)])[1]


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        dataset = ClipDataset(_shards(Path(folder), [120] * 8), CLIP, RATE, clips_per_video=60)
        rates = [(_loader_rate(dataset), _imdecode_rate(dataset)) for _ in range(ROUNDS)]
        loader, bare = np.median(rates, 0)
        what = f"clips of {CLIP} frames, 1 worker: loader / imdecode"
        return [
            Row(what, float(loader), float(bare), "clips/s", at_least=ASKED),
            Row("clips of a 2,000-frame video / of a 100-frame video", _one(2000), _one(100), "clips/s", SAME),
        ]


if __name__ == "__main__":
    show(__doc__, measure)
