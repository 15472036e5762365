"""Shards of another data set, subset or list, or of an annotation that has changed since, are not trained on."""

from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest

import train_detr
from datasets.compare_shards import clips_of_flags
from datasets.config import load_project
from datasets.make_shards import make_shards
from datasets.use_shards import epoch_batches, make_loader
from tests.test_annotations import own_project, tube
from utils.misc import InputError
from utils.storage.files import unseal, write_sealed
from utils.storage.tars import read_samples, write_tar

LABELS = ["stand", "walk"]
FRAMES = 4
AGAIN = "make the shards again with python -m datasets.make_shards"


def write_project(
    folder: Path, names: str = "ab", labels: list[str] = LABELS, left: int = 10, grey: int = 0, **fields: object
) -> Path:
    """Videos of 64 x 48 pixels, all in the subsets `val` and `train`; one person each."""
    videos = {}
    for name in names:
        images = folder / "videos" / name
        images.mkdir(parents=True, exist_ok=True)
        for i in range(FRAMES):
            cv2.imwrite(str(images / f"{i}.png"), np.full((48, 64, 3), 40 * i + grey, np.uint8))
        person = tube(range(FRAMES), [[left, 10, 30, 40]] * FRAMES, "walk", person_id=1)
        videos[name] = {"width": 64, "height": 48, "n_frames": FRAMES, "tubes": [person]}
    splits = {"splits": {"val": "val.txt", "train": "val.txt"}}
    return own_project(folder, videos, labels, **splits, **fields)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The folder of shards of `write_project`'s project, in which `val` is."""
    make_shards(load_project(write_project(tmp_path)), "val", tmp_path / "shards" / "val", workers=1)
    return tmp_path / "shards"


def flags(shards: object, subset: str = "val", mirror_frames: bool = False) -> Namespace:
    return Namespace(
        shards_path=str(shards), subset=subset, data_root="data", clips_per_epoch=4, n_frames=1, sampling_rate=1,
        seed=1, clips_per_video=2, jitter=0.0, jitter_hue=0.0, whole_videos=False, no_flip=True,
        mirror_frames=mirror_frames, erase_people=False,
    )  # fmt: skip


def train_on(shards: object, file: Path, subset: str = "val", image_size: int = 0) -> None:
    """Read what a trainer reads in an epoch."""
    clips = clips_of_flags(flags(shards, subset), load_project(file), image_size, False)
    assert list(make_loader(clips, epoch_batches(clips, 0, 2)))


@pytest.mark.parametrize(("stored", "wanted", "told"), [(32, 48, True), (32, 32, False), (0, 128, False)])
def test_frames_that_were_made_smaller_than_they_are_used_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: int, wanted: int, told: bool
) -> None:
    file = write_project(tmp_path)
    make_shards(load_project(file), "val", tmp_path / "shards" / "val", image_size=stored, workers=1)
    train_on(tmp_path / "shards", file, image_size=wanted)
    text = f"made with --image_size {stored}; its frames are enlarged to {wanted} pixels"
    assert (text in capsys.readouterr().err) == told


@pytest.mark.parametrize("mirror_frames", [False, True])
def test_frames_are_mirrored_where_clips_are_not(shards: Path, tmp_path: Path, mirror_frames: bool) -> None:
    """`--preset published --mirror_frames`: the preset has --no_flip."""
    clips = clips_of_flags(flags(shards, mirror_frames=mirror_frames), load_project(tmp_path / "own.yml"), 0, False)
    batch = next(make_loader(clips, [[(epoch, 0) for epoch in range(20)]]))
    centres = {round(float(target["boxes"][0, 0]), 4) for target in batch["targets"]}
    assert centres == ({20 / 64, 44 / 64} if mirror_frames else {20 / 64})


def stream(shards: Path) -> str:
    return f"pipe:cat {shards}/val/shard-000000.tar"


CHANGES = [
    ({"name": "other"}, "its shards are of dataset 'own', not 'other'", None),
    ({"labels": LABELS[::-1]}, "other labels than .*own.yml, or another order", "the annotation has changed"),
    ({"left": 12}, "the annotation has changed since", "the annotation has changed since"),
    ({"names": "b"}, "video 'a' is not in subset 'val'", "video 'a' is not in subset 'val'"),
    ({"names": "abc"}, "1 video of subset 'val' are missing, such as 'c'", None),
    ({"grey": 1}, "video 'a' was made from another file than .*videos/a is now", "was made from another file"),
    ({"stride": 2}, "made with another rate, stride", "made with another rate, stride"),
    ({"multi_label": True}, "made with another rate, stride, end or multi_label", "multi_label"),
]


@pytest.mark.parametrize(("change", "stored", "streamed"), CHANGES)
def test_shards_of_something_else_are_refused(
    shards: Path, tmp_path: Path, change: dict, stored: str, streamed: str | None
) -> None:
    file = tmp_path / "own.yml"
    train_on(shards, file)
    train_on(stream(shards), file)
    write_project(tmp_path, **change)
    with pytest.raises(InputError, match=f"{stored}.*{AGAIN}"):
        train_on(shards, file)
    if streamed:
        with pytest.raises(InputError, match=f"{streamed}.*{AGAIN}"):
            train_on(stream(shards), file)
    make_shards(load_project(file), "val", shards / "val", workers=1)
    train_on(shards, file)


def test_shards_of_another_subset_are_refused_before_weights_are_looked_for(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / "val").rename(shards / "train")
    words = ["--dataset", tmp_path / "own.yml", "--shards_path", shards, "--detr", "missing.pth", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["train_detr.py", *map(str, words)])
    with pytest.raises(InputError, match="shards are of subset 'val', not 'train'"):
        train_detr.main()


def test_what_cannot_be_compared_is_told_and_trains(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_project(tmp_path, stride=1)
    train_on(shards, file)
    assert capsys.readouterr().err == ""
    kept = (tmp_path / "annotations.json").read_text()
    (tmp_path / "annotations.json").unlink()
    train_on(shards, file)
    assert "warning: the shards of 'val' are not compared with the whole project" in capsys.readouterr().err
    (tmp_path / "annotations.json").write_text(kept)
    (tmp_path / "val.txt").unlink()
    train_on(stream(shards), file)
    assert "warning: the shards of 'val' are not compared with the whole project" in capsys.readouterr().err


def test_shards_that_do_not_say_what_they_were_made_from_are_refused(shards: Path, tmp_path: Path) -> None:
    index, shard = shards / "val" / "index.json", shards / "val" / "shard-000000.tar"
    samples = [({k: v for k, v in meta.items() if k != "made_from"}, members) for meta, members in read_samples(shard)]
    write_tar(shard, samples)
    for shards_path in (shards, stream(shards)):
        with pytest.raises(InputError, match=f"'a'.*'made_from'.*{AGAIN}"):
            train_on(shards_path, tmp_path / "own.yml")
    write_sealed(index, {"shards": unseal(index.read_bytes())["shards"]})
    with pytest.raises(InputError, match=f"its shards are of dataset 'None', not 'own'; {AGAIN}"):
        train_on(shards, tmp_path / "own.yml")
