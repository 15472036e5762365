"""Hostile files, harmless in effect, and impossible annotations from the file to a training step."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.config import load_project
from datasets.dataset import VideoFrames, decode_image
from datasets.make_shards import make_shards, read_shards
from datasets.use_shards import ClipDataset, collate, epoch_batches
from models.detr import build_model, normalize
from tests import pickles
from tests.fill import SMALL
from tests.images import claim_size
from tests.tars import as_bytes, write_samples
from tests.test_annotations import own_project, tube, video
from utils.misc import InputError
from utils.safe_pickle import read_pickle
from utils.storage.files import load_torch, save_torch, seal, write_sealed
from utils.storage.tars import TarStore, write_tar
from utils.storage.tracks import TrackStore


class Call:
    """Something that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# --- hostile files ---


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_calls_is_refused_before_anything_runs(tmp_path: Path, legacy: bool) -> None:
    torch.save(
        {"model": {}, "call": Call(tmp_path / "made")}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(InputError, match=r"x\.pth: not a readable"):
        load_torch(tmp_path / "x.pth")
    assert not (tmp_path / "made").exists()


def test_a_part_that_claims_to_go_beyond_the_files_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save_torch(path, {"model": {"w": torch.zeros(4)}, "config": {}, "epoch": 1})
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")  # the last one of the archive's directory: its sizes stand at 20 and 24
    beyond = len(data) - struct.unpack_from("<I", data, entry + 42)[0] - 20
    struct.pack_into("<II", data, entry + 20, beyond, beyond)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.pth: not a readable checkpoint \(it begins with"):
        load_torch(path)


def test_a_checkpoint_that_would_inflate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": {"a": torch.zeros(1).expand(10**9)}}, path)
    with pytest.raises(InputError, match="larger than what is stored"):
        load_torch(path)
    torch.save({"model": {"a": torch.zeros(10**6)}}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(InputError, match="larger than the file"):
        load_torch(tmp_path / "y.pth")


def test_a_pickle_that_multiplies_is_refused(tmp_path: Path) -> None:
    text = "a" * 100_000
    encode = b"c_codecs\nencode\nq\x01"
    body = b"\x80\x02" + encode + b"X" + struct.pack("<I", len(text)) + text.encode() + b"X\x06\x00\x00\x00latin1"
    body += b"\x86q\x02R0"  # the arguments are remembered, and used ten thousand times
    (tmp_path / "a.pkl").write_bytes(body + b"](" + b"h\x01h\x02R" * 10_000 + b"e.")
    with pytest.raises(InputError, match="far more memory"):
        read_pickle(tmp_path / "a.pkl")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("v.npy", tarfile.SYMTYPE, "/etc/passwd"),
        member("v.npy", tarfile.LNKTYPE, "v.json"),
        member("v.npy", tarfile.CHRTYPE),
        member("v.npy", tarfile.BLKTYPE),
        member("v.npy", tarfile.FIFOTYPE),
        member("v", tarfile.DIRTYPE),
        member("/tmp/v.npy"),
        member("../v.npy"),
        member("a/../../v.npy"),
        member("v.json"),
        member(".npy"),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_members_that_do_not_belong_are_refused(tmp_path: Path, info: tarfile.TarInfo) -> None:
    data = seal({"name": "v", "members": {}})
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(member("v.json", size=len(data)), io.BytesIO(data))
        info.size = len(data) if info.isreg() else 0
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match=r"x\.tar: (member .* does not belong|video .* is there twice)"):
        TarStore(tmp_path / "x.tar")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar"]


def test_headers_that_lie_about_sizes_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [({"name": "v"}, {}), ({"name": "w"}, {})])
    whole = bytearray((tmp_path / "x.tar").read_bytes())
    for size in (-512, -1, 2**40, 10**6):
        held = bytearray(whole)
        at = 1024  # the second sample's header
        held[at + 124 : at + 136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
        held[at + 148 : at + 156] = b" " * 8
        held[at + 148 : at + 156] = f"{sum(held[at : at + 512]):06o}\0 ".encode()
        (tmp_path / "x.tar").write_bytes(held)
        with pytest.raises(InputError, match=r"x\.tar"):
            TarStore(tmp_path / "x.tar")


def test_a_video_twice_or_a_tar_without_its_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, [({"name": "v"}, {}), ({"name": "v"}, {})])
    with pytest.raises(InputError, match="'v' is there twice"):
        TarStore(path)
    write_tar(path, [({"name": "a"}, {}), ({"name": "b"}, {})])
    whole = path.read_bytes()
    for n in (1024, 1024 + 512, 2048, 2048 + 512):  # between members, where a tar could have ended
        path.write_bytes(whole[:n])
        with pytest.raises(InputError, match=r"x\.tar: damaged"):
            TarStore(path)
    damaged = bytearray(whole)
    damaged[1030] ^= 1  # a header in the middle
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"x\.tar: damaged tar \(bad checksum\)"):
        TarStore(path)
    path.write_bytes(whole[:1024] + bytes(512) + whole[1024:])  # what a reader would take for the end
    with pytest.raises(InputError, match=r"no sample and no end at byte 1024"):
        TarStore(path)


def test_arrays_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    plain = as_bytes({"a": np.zeros((9, 4))})["a.npy"]
    calls = io.BytesIO()
    np.save(calls, np.array([Call(tmp_path / "made")], object), allow_pickle=True)
    huge = plain.replace(b"(9, 4)", b"(9" + b"0" * 9 + b", 4)").replace(b" " * 9 + b"\n", b"\n")
    assert len(huge) == len(plain)
    for data in (calls.getvalue(), huge, plain + b"more", plain[:-1], b"", b"PK\x03\x04"):
        write_samples(tmp_path / "x.tar", [({"name": "v"}, {"a.npy": data})])
        with pytest.raises(InputError, match=r"x\.tar: a\.npy of 'v' is not a plain array"):
            TarStore(tmp_path / "x.tar").read("v", "a")
    assert not (tmp_path / "made").exists()


def test_tars_of_the_former_form_are_to_be_made_again(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for name, data in (
            ("v.json", seal({"name": "v", "offsets": [0, 4]})),
            ("v.frames", b"1234"),
        ):
            tar.addfile(member(name, size=len(data)), io.BytesIO(data))
    write_sealed(tmp_path / "index.json", {"shards": ["shard-000000.tar"]})
    with pytest.raises(
        InputError, match=r"000000\.tar: a shard of a former form; make the shards again with python -m"
    ):
        ClipDataset(tmp_path)
    with pytest.raises(InputError, match=r"a tar of tracks of a former form; make it again"):
        TrackStore(tmp_path / "shard-000000.tar")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_image_bombs_and_other_formats_are_refused(tmp_path: Path, suffix: str) -> None:
    ok, data = cv2.imencode(suffix, np.zeros((48, 64, 3), np.uint8))
    assert ok and decode_image(data.tobytes(), "x").shape == (48, 64, 3)
    with pytest.raises(InputError, match=r"x: an image of more than \d+ pixels"):
        decode_image(claim_size(data.tobytes(), suffix), "x")
    for other in (b"P6\n60 60\n255\n", b"II*\0" + bytes(40), b"GIF89a" + bytes(40), b""):
        with pytest.raises(InputError, match="x: not a readable image"):
            decode_image(other, "x")


def test_yaml_that_multiplies_or_calls_is_one_line(tmp_path: Path) -> None:
    doubling = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    in_one_field = "".join(f"- {line.partition(': ')[2]}\n" for line in doubling.splitlines())
    fields = "name: a\nformat: json\nannotations: a\nframes: '{name}'\n"
    for text in (doubling, fields + "splits: {v: &a {list: *a}}\n", fields + "splits: !!python/name:os.system\n",
                 fields + doubling + "splits: *a39\n",
                 fields.replace("json", "cvat") + "splits: {}\nno_action:\n" + in_one_field):  # fmt: skip
        (tmp_path / "p.yml").write_text(text)
        with pytest.raises(InputError, match=r"p\.yml") as caught:
            load_project(tmp_path / "p.yml")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_names_that_lead_out_are_refused_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    cv2.imwrite(str(tmp_path / "secret" / "0.png"), np.zeros((48, 64, 3), np.uint8))
    root = tmp_path / "data"
    (root / "videos" / "good").mkdir(parents=True)
    cv2.imwrite(str(root / "videos" / "good" / "0.png"), np.zeros((48, 64, 3), np.uint8))
    held = {"tubes": [tube([0], [[4, 6, 30, 40]])]}
    project = load_project(own_project(root, {"good": held, "../../secret": held}))
    with pytest.raises(InputError, match="not a path below"):
        make_shards(project, "val", tmp_path / "shards")
    bad = make_shards(project, "val", tmp_path / "shards", skip_bad=True)
    assert list(bad) == ["../../secret"]

    index = tmp_path / "shards" / "index.json"
    for name in ("../secret/x.tar", "/etc/passwd", 3, "shard-000000.tar"):
        write_sealed(index, {"shards": ["shard-000000.tar", name]})
        with pytest.raises(InputError, match=r"not a file's name|in another shard too"):
            list(read_shards(tmp_path / "shards"))


def test_names_in_shards_are_never_used_as_paths(tmp_path: Path) -> None:
    ok, jpeg = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))
    data = jpeg.tobytes()
    meta = {
        "name": "../../etc/passwd", "width": 64, "height": 48, "stored": [64, 48], "fps": 25.0, "n_frames": 1,
        "tubes": [], "made_from": {},
    }  # fmt: skip
    write_samples(tmp_path / "shard-000000.tar", [(meta, {"000000.jpg": data})])
    write_sealed(tmp_path / "index.json", {"shards": ["shard-000000.tar"]})
    assert ok and ClipDataset(tmp_path).pack([(0, 0)])["names"] == ["../../etc/passwd"]
    for change in ({"stored": [10**6, 10**6]}, {"stored": [0, 48]}, {"n_frames": 10**9}, {"n_frames": 0}):
        write_samples(tmp_path / "shard-000000.tar", [(meta | change, {"000000.jpg": data})])
        with pytest.raises(InputError, match=r"shard-000000\.tar: damaged sample"):
            ClipDataset(tmp_path)
    write_samples(tmp_path / "shard-000000.tar", [(meta, {"000000.jpg": claim_size(data, ".jpg")})])
    with pytest.raises(InputError, match="an image of more than"):
        ClipDataset(tmp_path).pack([(0, 0)])


def test_a_long_name_passes_every_file(tmp_path: Path) -> None:
    name = "x" * 180 + "/" + "é" * 90
    path = tmp_path / "videos" / name
    path.mkdir(parents=True)
    cv2.imwrite(str(path / "0.png"), np.zeros((48, 64, 3), np.uint8))
    project = load_project(own_project(tmp_path, {name: {"tubes": [tube([0], [[4, 6, 30, 40]])]}}))
    assert make_shards(project, "val", tmp_path / "shards") == {}
    write_samples(tmp_path / "x.tar", [({"name": name}, as_bytes({"a": np.zeros(1)}))])
    assert TarStore(tmp_path / "x.tar").names == [name]


# --- impossible annotations ---


def odd_project(folder: Path) -> Path:
    """Videos of odd and huge sizes, of one frame, without boxes, with a box of one pixel, with people in one frame."""
    sizes = {
        "dot": (1, 1),
        "wide": (2001, 3),
        "high": (3, 999),
        "odd": (63, 47),
        "huge": (3001, 2003),
        "none": (64, 48),
    }
    videos = {}
    for name, (width, height) in sizes.items():
        path = folder / "videos" / name
        path.mkdir(parents=True)
        length = 1 if name in ("dot", "huge") else 4
        for i in range(length):
            cv2.imwrite(str(path / f"{i}.png"), np.full((height, width, 3), 40 * i, np.uint8))
        pixel = [width - 1, height - 1, width, height]
        over = [-5, -5, width + 5, height + 5]
        tubes = [
            tube([0], [pixel], person_id=1),
            tube([length - 1], [over], person_id=2),
            tube([0], [[width / 2, 0, width / 2, 1]]),
        ]
        videos[name] = video(*([] if name == "none" else tubes), n_frames=length) | {"width": width, "height": height}
    return own_project(folder, videos)


def test_odd_sizes_and_boxes_train_without_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = load_project(odd_project(tmp_path))
    assert make_shards(project, "val", tmp_path / "shards", workers=1) == {}
    told = capsys.readouterr().err
    assert "5 times: box is empty, left out" in told and "box extends beyond the frame, clipped" in told
    assert len(list(VideoFrames(project.frames_path("dot")))) == 1
    detr, criterion, _ = build_model(SMALL | {"dropout": 0.0})
    data = ClipDataset(tmp_path / "shards", 4, image_size=64, train=True)
    assert len(data) == 6
    for batches in (epoch_batches(data, 0, 1), epoch_batches(data, 0, 6)):  # alone, and padded to one another
        for keys in batches:
            batch = collate(data.pack(keys))
            boxes = torch.cat([target["boxes"] for target in batch["targets"]])
            assert ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] > 0).all()
            detr.train().zero_grad()
            total = criterion.total(criterion(detr(normalize(batch["images"]), batch["mask"]), batch["targets"]))
            total.backward()
            assert total.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in detr.parameters())


def test_a_pickle_in_place_of_a_project_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.yml").write_bytes(
        pickles.pickled({"name": pickles.Call("posix", "mkdir", (str(tmp_path / "made"),))}, 4)
    )
    with pytest.raises(InputError, match=r"p\.yml: not a readable project file"):
        load_project(tmp_path / "p.yml")
    assert not (tmp_path / "made").exists()
