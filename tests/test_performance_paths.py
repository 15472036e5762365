"""The fast paths give what their definitions give: the N-pair loss, padded batches, the loader, the cache."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.head_batches import gradients
from benchmarks.npair import npair_by_loop
from benchmarks.rows import Row
from datasets.annotations import Video
from datasets.make_shards import encode_video
from datasets.track_batches import TrackBatches
from datasets.use_shards import ClipDataset
from models.action_head import build_action_head
from models.detectors import Detector, open_detector
from models.detr import DETR, build_model
from models.frame_features import BackboneFeatures, X3DFeatures
from models.frozen import run_ahead
from models.person_encoder import NPairLoss
from models.person_queries import cache_queries
from models.x3d import x3d_xs
from tests.fill import fill_state_dict
from tests.tars import as_bytes, write_samples
from train_action_head import classify, frame_losses
from utils.box_ops import Tube
from utils.misc import InputError, pick_device
from utils.storage.files import save_torch, write_sealed
from utils.storage.tars import write_tar
from utils.storage.tracks import TrackStore
from utils.storage.video_cache import VideoSample

SMALL = {"backbone": "resnet18", "stages": 2, "hidden_dim": 32, "nheads": 4, "enc_layers": 1, "dec_layers": 2}
SMALL |= {"dim_feedforward": 64, "num_queries": 6, "num_classes": 2, "image_size": 64}


def test_npair_loss_is_its_loop() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 0, 4])
    embs = torch.randn(10, 16, dtype=torch.float32)
    for tau in (1.0, 0.1):
        one, other = (embs.clone().requires_grad_() for _ in range(2))
        fast, slow = NPairLoss(tau)(one, labels), npair_by_loop(other, labels, tau)
        fast.backward(), slow.backward()
        torch.testing.assert_close(fast, slow)
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):  # under which it stays float32
            assert NPairLoss(tau)(one, labels) == fast


@pytest.fixture
def linked(tmp_path: Path) -> TrackStore:
    """Five followed people of two videos."""
    random = np.random.default_rng(0)
    samples = []
    for video, lengths in (("a", [3, 11, 6]), ("b", [1, 8])):
        n = sum(lengths)
        frames = np.concatenate([np.cumsum(random.integers(1, 3, length)) for length in lengths])
        columns = {"frames": frames, "boxes": random.random((n, 4), np.float32), "scores": random.random(n, np.float32)}
        queries = random.normal(size=(n, 16)).astype(np.float32)
        columns |= {"queries": queries, "features": queries, "labels": random.integers(4, size=n)}
        meta = {"name": video, "n_frames": 40, "width": 64, "height": 48, "fps": 25.0, "lengths": lengths}
        samples.append(({**meta, "settings": {"detector": {}}}, as_bytes(columns)))
    write_samples(tmp_path / "linked.tar", samples)
    return TrackStore(tmp_path / "linked.tar")


def test_padded_tubes_train_the_head_as_tubes_one_by_one_do(linked: TrackStore) -> None:
    data = TrackBatches(linked, seed=0)
    weight = torch.tensor([1.0, 1, 1, 0.3])
    held = []
    for size in (1, 2, 5):
        torch.manual_seed(0)
        head = build_action_head("time_ecd:cat", 3, 16, n_layers=1, nhead=4, time_d=8, dim_feedforward=16, dropout=0.0)
        chunks = data.chunks(range(5), -(-5 // size))
        classified = [classify(head, data.batch(tracks), weight.device) for tracks in chunks]
        parts = [frame_losses(*chunk, weight)[0].sum() / 5 for chunk in classified]
        sum(parts).backward()
        held.append(torch.cat([sum(parts).detach()[None], *(p.grad.flatten() for p in head.parameters())]))
    torch.testing.assert_close(held[1], held[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(held[2], held[0], atol=1e-6, rtol=1e-4)


def test_the_benchmark_of_the_head_compares_equal_steps() -> None:
    torch.manual_seed(0)
    head = build_action_head("vanilla", 3, 16, n_layers=1, nhead=4, dim_feedforward=16, dropout=0.0)
    tubes = [torch.randn(n, 16) for n in (5, 1, 9)]
    labels = [torch.randint(4, (len(tube),)) for tube in tubes]
    torch.testing.assert_close(gradients(head, tubes, labels, 3), gradients(head, tubes, labels, 1))


def test_a_clip_decodes_its_own_frames_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (30, 24, 32, 3), np.uint8)
    (tmp_path / "video").mkdir()
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / "video" / f"{i}.png"), picture)
    tube = Tube(np.arange(30), np.tile(np.float32([2, 2, 20, 20]), (30, 1)), 0, person_id=0)
    video = Video("video", 32, 24, 30, [tube])
    settings = {"image_size": 0, "quality": 95}
    meta, jpegs, _ = encode_video(video, tmp_path / "video", tmp_path / "frames", settings)
    write_tar(tmp_path / "shards" / "shard-0.tar", [(meta, jpegs)])
    write_sealed(tmp_path / "shards" / "index.json", {"shards": ["shard-0.tar"]})
    data, decoded, decode = ClipDataset(tmp_path / "shards", 4, 3), [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *args: decoded.append(1) or decode(*args))
    packed = data.pack([(0, 0)])
    assert len(decoded) == len(packed["frames"]) == 4


@pytest.fixture
def detr_path(tmp_path: Path) -> Path:
    """A checkpoint of a small detector."""
    detr = fill_state_dict(build_model(SMALL)[0])
    save_torch(tmp_path / "detr.pth", {"model": detr.state_dict(), "config": SMALL, "epoch": 1})
    return tmp_path / "detr.pth"


class Counted:
    """Two videos of random frames, 4:3 and wide; counts how often each is opened."""

    subset, skip_bad, view = "val", False, "plain"

    def __init__(self) -> None:
        self.shapes = {"one": (10, 48, 64), "two": (7, 32, 64)}
        self.opened: list[str] = []

    def sources(self) -> dict[str, list[int]]:
        return {name: [1, shape[0]] for name, shape in self.shapes.items()}

    def open(self, names: list[str], image_size: int, batch_size: int, pin: bool):
        for name in names:
            self.opened.append(name)
            n, h, w = self.shapes[name]
            frames = torch.randint(256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
            yield type("Video", (), {"name": name, "size": (w, h), "fps": 25.0, "batches": frames.split(batch_size)})


def test_the_detector_sees_each_frame_once_and_unpadded(
    detr_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, videos, seen = open_detector(detr_path, torch.device("cpu"), batch_size=4), Counted(), []
    forward = DETR.forward

    def counted(self: DETR, images: torch.Tensor, mask: torch.Tensor | None = None) -> dict:
        seen.append((tuple(images.shape[2:]), len(images), mask))
        return forward(self, images, mask)

    monkeypatch.setattr(DETR, "forward", counted)
    for threshold in (0.5, 0.3, 0.7):  # one extraction serves every threshold
        cache_queries(tmp_path / "queries", videos, detector, threshold)
    assert videos.opened == ["one", "two"]
    assert [n for _, n, _ in seen] == [4, 4, 2, 4, 3]
    assert {shape for shape, _, _ in seen} == {(48, 64), (32, 64)} and all(mask is None for *_, mask in seen)


def test_the_next_video_is_started_before_the_last_one_is_written(
    detr_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, events = open_detector(detr_path, torch.device("cpu"), batch_size=4), []
    launch, finish = Detector.launch, VideoSample.finish

    def launched(self: Detector, images: torch.Tensor) -> object:
        events.append(f"start {images.shape[2]}")
        return launch(self, images)

    def finished(self: VideoSample) -> None:
        events.append("write")
        finish(self)

    monkeypatch.setattr(Detector, "launch", launched)
    monkeypatch.setattr(VideoSample, "finish", finished)
    cache_queries(tmp_path / "queries", Counted(), detector, 0.5)
    assert events == ["start 48"] * 3 + ["start 32"] * 2 + ["write"] * 2


def test_what_was_started_before_an_error_is_still_given() -> None:
    drawn = []

    def items():
        for i in range(4):
            drawn.append(i)
            yield i
        raise ValueError

    given = run_ahead(items(), 2)
    assert (next(given), drawn) == (0, [0, 1, 2])
    assert [next(given) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError):
        next(given)
    assert list(run_ahead(range(3), 5)) == [0, 1, 2]


def test_the_gpu_that_is_named_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event on another GPU's stream does not wait for this one's results."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert [pick_device(name).index for name in ("1", "cuda", "cuda:0", "cpu")] == [1, 0, 0, None]
    assert chosen == [1, 0, 0]
    for name in ("2", "meta", "xyz", "-1"):
        with pytest.raises(InputError, match=f"--device {name}"):
            pick_device(name)


@pytest.mark.slow
def test_a_compiled_detector_is_not_compiled_for_every_shape(detr_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    detector, compiler = open_detector(detr_path, torch.device("cpu")), CompileCounter()
    detector.detr.compile(backend=compiler)
    for height, width in ((48, 64), (64, 48), (40, 64), (64, 32)):
        for n in (4, 3):
            list(detector.start([torch.zeros(n, 3, height, width, dtype=torch.uint8)], (width, height), 0.5))
    assert 0 < compiler.frame_count <= 4


class HostReads(TorchDispatchMode):
    """Names of the operations that make the host wait for a GPU: numbers read from it, new constants sent to it,
    shapes that depend on what it holds."""

    WAITS = (
        "item",
        "_local_scalar_dense",
        "lift_fresh",
        "nonzero",
        "masked_select",
        "repeat_interleave",
        "unique",
        "equal",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if any(wait in name for wait in self.WAITS):
            self.seen.append(name)
        return operation(*args, **(kwargs or {}))


def test_starting_a_batch_makes_the_host_wait_for_nothing(detr_path: Path, tmp_path: Path) -> None:
    frames = torch.randint(256, (4, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x3d = tmp_path / "x3d.pth"
    save_torch(x3d, {"model_state": x3d_xs().state_dict()})
    detectors = [open_detector(detr_path, torch.device("cpu"), amp=amp) for amp in (None, torch.bfloat16)]
    square = open_detector(detr_path, torch.device("cpu"), square=True)
    starts = [lambda d=d: d.start(frames.split(2), (64, 48), 0.5) for d in (*detectors, square)]
    starts.append(lambda: BackboneFeatures(detectors[1]).start(frames.split(2)))
    extractor = X3DFeatures(x3d, "centre", torch.device("cpu"), tmp_path)
    starts.append(lambda: extractor.start(frames.split(2)))
    for start in starts:
        wanted = list(start())  # constants that are made once
        with HostReads() as reads:
            found = list(start())
        assert reads.seen == []
        assert sum(n for n, _ in found) == 4 and len(wanted) == len(found)
    with HostReads() as reads:
        torch.tensor([1.0]).item()
    assert reads.seen  # they would be seen


@pytest.mark.parametrize("height, width", [(48, 64), (64, 40)])
def test_a_detector_of_squares_sees_frames_padded_by_hand(detr_path: Path, height: int, width: int) -> None:
    frames = torch.randint(256, (3, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_hand = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    by_hand[..., :height, :width] = frames
    plain, square = (open_detector(detr_path, torch.device("cpu"), square=on) for on in (False, True))
    assert square.key == plain.key.replace(str(plain.image_size), f"{plain.image_size}-square")
    ((_, wanted),) = plain.start([by_hand], (640, 640), 0.0)
    ((_, found),) = square.start([frames], (width * 10, height * 10), 0.0)
    for one, other in zip(wanted(), found(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert torch.equal(plain.backbone(by_hand), square.backbone(frames))


def test_rows_tell_whether_a_bound_is_met() -> None:
    assert Row("a", 30, 10, "x", at_least=3).cells()[-3:] == ["3", ">= 3", "yes"]
    assert Row("a", 30, 20, "x", at_most=1.1).cells()[-3:] == ["1.5", "<= 1.1", "NO"]
    assert Row("a", 30, 20, "x").cells()[-2:] == ["", ""]
