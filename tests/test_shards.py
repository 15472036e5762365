"""Videos and shards: what goes in comes out, and damage is told."""

import re
import tarfile

import cv2
import numpy as np
import pytest
import webdataset

from datasets.config import load_project
from datasets.dataset import VideoFrames
from datasets.make_shards import encode_video, make_shards, read_shards
from datasets.use_shards import ClipDataset, collate, make_loader
from tests.images import claim_size
from tests.numbered_frames import HEIGHT, LENGTHS, WIDTH, draw_frame
from tests.test_annotations import own_project
from utils.misc import InputError
from utils.storage.tars import Member, TarStore, safe_key, write_tar
from utils.storage.video_cache import fill_cache


def test_frames_of_a_folder_come_in_natural_order(project):
    frames = VideoFrames(project.frames_path("a.b c@!"))
    assert (frames.announced, frames.size) == (12, (WIDTH, HEIGHT))
    assert [int(frame[0, 0, 0]) for frame in frames] == [20 + 5 * i for i in range(12)]


def test_frames_of_a_real_video_and_its_annotation_agree(shared):
    path = shared / "data/ucf101-24/videos/SoccerJuggling/v_SoccerJuggling_g23_c01.avi"
    frames = VideoFrames(path)
    first = next(iter(frames))
    assert (frames.announced, frames.size, round(frames.fps, 2)) == (240, (320, 240), 29.97)
    assert sum(1 for _ in frames) == 240
    assert first.shape == (240, 320, 3) and first[120, :, 1].mean() > first[120, :, 2].mean()  # grass is green


def test_unreadable_videos_are_told(tmp_path):
    (tmp_path / "text.avi").write_text("not a video")
    (tmp_path / "empty").mkdir()
    for name in ("text.avi", "empty", "missing.avi"):
        with pytest.raises(InputError, match=name):
            VideoFrames(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_cut_off_and_huge_images_are_told(tmp_path, suffix):
    folder = tmp_path / "v"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}{suffix}"), draw_frame(i, 4))
    data = (folder / f"1{suffix}").read_bytes()
    (folder / f"1{suffix}").write_bytes(data[:-20])
    with pytest.raises(InputError, match=rf"1\{suffix}"):
        list(VideoFrames(folder))
    cv2.imwrite(str(folder / f"1{suffix}"), draw_frame(1, 4, 80))
    with pytest.raises(InputError, match=rf"1\{suffix}: 80 x 48 pixels after 64 x 48"):
        list(VideoFrames(folder))
    (folder / f"0{suffix}").write_bytes(claim_size(data, suffix))
    with pytest.raises(InputError, match=rf"0\{suffix}: an image of more than \d+ pixels"):
        VideoFrames(folder)


def test_stock_webdataset_decodes_the_shards(shards):
    urls = sorted(str(path) for path in shards.glob("*.tar"))
    assert len(urls) == 2
    seen = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"):
        meta, width = sample["json"], WIDTH + 16 * (sample["json"]["name"] == "one")
        frames = [sample[f"{i:06d}.jpg"] for i in range(meta["n_frames"])]
        assert {(frame.shape, frame.dtype) for frame in frames} == {((HEIGHT, width, 3), np.dtype(np.uint8))}
        assert all(abs(int(frame[0, -1, 0]) - (20 + 5 * i)) <= 2 for i, frame in enumerate(frames))
        assert f"{len(frames):06d}.jpg" not in sample
        seen[meta["name"]] = len(frames)
        assert sample["__key__"] == safe_key(meta["name"])
    assert seen == LENGTHS


def test_stock_webdataset_decodes_a_tar_of_arrays(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {name: {"boxes": draw.random((n, 4), np.float32), "frames": np.arange(n)} for name, n in LENGTHS.items()}
    with fill_cache(tmp_path / "x.tar", {name: [1] for name in arrays}, {}) as cache:
        for name in cache.missing:
            with cache.sample(name) as sample:
                for part in np.array_split(np.arange(LENGTHS[name]), 3):
                    sample.append({column: rows[part] for column, rows in arrays[name].items()})
                sample.json["n_frames"] = LENGTHS[name]
    samples = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False).decode())
    assert [sample["json"]["name"] for sample in samples] == list(arrays)
    store = TarStore(tmp_path / "x.tar")
    for sample in samples:
        name = sample["json"]["name"]
        for column, rows in arrays[name].items():
            np.testing.assert_array_equal(sample[f"{column}.npy"], rows)
            np.testing.assert_array_equal(store.read(name, column), rows)
            some = draw.integers(0, len(rows), 5)
            np.testing.assert_array_equal(store.read(name, column, some), rows[some])
            np.testing.assert_array_equal(store.read(name, column, slice(1, 4)), rows[1:4])


def test_an_array_of_8_gib_has_a_header_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile, "copyfileobj", lambda source, out, *_args, **_options: out.write(source.read()))
    (tmp_path / "a.npy").touch()
    for size in (2**33 - 1, 2**33, 2**40):
        write_tar(tmp_path / "a.tar", [({"name": "v"}, {"a.npy": Member(tmp_path / "a.npy", 0, size, 0)})])
        header = (tmp_path / "a.tar").read_bytes()[1024:1536]  # after the json's header and its only block
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        assert (info.name, info.size) == ("v.a.npy", size)


def test_keys_are_distinct_short_and_safe():
    names = ["a", "a.b", "a/b", "a=2Eb", "é", "x" * 64, "x" * 65, "x" * 66, *("y" * 200 + end for end in "ab")]
    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(names) and max(map(len, keys)) <= 64
    assert all(re.fullmatch("[A-Za-z0-9_=-]+", key) for key in keys)
    assert safe_key(keys[-1]) != keys[-1]  # a name that looks like a cut key


def test_damaged_shards_are_told_and_made_again(project, tmp_path):
    make_shards(project, "val", tmp_path, per_shard=3)
    path = tmp_path / "shard-000000.tar"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[next(read_shards(tmp_path))[2]["000000.jpg"].offset + 300] ^= 4
    path.write_bytes(damaged)
    dataset = ClipDataset(tmp_path, 30)
    with pytest.raises(InputError, match=r"shard-000000\.tar: frame 0 of 'a\.b c@!' is damaged; make the shards again"):
        list(make_loader(dataset, [[(0, 0)]], 1))
    assert make_shards(project, "val", tmp_path, per_shard=3) == {} and path.read_bytes() == whole
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"shard-000000\.tar"):
        ClipDataset(tmp_path)
    other = (tmp_path / "shard-000001.tar").stat().st_mtime_ns
    make_shards(project, "val", tmp_path, per_shard=3)
    assert path.read_bytes() == whole
    assert (tmp_path / "shard-000001.tar").stat().st_mtime_ns == other  # what was whole was kept
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def test_a_video_that_was_replaced_is_encoded_again(tmp_path):
    folder = tmp_path / "videos" / "v"
    folder.mkdir(parents=True)
    project = load_project(own_project(tmp_path, {"v": {"tubes": []}}))
    for grey in (40, 200, 200):
        shard = tmp_path / "shards" / "shard-000000.tar"
        before = shard.stat().st_mtime_ns if shard.exists() else 0
        image = np.full((HEIGHT, WIDTH, 3), grey, np.uint8)
        image[:, : grey // 8] = np.random.default_rng(0).integers(0, 256, (HEIGHT, grey // 8, 3))
        cv2.imwrite(str(folder / "0.png"), image)
        make_shards(project, "val", tmp_path / "shards")
        stored = collate(ClipDataset(tmp_path / "shards", train=False).pack([(0, 0)]))["images"]
        assert abs(int(stored[0, 0, 0, -1]) - grey) <= 2
    assert shard.stat().st_mtime_ns == before  # nothing has changed since


def test_only_what_does_not_fit_is_encoded_again_also_beside_a_bad_video(tmp_path, monkeypatch):
    """A video that cannot be used is looked at in each run; its neighbours in the shard are kept."""
    videos = {}
    for name in "abcd":
        (tmp_path / "videos" / name).mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(str(tmp_path / "videos" / name / f"{i}.png"), draw_frame(i, 4))
        tubes = [{"label": 0, "frames": [0, 1], "boxes": [[4, 10, 14, 40]] * 2}]
        videos[name] = {"width": WIDTH, "height": HEIGHT, "tubes": tubes}
    for name in "cd":  # c beside b, and d in a shard of its own
        (tmp_path / "videos" / name / "1.png").write_bytes(b"no image")
    encoded, folder = [], tmp_path / "s"
    monkeypatch.setattr(
        "datasets.make_shards.encode_video", lambda v, *more: encoded.append(v.name) or encode_video(v, *more)
    )

    def write() -> tuple[set, list, list]:
        encoded.clear()
        bad = make_shards(load_project(own_project(tmp_path, videos)), "val", folder, 0, 95, 3, 1, True)
        paths = sorted(folder.glob("*.tar"))
        return set(bad), sorted(encoded), [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]

    first = write()
    assert first[:2] == ({"c", "d"}, list("abcd"))
    again = write()
    assert again[:2] == ({"c", "d"}, list("cd")) and again[2][0] == first[2][0]
    videos["b"]["tubes"][0]["boxes"][0][0] = 3
    assert write()[:2] == ({"c", "d"}, list("bcd"))
    cv2.imwrite(str(tmp_path / "videos" / "c" / "1.png"), draw_frame(1, 4))
    bad, names, tars = write()
    assert (bad, names) == ({"d"}, list("cd"))
    assert [video.name for video in ClipDataset(folder).videos] == list("abc")
    for path in folder.iterdir():
        path.unlink()
    assert [data for _, data in write()[2]] == [data for _, data in tars]  # as if it had been made in one go


def test_annotations_that_do_not_fit_their_video_are_told(tmp_path, capsys):
    videos = {}
    for name, last in (("good", 4), ("tail", 6), ("long", 20), ("big", 4)):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for i in range(5):
            cv2.imwrite(str(tmp_path / "videos" / name / f"{i}.png"), draw_frame(i, 4))
        tube = {"label": 0, "frames": list(range(last + 1)), "boxes": [[4, 10, 14, 40]] * (last + 1)}
        videos[name] = {"width": WIDTH, "height": HEIGHT, "tubes": [tube]}
    videos["big"] = {"tubes": [tube | {"boxes": [[3 * WIDTH - 20, 30, 3 * WIDTH, 120]] * 5}]}  # three times too large
    videos["tail"]["n_frames"] = 9
    videos["missing"] = {"tubes": []}
    videos["wide"] = {"width": 100, "height": HEIGHT, "tubes": []}
    (tmp_path / "videos/wide").symlink_to(tmp_path / "videos/good")
    project = load_project(own_project(tmp_path, videos))
    with pytest.raises(InputError, match=r"'long', frame 8: frame is beyond the video's end \(5 frames decode\)"):
        make_shards(project, "val", tmp_path / "s")
    bad = make_shards(project, "val", tmp_path / "s", skip_bad=True)
    assert set(bad) == {"long", "big", "missing", "wide"} and "annotated as 100 x 48" in bad["wide"]
    assert "'big', frame 0: box is outside the frame" in bad["big"]
    warnings = capsys.readouterr().err
    assert (
        "2 times: frame is after the last decoded one, left out of training; first in video 'tail', frame 5" in warnings
    )
    assert "1 time: number of frames is not the video's" in warnings
    kept = ClipDataset(tmp_path / "s")
    assert [(video.name, len(video.frames)) for video in kept.videos] == [("good", 5), ("tail", 5)]
