"""Shards behind URLs: what training gets of them, in which order, and how damage is told."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.stream_shards import StreamedClips
from datasets.use_shards import ClipDataset, Clips, epoch_batches, make_loader
from tests.killing import make_data
from tests.stages import TINY_DETR, Stages
from utils.misc import InputError
from utils.storage.tars import read_samples, write_tar

SETTINGS = {"n_frames": 3, "sampling_rate": 2, "clips_per_video": 2, "seed": 1}


@pytest.fixture
def urls(server: tuple[str, Path], shards: Path) -> tuple[str, Path]:
    """Two shards behind a web server: their pattern, and the folder that is served."""
    address, folder = server
    for path in shards.glob("*.tar"):
        shutil.copy(path, folder)
    return f"{address}shard-{{000000..000001}}.tar", folder


def load(clips: Clips, n: int = 2, first: int = 0, workers: int = 0, epoch: int = 0) -> list[dict]:
    return list(make_loader(clips, epoch_batches(clips, epoch, n)[first:], workers))


def same(a: dict, b: dict) -> bool:
    return a["names"] == b["names"] and torch.equal(a["images"], b["images"]) and torch.equal(a["frames"], b["frames"])


def test_streamed_clips_are_those_of_the_same_frames_on_disk(urls: tuple[str, Path], shards: Path) -> None:
    streamed = StreamedClips(urls[0], 20, train=False, **SETTINGS)
    stored = ClipDataset(shards, train=False, **SETTINGS)
    known = {}
    for batch in load(stored, 1):
        known[batch["names"][0], tuple(batch["frames"].tolist())] = batch
    seen = set()
    for batch in load(streamed, 1):
        key = batch["names"][0], tuple(batch["frames"].tolist())
        seen.add(key)
        assert batch.keys() == known[key].keys() and same(batch, known[key])
        for target, wanted in zip(batch["targets"], known[key]["targets"], strict=True):
            assert all(torch.equal(target[name], wanted[name]) for name in wanted)
    assert seen == known.keys() and len(streamed) == 20  # 8 clips, read again


def test_the_stream_is_the_same_for_any_workers_and_after_a_restart(urls: tuple[str, Path]) -> None:
    clips = [StreamedClips(urls[0], 10, **SETTINGS) for _ in range(3)]
    plain, threads = load(clips[0]), load(clips[1], workers=2)
    again = plain[:3] + load(clips[2], first=3, workers=1)
    assert len(plain) == 5
    for other in (threads, again):
        assert len(other) == 5 and all(map(same, plain, other))
    assert not all(map(same, plain, load(clips[0], epoch=1)))


def test_processes_share_the_shards(urls: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    names = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr("datasets.stream_shards.rank", lambda rank=rank: rank)
        monkeypatch.setattr("datasets.stream_shards.world_size", lambda: 2)
        clips = StreamedClips(urls[0], 4, **SETTINGS)  # as many as neither reads a shard again for
        batches = epoch_batches(clips, 0, 1, rank, 2)
        loaded = list(make_loader(clips, batches))
        assert [len(batch["names"]) for batch in loaded] == [len(keys) for keys in batches]
        assert all(map(same, loaded[1:], make_loader(clips, batches[1:])))
        names.append({name for batch in loaded for name in batch["names"]})
    assert names[0] and names[1] and not names[0] & names[1]
    monkeypatch.setattr("datasets.stream_shards.world_size", lambda: 3)
    with pytest.raises(InputError, match="2 shards cannot be shared by 3 processes"):
        StreamedClips(urls[0], 10)


def test_clips_are_mixed(urls: tuple[str, Path]) -> None:
    (order,) = [[name for batch in load(StreamedClips(urls[0], 64, **SETTINGS)) for name in batch["names"]]]
    runs = [len(list(group)) for _, group in itertools.groupby(order)]
    assert np.mean(runs) < 1.7  # 2 where a video's clips stay together


def test_a_command_gives_shards_too(urls: tuple[str, Path]) -> None:
    streamed = load(StreamedClips(urls[0], 6, **SETTINGS))
    piped = load(StreamedClips(f"pipe:cat {urls[1]}/shard-{{000000..000001}}.tar", 6, **SETTINGS))
    assert all(map(same, streamed, piped))


def test_what_cannot_be_read_is_one_line(urls: tuple[str, Path]) -> None:
    pattern, folder = urls
    with pytest.raises(InputError, match="give --clips_per_epoch"):
        StreamedClips(pattern, None)
    missing = pattern.replace("shard", "other")
    path = folder / "shard-000001.tar"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"\xff\xd8\xff") + 300] ^= 4
    cut = whole[: whole.rindex(b"\xff\xd8\xff") + 10]
    for data, where in ((whole, missing), (cut, pattern), (damaged, pattern), (b"x" * 999, pattern)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"(shard|other)-.*(cannot be read|is damaged)") as caught:
            load(StreamedClips(where, 20, n_frames=30, clips_per_video=2), workers=1)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_shards_without_a_clip_are_not_read_for_ever(shards: Path, tmp_path: Path) -> None:
    """Such as of videos whose key frames are all excluded."""
    samples = read_samples(shards / "shard-000000.tar")
    write_tar(tmp_path / "0.tar", ((meta | {"key_frames": []}, members) for meta, members in samples))
    with pytest.raises(InputError, match="no video of process 0's shards has frames for clips"):
        load(StreamedClips(f"pipe:cat {tmp_path}/0.tar", 4, **SETTINGS))


@pytest.mark.slow
def test_a_detector_trains_on_a_stream(server: tuple[str, Path], tmp_path: Path) -> None:
    make_data(tmp_path)
    stages = Stages(tmp_path / "data", tmp_path / "checkpoint")
    for path in (tmp_path / "data/synthetic/shards/train").glob("*.tar"):
        path.rename(server[1] / path.name)
    flags = ("--shards_path", f"{server[0]}shard-{{000000..000000}}.tar", "--clips_per_epoch", 6, "--batch_size", 2)
    for name, epochs in (("one", (2,)), ("two", (1, 2))):
        for n in epochs:
            stages.run("train_detr", "--ex_name", name, *TINY_DETR, *flags, "--epochs", n, "--resume")
    whole, resumed = (torch.load(stages.folder(n) / "detr/epoch_2.pth", weights_only=True) for n in ("one", "two"))
    assert all(torch.equal(value, resumed["model"][name]) for name, value in whole["model"].items())
