"""Files whole or not at all: full disks, power loss, two runs at once; videos that break on the way."""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.check import contact_sheet
from models.detectors import Detector
from models.weights import SHIPPED
from tests.killing import write_shards
from tests.stages import LOOSE, TINY_DETR, Stages
from tests.tars import as_bytes, write_samples
from utils.cli import run
from utils.misc import InputError
from utils.run_log import append_json
from utils.storage.files import lock, save_torch, write_json
from utils.storage.tars import TarStore, whole_file, write_tar
from utils.storage.video_cache import VideoCache, fill_cache
from utils.training.resume import NONFINITE, STATE, set_aside

NUMBERS = np.random.default_rng(0).integers(0, 255, 400_000).astype(np.uint8)  # that nothing compresses


def cache(path: Path) -> None:
    with fill_cache(path, {"v": [1]}, {}) as filling:
        for name in filling.missing:
            with filling.sample(name) as sample:
                sample.append({"a": NUMBERS[:, None]})


def tar(path: Path) -> None:
    large = whole_file(SHIPPED / "synthetic" / "detr.pth")  # a large file that is there
    write_tar(path, [({"name": "v"}, {"large.npy": large})])


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.json": lambda path: write_json(path, NUMBERS.tolist()),
    "a.pth": lambda path: save_torch(path, {"model": {"a": torch.from_numpy(NUMBERS)}}),
    "a.tar": tar,
    "cache.tar": cache,
    "a.png": lambda path: contact_sheet([NUMBERS[: 360 * 360 * 3].reshape(360, 360, 3)], path),
    "a.jsonl": lambda path: append_json(path, {"a": NUMBERS.tolist()}),
}


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A script ends with its signals ignored; the tests go on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # what failed may still hold a file open


def assert_refused(write: Callable[[Path], None], path: Path, error: str) -> None:
    """The write fails with the file's name, and what was there is unchanged."""
    before = path.read_bytes()
    with pytest.raises(OSError, match=error) as caught:
        write(path)
    assert Path(caught.value.filename).name in (path.name, "a.npy", "sample.json", "cache.parts")
    if path.suffix == ".jsonl":
        assert path.read_bytes().startswith(before)
    else:
        assert path.read_bytes() == before
    assert not [p.name for p in path.parent.iterdir() if ".part" in p.name and p.name != "cache.parts"]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_write_beyond_the_limit_names_the_file_and_leaves_the_old_one(tmp_path: Path, name: str, size: int) -> None:
    (tmp_path / name).write_bytes(b"the old one\n")
    with largest_file(size):
        assert_refused(WRITERS[name], tmp_path / name, "File too large")
    if name != "a.jsonl":
        WRITERS[name](tmp_path / name)
        assert (tmp_path / name).stat().st_size > size


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_the_old_one(small_disk: Path, name: str) -> None:
    (small_disk / name).write_bytes(b"the old one\n")
    assert_refused(WRITERS[name], small_disk / name, "No space left")


def test_a_folder_that_may_not_be_written_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run(lambda: write_json(tmp_path / "file" / "a.json", 1))
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_tar_that_takes_the_place_of_an_open_one_is_not_read(tmp_path: Path) -> None:
    """A trainer reads a query cache for hours, and another command may make it anew meanwhile."""
    arrays = {name: np.arange(600, dtype=np.float32) + i for i, name in enumerate("ab")}
    members = as_bytes(arrays)
    write_samples(tmp_path / "x.tar", [({"name": "v"}, members), ({"name": "w"}, members)])
    store = TarStore(tmp_path / "x.tar")
    np.testing.assert_array_equal(store.read("w", "a"), arrays["a"])
    other = as_bytes({name: np.arange(9000, dtype=np.float32) for name in arrays})
    write_samples(tmp_path / "x.tar", [({"name": "w"}, other)])

    def assert_is_read() -> None:
        for name in "vw":
            for column, values in arrays.items():
                np.testing.assert_array_equal(store.read(name, column, slice(2, 9)), values[2:9])

    reader = multiprocessing.get_context("fork").Process(target=assert_is_read)
    reader.start()
    reader.join()
    assert reader.exitcode == 0
    assert_is_read()


def test_a_cache_leaves_the_unfinished_files_of_other_tars(tmp_path: Path) -> None:
    """Another machine may be writing one in the same folder; its processes are unknown here."""
    other, own = (tmp_path / f".{stem}.{2**30}-0a.part.tar" for stem in ("other", "cache"))
    other.touch()
    own.touch()
    cache(tmp_path / "cache.tar")
    assert other.exists() and not own.exists()


def test_data_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (order.append("renamed"), replace(old, new)))
    write_json(tmp_path / "a.json", 1)
    assert len(order) == 3 and ".part" in order[0] and order[1] == "renamed" and order[2] == str(tmp_path)


def test_a_former_run_is_moved_without_loss_wherever_the_move_is_cut(tmp_path: Path) -> None:
    for done in range(4):
        folder = tmp_path / str(done)
        (folder / "previous-1").mkdir(parents=True)
        (folder / "previous-1" / "epoch_9.pth").write_text("older")
        names = [STATE, "epoch_1.pth", "epoch_2.pth"]
        for i, name in enumerate(names):
            place = folder / ".previous" if i < done else folder
            place.mkdir(exist_ok=True)
            (place / name).write_text(name)
        set_aside(folder)
        assert sorted(p.name for p in (folder / "previous-2").iterdir()) == sorted(names)
        assert sorted(p.name for p in folder.iterdir()) == ["previous-1", "previous-2"]
        assert (folder / "previous-1" / "epoch_9.pth").read_text() == "older", "a third run removes nothing"


# --- stages ---


@pytest.fixture
def copy(stages: Stages, tmp_path: Path) -> Stages:
    """A chain to spoil."""
    return stages.copy(tmp_path)


def in_script(stages: Stages, capsys: pytest.CaptureFixture[str], *command: object) -> tuple[int, str]:
    """Exit status and stderr of a stage."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(lambda: stages.run(*command))
    return stop.value.code, capsys.readouterr().err


def test_stages_on_a_full_disk_say_so_and_lose_nothing(copy: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    detr = copy.folder("one") / "detr"
    before = {path.name: path.read_bytes() for path in detr.iterdir() if path.is_file()}
    training = ("train_detr", "--ex_name", "one", *TINY_DETR, "--epochs", 2, "--resume")
    with largest_file(200_000):
        status, said = in_script(copy, capsys, *training)
    assert status == 2 and said.count("\n") == 1 and f"{STATE}: File too large" in said and "make room" in said
    assert {path.name: path.read_bytes() for path in detr.iterdir() if path.is_file()} == before
    copy.run(*training)
    assert (detr / "epoch_2.pth").is_file()

    linking = ("eval_qmm", "--qmm_name", "one", "--skip_bad", *LOOSE)
    for what in ("queries", "one/qmm_tubes"):
        (held,) = copy.folder(what).rglob("val*.tar" if what == "queries" else "val/*.tar")
        before = held.read_bytes()
        held.unlink()
        with largest_file(2000):
            status, said = in_script(copy, capsys, *linking)
        assert status == 2 and "File too large" in said.splitlines()[-1], "not a fault of the videos"
        copy.run(*linking)
        assert held.read_bytes() == before


def test_shards_on_a_full_disk_are_no_fault_of_the_videos(copy: Stages, tmp_path: Path) -> None:
    for size in (1000, 12_000):  # less than a video's frames, and less than a shard
        with largest_file(size), pytest.raises(OSError, match="File too large"):
            write_shards(copy.data, "val", "--shards_path", tmp_path / "new", "--skip_bad")
        assert [p.name for p in (tmp_path / "new" / "val").iterdir()] == [".lock"]
    write_shards(copy.data, "val", "--shards_path", tmp_path / "new")


def test_the_second_run_of_a_name_says_so(copy: Stages, tmp_path: Path) -> None:
    folder = copy.folder("one")
    detr = ("--detr", folder / "detr" / "epoch_1.pth", "--iou_th", 0.05)
    for part, command in {
        "detr": ("train_detr", "--ex_name", "one", *TINY_DETR),
        "encoder": ("train_qmm", "--qmm_name", "one", *detr, *LOOSE),
        "head/vanilla": ("train_action_head", "--qmm_name", "one", *LOOSE),
    }.items():
        with lock(folder / part, "training run"), pytest.raises(InputError, match=f"{part}: another training run"):
            copy.run(*command, "--epochs", 1)
    for what in (copy.folder("queries"), folder / "qmm_tubes" / "val"):
        (held,) = what.glob("val*.tar" if what.name == "queries" else "*.tar")
        held.unlink()
        work = held.with_name(f"{held.stem}.parts") / "process.0"
        with lock(work, "run"), pytest.raises(InputError, match="another run is writing here"):
            copy.run("eval_qmm", "--qmm_name", "one", *LOOSE)
        copy.run("eval_qmm", "--qmm_name", "one", *LOOSE)
    shards = tmp_path / "new" / "val"
    with lock(shards, "make_shards"), pytest.raises(InputError, match="another make_shards"):
        write_shards(copy.data, "val", "--shards_path", shards.parent)


def test_a_cache_made_by_another_run_in_the_meantime_is_taken(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    (held,) = stages.folder("queries").glob("val*.tar")
    before = held.read_bytes()
    asked = iter([False])
    monkeypatch.setattr(VideoCache, "is_complete", lambda _: next(asked))
    monkeypatch.setattr(Detector, "start", lambda *_: pytest.fail("DETR ran again"))
    stages.run("eval_qmm", "--qmm_name", "one", "--from_tar", *LOOSE)
    monkeypatch.setattr(
        "utils.storage.video_cache.VideoCache.is_complete", lambda cache: "queries" not in str(cache.path)
    )
    stages.run("eval_qmm", "--qmm_name", "one", *LOOSE)
    assert held.read_bytes() == before and not list(held.parent.glob("*.parts"))


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        (("train_detr", "--ex_name", "wild", *TINY_DETR, "--epochs", 2, "--lr", "1e30"), "detr"),
        (("train_qmm", "--qmm_name", "wild", *LOOSE, "--epochs", 9, "--lr_en", "1e38"), "encoder"),
    ],
)
def test_a_loss_that_is_not_finite_stops_a_stage_with_its_videos_named(copy: Stages, flags: tuple, folder: str) -> None:
    if folder == "encoder":
        flags = (*flags, "--detr", copy.folder("one") / "detr" / "epoch_1.pth")
    with pytest.raises(InputError, match=r"not finite.*--skip_nonfinite"):
        copy.run(*flags)
    held = json.loads((copy.folder("wild") / folder / NONFINITE).read_text().splitlines()[0])
    names = (copy.data / "synthetic" / "train.txt").read_text().split()
    assert set(held["processes"][0]["batch"]) <= set(names) and held["processes"][0]["batch"]


# --- videos that cannot be used ---


def test_bad_videos_stop_each_stage_or_are_listed_and_left_out(
    copy: Stages, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = copy.data / "synthetic"
    broken = [data / "videos" / f"{(data / f'{subset}.txt').read_text().split()[0]}.avi" for subset in ("train", "val")]
    whole = [path.read_bytes() for path in broken]
    for path, held in zip(broken, whole, strict=True):
        path.write_bytes(held[: len(held) // 2])
    text = json.loads((data / "annotations.json").read_text())
    spoiled = (data / "train.txt").read_text().split()[1]
    text["videos"][spoiled]["tubes"][0]["boxes"][0][0] = float("nan")
    (data / "annotations.json").write_text(json.dumps(text))
    detr = copy.folder("one") / "detr" / "epoch_1.pth"
    name = ("--qmm_name", "bad", *LOOSE)
    skip = "--skip_bad"

    matching = ("train_qmm", *name, "--detr", detr, "--iou_th", 0.05, "--epochs", 1)
    with pytest.raises(InputError, match=rf"{spoiled}', tube 0, frame 0: box is not finite"):  # before any decoding
        copy.run(*matching)
    copy.run(*matching, skip)
    told = capsys.readouterr()
    assert "2 videos left out" in told.out
    assert f"left out: {broken[0]}: frame" in told.err and f"video {spoiled!r}, tube 0, frame" in told.err
    for subset, n in (("train", 2), ("val", 1)):
        with pytest.raises(InputError, match=r"cannot be decoded|box is not finite"):
            copy.run("eval_qmm", *name, "--subset", subset)
        copy.run("eval_qmm", *name, "--subset", subset, skip)
        assert f"{n} video{'s' * (n > 1)} left out" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"1 video could not be used, the first.*--skip_bad"):
        copy.run("eval_qmm", *name, "--from_tar")
    copy.run("eval_qmm", *name, "--from_tar", skip)
    with pytest.raises(InputError, match="box is not finite"):
        copy.run("train_action_head", *name, "--epochs", 1)
    for head in (("--head_type", "vanilla"), ("--head_type", "res")):
        copy.run("train_action_head", *name, *head, "--epochs", 1, skip)
        with pytest.raises(InputError, match="1 video could not be used"):
            copy.run("eval_map", *name, *head)
        copy.run("eval_map", *name, *head, "--min_tube_length", 1, skip)
    for path in (copy.folder("bad") / "results").glob("*.json"):
        held = json.loads(path.read_text())
        kept = {"val": 1, "train": 3}[held["args"]["subset"]]
        assert held["metrics"]["videos"] == kept and held["metrics"]["videos_left_out"] == {1: 1, 3: 2}[kept]

    broken[1].write_bytes(whole[1])
    seen = []
    detect = Detector.start
    monkeypatch.setattr(Detector, "start", lambda *args: (seen.append(args[2]), detect(*args))[1])
    copy.run("eval_qmm", *name)
    assert len(seen) == 1, "the repaired video alone is looked at again"
    (fixed,), (never,) = (at.folder("queries").glob("val*.tar") for at in (copy, Stages(copy.data, copy.checkpoint)))
    assert not TarStore(fixed).bad and never == fixed
