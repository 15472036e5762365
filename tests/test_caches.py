"""Caches of what takes hours: which samples stay when a list, a video or the form of the cache changes."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.config import load_project
from datasets.frame_batches import SubsetVideos
from models.detectors import Detections
from models.person_queries import cache_queries
from tests.videos import gradient_frames, write_video
from utils.misc import InputError
from utils.storage.tars import TarStore
from utils.storage.video_cache import fill_cache

Sources = dict[str, list[int]]


def fill(path: Path, sources: Sources, keep: bool = True, stop_at: str = "", **settings: int) -> list[str]:
    """Fill a cache of one number a video, its file's size; the videos that were missing, up to that where it stops."""
    made = []
    with fill_cache(path, sources, settings, keep=keep) as cache:
        for name in cache.missing:
            if name == stop_at:
                raise InterruptedError
            made.append(name)
            with cache.sample(name) as sample:
                sample.append({"size": np.array([sources[name][1]])})
    return made


def sizes(path: Path) -> dict[str, int]:
    store = TarStore(path)
    return {name: int(store.read(name, "size")[0]) for name in store.names}


def test_videos_that_are_not_listed_stay_in_a_cache_that_takes_hours(tmp_path: Path) -> None:
    path, sources = tmp_path / "x.tar", {name: [1, i, 10 + i] for i, name in enumerate("abc")}
    assert fill(path, sources) == ["a", "b", "c"]
    before = path.read_bytes()
    assert fill(path, {"b": sources["b"]}) == [] and path.read_bytes() == before
    assert fill(path, {"d": [1, 3, 13], "b": [1, 9, 19]}) == ["d", "b"]  # a new video, and a changed one
    assert sizes(path) == {"d": 3, "b": 9, "a": 0, "c": 2}
    assert fill(path, sources) == ["b"]
    assert fill(path, {"a": sources["a"]}, floor=0) == ["a"] and sizes(path) == {"a": 0}  # of other settings: none

    store = TarStore(path, "tar", ["a"])
    assert store.names == ["a"]
    with pytest.raises(InputError, match="no video 'd'"):
        TarStore(path, "tar", ["d"])


def test_a_damaged_sample_of_a_video_that_is_not_listed_is_dropped(tmp_path: Path) -> None:
    path, sources = tmp_path / "x.tar", {"a": [1, 111, 10], "b": [1, 222, 11]}
    fill(path, sources)
    path.write_bytes(path.read_bytes().replace((111).to_bytes(8, "little"), (112).to_bytes(8, "little")))
    assert fill(path, {"c": [1, 333, 12]}) == ["c"] and sizes(path) == {"c": 333, "b": 222}


def test_a_tar_that_has_to_hold_a_subset_holds_no_other_video(tmp_path: Path) -> None:
    path, sources = tmp_path / "x.tar", {name: [1, i, 10 + i] for i, name in enumerate("abc")}
    assert fill(path, sources, keep=False) == ["a", "b", "c"]
    for names in ("cb", "b"):
        assert fill(path, {name: sources[name] for name in names}, keep=False) == []
        assert list(sizes(path)) == list(names)


def test_what_a_stopped_run_of_a_longer_list_has_finished_stays(tmp_path: Path) -> None:
    path, sources = tmp_path / "x.tar", {name: [1, i, 10 + i] for i, name in enumerate("abcd")}
    fill(path, {"a": sources["a"]})
    with pytest.raises(InterruptedError):
        fill(path, sources, stop_at="d")
    assert fill(path, {"a": sources["a"]}) == []
    assert fill(path, {"e": [1, 4, 14]}) == ["e"] and sizes(path) == {"e": 4, "a": 0, "b": 1, "c": 2}
    assert not path.with_name("x.parts").exists()
    assert fill(path, sources) == ["d"]


def test_a_cache_on_a_network_file_system_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps a file that is open under another name, so that the folder of a held lock cannot be removed."""
    rmdir = os.rmdir

    def rmdir_of_nfs(path: str, **options: int) -> None:
        if "process." in str(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", rmdir_of_nfs)
    path, sources = tmp_path / "x.tar", {"a": [1, 5, 10], "b": [1, 6, 11]}
    assert fill(path, sources) == ["a", "b"] and sizes(path) == {"a": 5, "b": 6}
    assert fill(path, sources) == [] and [p.name for p in tmp_path.glob("x.parts/*")] == ["process.0"]


class Constant:
    """A detector that finds one person in each frame, with the frame's first pixel as query."""

    key, frame_size, batch_size, device = "constant", 0, 4, torch.device("cpu")

    def start(self, batches, size, floor):
        first = 0
        for images in batches:
            n = len(images)
            queries = images[:, :, 0, 0].numpy().astype(np.float32)
            of_batch = Detections(np.arange(first, first + n), np.ones(n, np.float32), np.ones((n, 4)), queries)
            yield n, lambda of_batch=of_batch: of_batch
            first += n


def raw_video(path: Path, shift: int) -> Path:
    return write_video(path, [np.roll(x, shift, 1) for x in gradient_frames(6)], "rawvideo", "bgr24")


def project_of(folder: Path, names: str):
    (folder / "train.txt").write_text("\n".join(names))
    (folder / "a.json").write_text('{"labels": ["walk"], "videos": {}}')
    fields = "name: own\nformat: json\nannotations: a.json\nframes: '{name}.avi'\nsplits: {train: train.txt}\n"
    (folder / "own.yml").write_text(fields)
    return load_project(folder / "own.yml")


def test_the_query_cache_names_the_listed_videos_and_sees_one_replaced_by_another_of_its_size(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        raw_video(tmp_path / f"{name}.avi", i)

    def queries(names: str) -> dict[str, float]:
        store = cache_queries(tmp_path / "queries", SubsetVideos(project_of(tmp_path, names), "train"), Constant())
        return {name: float(store.read(name, "queries")[0, 0]) for name in store.names}

    first = queries("abc")
    (tar,) = (tmp_path / "queries").glob("*.tar")
    before = tar.read_bytes()
    assert queries("ca") == {name: first[name] for name in "ca"} and list(queries("ca")) == ["c", "a"]
    assert tar.read_bytes() == before
    size = (tmp_path / "a.avi").stat().st_size
    raw_video(tmp_path / "a.avi", 9)
    assert (tmp_path / "a.avi").stat().st_size == size
    assert queries("a")["a"] != first["a"]
