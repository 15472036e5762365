"""What a video's file is known by."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets.frame_batches import BLOCK, measure


@pytest.mark.parametrize("at", [0, BLOCK * 5, BLOCK * 10 - 1], ids=["start", "middle", "end"])
def test_a_file_is_measured_by_a_few_of_its_blocks(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "v.avi", bytearray(np.random.default_rng(0).bytes(BLOCK * 10))
    path.write_bytes(data)
    before = measure(path)
    os.utime(path, (0, 0))
    shutil.copy(path, tmp_path / "copy.avi")
    assert measure(path) == measure(tmp_path / "copy.avi") == before and before[:2] == [1, BLOCK * 10]
    data[at] ^= 1
    path.write_bytes(data)
    assert measure(path)[:2] == before[:2] and measure(path) != before
    reads, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(args[1]) or pread(*args))
    measure(path)
    assert len(reads) <= 3 and sum(reads) <= 3 * BLOCK


def test_a_folder_of_images_is_measured_by_its_names_sizes_and_a_few_files(tmp_path: Path) -> None:
    def measured(names: str, changed: str = "") -> list[int]:
        folder = tmp_path / "v"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"jpeg" + (b"!" if name == changed else b"?"))
        try:
            return measure(folder)
        finally:
            shutil.rmtree(folder)

    before = measured("abcde")
    assert before[:2] == [5, 25] and measured("edcba") == before
    for other in (measured("abcdf"), *(measured("abcde", name) for name in "ace")):
        assert other[:2] == before[:2] and other != before
    assert measured("")[:2] == [0, 0]


def test_what_cannot_be_read_is_measured_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # which would never end
    assert measure(tmp_path / "missing") == measure(tmp_path / "fifo") == [1, 0, 0]
