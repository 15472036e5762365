"""Tracks of many minutes: attention and batches whose memory does not grow with the square of their length."""

import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datasets.track_batches import TrackBatches
from models import long_attention
from models.link_settings import LinkSettings
from models.long_attention import LongAttention
from tests.tars import as_bytes, write_samples
from utils.box_ops import Track
from utils.gt_tubes import tubes_checksum

ROOT = Path(__file__).parents[1]
STEP = """
import resource, sys, torch
from models.action_head import build_action_head
torch.set_num_threads(1)
head = build_action_head(sys.argv[1], 3, 32, dim_feedforward=32).train()
queries, times = torch.randn(1, int(sys.argv[2]), 32), torch.arange(int(sys.argv[2]))[None]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
head(queries[:, :9], times[:, :9]).square().mean().backward()
before = peak()
head(queries, times).square().mean().backward()
print((peak() - before) // 1024)
"""

MEASURED = """
import resource, runpy, sys
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def attention(width: int = 12, nhead: int = 2, dropout: float = 0.1) -> LongAttention:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(width, nhead, dropout)
    nn.init.normal_(plain.in_proj_bias)
    long_attention.use_long_attention(plain)
    return plain.train()


def test_short_tracks_train_bit_for_bit_as_with_pytorchs_own_attention() -> None:
    own, x = attention(), torch.randn(9, 2, 12)
    plain = nn.MultiheadAttention(12, 2, 0.1)
    plain.load_state_dict(own.state_dict())
    padding = torch.arange(9) >= torch.tensor([[9], [4]])
    outputs = []
    for module in (own, plain):
        torch.manual_seed(1)
        outputs.append(module(x, x, x, key_padding_mask=padding, need_weights=False)[0])
    assert type(own) is LongAttention and torch.equal(*outputs)


@pytest.mark.parametrize("as_float", [True, False])
def test_long_tracks_are_attended_to_as_short_ones_are(monkeypatch: pytest.MonkeyPatch, as_float: bool) -> None:
    module = attention(dropout=1e-12)  # too small to drop anything
    query, key = torch.randn(7, 3, 12, requires_grad=True), torch.randn(9, 3, 12)
    padding = torch.arange(9) >= torch.tensor([[9], [4], [1]])
    mask = torch.zeros(3, 9).masked_fill(padding, -torch.inf) if as_float else padding
    results = []
    for limit in (2**24, 0):
        monkeypatch.setattr(long_attention, "MATRIX", limit)
        module.zero_grad()
        query.grad = None
        out, _ = module(query, key, key, key_padding_mask=mask, need_weights=False)
        out.square().sum().backward()
        results.append([out, query.grad.clone(), *(p.grad.clone() for p in module.parameters())])
    for short, long in zip(*results, strict=True):
        torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-4)


def test_dropped_keys_leave_the_mean_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = attention(dropout=0.3), torch.randn(5, 400, 12)
    x[:] = x[:, :1]  # 400 times the same track
    plain = module.eval()(x, x, x, need_weights=False)[0][:, 0]
    monkeypatch.setattr(long_attention, "MATRIX", 0)
    drawn = module.train()(x, x, x, need_weights=False)[0]
    error = (drawn.mean(1) - plain) / (drawn.std(1) / 400**0.5)
    assert drawn.std(1).min() > 0.01 and error.abs().max() < 4.5  # standard errors, of 60 numbers


@pytest.mark.slow
def test_a_step_holds_no_matrix_of_all_frames_by_all_frames() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEP, "time_ecd:cat", "2500"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) < 150  # MiB; one matrix of 8 heads has 191


def batches(lengths: list[int]) -> TrackBatches:
    tracks = [Track(np.arange(n), np.zeros((n, 4)), np.ones(n), labels=np.zeros(n), video=str(n)) for n in lengths]
    return TrackBatches(tracks, seed=0)


def test_batches_are_bounded_by_their_padded_frames() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 60).tolist()
    lengths.append(5000)
    data = batches(lengths)
    free = data.chunks(range(61), 4)
    assert [len(chunk) for chunk in free] == [16, 15, 15, 15]
    assert [list(map(len, chunk)) for chunk in data.chunks(range(61), 4, 10**6)] == [list(map(len, c)) for c in free]
    bounded = data.chunks(range(61), 4, 1000)
    assert sorted(len(track) for chunk in bounded for track in chunk) == sorted(lengths)
    assert all(len(chunk) * max(map(len, chunk)) <= 1000 for chunk in bounded[:-1])
    assert list(map(len, bounded[-1])) == [5000]
    assert data.chunks([0], 3) == [[data.tracks[0]], [], []]


def write_tracks(path: Path, lengths: list[int], width: int) -> None:
    """A tar of tracks with one label all along."""
    n = sum(lengths)
    draw = np.random.default_rng(0)
    queries = draw.standard_normal((n, width), np.float32)
    columns = {"frames": np.concatenate([np.arange(k) for k in lengths]), "boxes": np.zeros((n, 4), np.float32)}
    columns |= {"scores": np.ones(n, np.float32), "queries": queries, "features": queries[:, :1]}
    columns |= {"labels": np.zeros(n, np.int64)}
    meta = {"name": "a", "n_frames": max(lengths), "width": 64, "height": 48, "fps": 25.0, "lengths": lengths}
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = LinkSettings(1, 0.9, 0.5, 8, 8, 0.2, "feature")
    made_with = {**asdict(settings), "labels": ["walk"], "encoder": "e", "detector": {"key": "k"}}
    meta |= {"made_from": {"source": [1, 0, tubes_checksum([], False)], "settings": made_with}, "settings": made_with}
    write_samples(path, [(meta, as_bytes(columns))])


def train(folder: Path, lengths: list[int], width: int, limit: int = 0) -> subprocess.CompletedProcess:
    """`train_action_head.py` for one epoch on such tracks, under a `limit` of address space in MiB; the last thing that
    it prints is the most memory that it had, in KiB."""
    name = "epoch1-psn0.9-sim0.5-len8-end8-iou0.2-feature.tar"
    write_tracks(folder / "checkpoint" / "own" / "qmm" / "qmm_tubes" / "train" / name, lengths, width)
    (folder / "t").write_text("a")
    (folder / "a.json").write_text('{"videos": {"a": {"tubes": []}}}')
    (folder / "own.yml").write_text(
        "{name: own, format: json, annotations: a.json, frames: '{name}', splits: {train: t}, labels: [walk]}"
    )
    flags = ["--dataset", folder / "own.yml", "--checkpoint_root", folder / "checkpoint", "--load_epoch", 1]
    flags += ["--epochs", 1, "--batch_size", 64, "--device", "cpu", "--comet", "disabled", "--threads", 1]
    command = [sys.executable, "-c", MEASURED, str(ROOT / "train_action_head.py"), *map(str, flags)]

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit * 2**20, limit * 2**20))

    return subprocess.run(command, capture_output=True, text=True, preexec_fn=bounded if limit else None, check=False)


@pytest.mark.slow
def test_where_memory_does_not_suffice_one_line_names_the_flag(tmp_path: Path) -> None:
    done = train(tmp_path, [200] * 64, 1024, limit=4600)
    assert done.returncode == 2, done
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert "memory is full; try a smaller --max_frames_in_batch" in line


@pytest.mark.slow
def test_the_stage_trains_on_a_track_of_minutes(tmp_path: Path) -> None:
    done = train(tmp_path, [8_000, 300], 256)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint" / "own" / "qmm" / "head" / "vanilla" / "epoch_1.pth").is_file()
    assert int(done.stdout.split()[-1]) < 1.9 * 2**20  # KiB; one matrix of 8 heads has 2,000,000, beside all else
