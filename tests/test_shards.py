"""Videos, shards and clips: what goes in comes out, in step, in order, and damage is told."""

import re
import tarfile

import cv2
import numpy as np
import pytest
import torch
import webdataset

from datasets import use_shards
from datasets.config import load_project
from datasets.dataset import VideoFrames
from datasets.frame_batches import SubsetVideos
from datasets.make_shards import encode_video, make_shards
from datasets.transforms import jitter_matrix, normalise_boxes, resize, resized_shape
from datasets.use_shards import ClipDataset, collate, epoch_batches, make_loader
from models.person_queries import Detections, cache_queries
from tests.images import claim_size
from tests.test_annotations import own_project
from utils.misc import InputError
from utils.storage.tars import TarStore, safe_key
from utils.storage.video_cache import fill_cache

LENGTHS = {"a.b c@!": 12, "x/[long]": 30, "one": 1, "nobody": 6}
WIDTH, HEIGHT = 64, 48


def draw_frame(number: int, at: int, width: int = WIDTH) -> np.ndarray:
    """A grey picture that tells its frame's number, with a white person at x = `at`."""
    frame = np.full((HEIGHT, width, 3), 20 + 5 * number, np.uint8)
    frame[10:40, at : at + 10] = 255
    return frame


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    videos = {}
    for k, (name, length) in enumerate(LENGTHS.items()):
        width = WIDTH + 16 * (name == "one")
        images = folder / "videos" / name
        images.mkdir(parents=True)
        for i in range(length):
            cv2.imwrite(str(images / f"{i}.png"), draw_frame(i, 4 + i, width))
        boxes = [[4 + i, 10, 14 + i, 40] for i in range(length)]
        tubes = [
            {"label": k % 2, "person_id": 5, "frames": list(range(length)), "boxes": boxes},
            {"label": 1, "person_id": 5, "frames": [0], "boxes": boxes[:1]},
        ]
        tubes = [] if name == "nobody" else tubes
        videos[name] = {"width": width, "height": HEIGHT, "n_frames": length, "tubes": tubes}
    return load_project(own_project(folder, videos))


@pytest.fixture(scope="module")
def shards(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    assert make_shards(project, "val", folder, per_shard=3, workers=2) == {}
    return folder


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


def test_unreadable_videos_are_told(tmp_path, shared):
    whole = (shared / "data/ucf101-24/videos/SoccerJuggling/v_SoccerJuggling_g23_c01.avi").read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.avi: frame \d+ cannot be decoded"):
        list(VideoFrames(cut))
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


def test_keys_are_distinct_short_and_safe():
    names = ["a", "a.b", "a/b", "a=2Eb", "é", "x" * 64, "x" * 65, "x" * 66, *("y" * 200 + end for end in "ab")]
    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(names) and max(map(len, keys)) <= 64
    assert all(re.fullmatch("[A-Za-z0-9_=-]+", key) for key in keys)
    assert safe_key(keys[-1]) != keys[-1]  # a name that looks like a cut key


@pytest.mark.parametrize(("train", "mirror_frames"), [(False, False), (True, False), (True, True)])
def test_clips_hold_the_frames_and_boxes_that_they_name(shards, train, mirror_frames):
    settings = {"train": train, "mirror_frames": mirror_frames, "jitter": (0, 0, 0, 0)}
    dataset, mirrored = ClipDataset(shards, 4, 3, clips_per_video=6, **settings), []
    for epoch, index in [(e, i) for e in range(3) for i in range(len(dataset))]:
        batch = collate(dataset.pack([(epoch, index)]))
        frames, name = batch["frames"].numpy(), batch["names"][0]
        assert len(frames) == min(4, -(-LENGTHS[name] // 3)) and set(np.diff(frames)) <= {3}
        images = batch["images"].permute(0, 2, 3, 1).numpy()
        assert np.abs(images[:, 0, 0, 0].astype(int) - (20 + 5 * frames)).max() <= 2
        for image, target in zip(images, batch["targets"], strict=True):
            if name == "nobody":
                assert target["boxes"].shape == (0, 4)
                continue
            ((cx, cy, w, h),) = target["boxes"].numpy() * np.tile(image.shape[1::-1], 2)
            rows, columns = np.nonzero(image[:, :, 0] > 225)
            assert abs(columns.mean() + 0.5 - cx) < 1 and abs(rows.mean() + 0.5 - cy) < 1
            assert abs(w - 10) < 1e-3 and abs(h - 30) < 1e-3
        centres = [float(target["boxes"][0, 0]) * WIDTH for target in batch["targets"]] if name[0] in "ax" else []
        mirrored.append({bool(abs(c - (9 + f)) > 0.01) for c, f in zip(centres, frames.tolist(), strict=False)})
    assert any(True in clip for clip in mirrored) == train
    assert any(len(clip) == 2 for clip in mirrored) == mirror_frames  # one frame of a clip, and another not


class WhiteBlocks:
    """A detector of `draw_frame`'s white person, whose query is the place that the person has in the image."""

    key, frame_size, batch_size, device = "white", 0, 4, torch.device("cpu")

    def start(self, batches, size, floor):
        first = 0
        for images in batches:
            columns = (images[:, 0, 20] > 225).numpy()
            x0, x1 = columns.argmax(1), size[0] - columns[:, ::-1].argmax(1)
            boxes = np.stack([x0, x0 * 0 + 10, x1, x0 * 0 + 40], 1).astype(np.float32)
            numbers, ones = np.arange(first, first + len(images)), np.ones(len(images), np.float32)
            detections = Detections(numbers, ones, boxes, boxes[:, :1], numbers * 0)
            yield len(images), lambda found=detections: found
            first += len(images)


def test_mirrored_frames_have_queries_of_their_own_and_the_same_boxes(project, tmp_path):
    stores = [
        cache_queries(tmp_path, SubsetVideos(project, "val", mirrored=mirrored), WhiteBlocks())
        for mirrored in (False, True)
    ]
    assert stores[0].path != stores[1].path
    for name, length in LENGTHS.items():
        plain, mirrored = ({column: store.read(name, column) for column in ("boxes", "queries")} for store in stores)
        width = stores[0].json(name)["width"]
        assert plain["boxes"][:, 0].tolist() == [4 + i for i in range(length)] == plain["queries"][:, 0].tolist()
        np.testing.assert_array_equal(mirrored["boxes"], plain["boxes"])
        np.testing.assert_array_equal(mirrored["queries"][:, 0], width - plain["boxes"][:, 2])


def test_a_batch_pads_masks_and_keeps_identities_apart(shards):
    dataset = ClipDataset(shards, 2, 1, image_size=32, train=True)
    batch = collate(dataset.pack([(0, 0), (0, 1), (0, 2), (0, 3)]))
    assert batch["images"].shape == (7, 3, 24, 32) and batch["images"].dtype == torch.uint8
    assert batch["clip"].tolist() == [0, 0, 1, 1, 2, 3, 3]
    small = batch["clip"] == 2  # 80 x 48 becomes 32 x 19
    assert batch["mask"][small, 19:].all() and not batch["mask"][small, :19].any() and not batch["mask"][~small].any()
    assert (batch["images"][small][:, :, 19:] == 0).all() and (batch["images"][small][:, :, :19] > 0).any()
    ids = [target["person_ids"].tolist() for target in batch["targets"]]
    assert ids == [[0], [0], [1], [1], [2], [], []]
    assert {int(x) for target in batch["targets"] for x in target["labels"]} == {1}


def test_squares_are_pictures_without_a_mask(shards):
    plain, square = (
        collate(ClipDataset(shards, 2, 1, 32, pad_square=on).pack([(0, i) for i in range(4)])) for on in (False, True)
    )
    assert square["images"].shape == (7, 3, 32, 32) and not square["mask"].any()
    for one, image, same, target, same_target in zip(
        plain["mask"], plain["images"], square["images"], plain["targets"], square["targets"], strict=True
    ):
        inside = same[:, :24][:, ~one]
        assert torch.equal(inside, image[:, ~one]) and same.sum() == inside.sum()  # black around it
        height = int((~one[:, 0]).sum())
        pixels = target["boxes"] * torch.tensor([32, height, 32, height])
        torch.testing.assert_close(same_target["boxes"] * 32, pixels)


def test_squares_stay_black_around_pictures_that_change_colour(shards):
    dataset = ClipDataset(shards, 2, 1, 32, pad_square=True)
    for epoch in range(8):
        batch = collate(dataset.pack([(epoch, i) for i in range(4)]))
        heights = [resized_shape(*dataset.videos[clip].stored, 32)[0] for clip in batch["clip"]]
        assert len(set(heights)) > 1
        for image, height in zip(batch["images"], heights, strict=True):
            assert (image[:, height:] == 0).all() and image[:, :height].any()


def test_loading_is_the_same_for_any_number_of_workers_and_after_a_restart(shards):
    dataset = ClipDataset(shards, 3, 2, train=True, seed=1, clips_per_video=3)
    batches = epoch_batches(dataset, 2, 2)
    runs = [list(make_loader(dataset, batches, workers)) for workers in (0, 2)]
    runs.append(runs[0][:2] + list(make_loader(ClipDataset(shards, 3, 2, seed=1, clips_per_video=3), batches[2:], 1)))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a["images"], b["images"]) and a["names"] == b["names"]
            assert all(torch.equal(s[k], t[k]) for s, t in zip(a["targets"], b["targets"], strict=True) for k in s)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("clips", [1, 3, 4])
def test_each_clip_is_seen_once_an_epoch_over_all_ranks(shards, world, batch_size, clips):
    dataset = ClipDataset(shards, clips_per_video=clips)
    ranks = [epoch_batches(dataset, 0, batch_size, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch for batches in ranks for batch in batches)
    assert sorted(i for batches in ranks for batch in batches for _, i in batch) == list(range(4 * clips))
    with pytest.raises(InputError, match="start fewer"):
        epoch_batches(dataset, 0, batch_size, 0, 100)


def test_damaged_shards_are_told_and_made_again(project, tmp_path):
    make_shards(project, "val", tmp_path, per_shard=3)
    path = tmp_path / "shard-000000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        at = next(m.offset_data for m in tar if m.name.endswith(".000000.jpg"))
    damaged = bytearray(whole)
    damaged[at + 300] ^= 4
    path.write_bytes(damaged)
    dataset = ClipDataset(tmp_path, 30)
    with pytest.raises(InputError, match=r"shard-000000\.tar: frame 0 of 'a\.b c@!' is damaged"):
        list(make_loader(dataset, [[(0, 0)]], 1))
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


def test_boxes_survive_resizing_and_padding_for_every_shape():
    draw = np.random.default_rng(0)
    for _ in range(300):
        height, width, size = draw.integers(1, 3000, 3)
        corners = np.sort(draw.random((5, 2, 2)), 1).reshape(5, 4) * np.tile([width, height], 2)
        boxes = normalise_boxes(corners.astype(np.float32), width, height).astype(np.float64)
        high, wide = resized_shape(height, width, size)
        assert max(high, wide) == size and min(high, wide) >= 1
        back = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        np.testing.assert_allclose(back * np.tile([width, height], 2), corners, atol=1e-3)


def test_resizing_keeps_places():
    frame = np.zeros((120, 200, 3), np.uint8)
    frame[30:60, 50:100] = 255
    for size in (100, 200, 400):
        rows, columns = np.nonzero(resize(frame, size)[:, :, 0] > 127)
        scale = size / 200
        assert abs(rows.mean() + 0.5 - 45 * scale) < 0.6 and abs(columns.mean() + 0.5 - 75 * scale) < 0.6


def test_colour_maps_are_the_four_changes_one_after_another():
    grey, strength = 90.0, (0.2, 0.2, 0.2, 0.0)
    matrix = jitter_matrix(np.random.default_rng(3), grey, strength)
    again = np.random.default_rng(3)
    brightness, contrast, saturation = (again.uniform(0.8, 1.2) for _ in range(3))
    pixel = np.array([100.0, 150.0, 30.0])
    x = brightness * pixel
    x = contrast * x + (1 - contrast) * brightness * grey
    x = saturation * x + (1 - saturation) * (x @ [0.299, 0.587, 0.114])
    np.testing.assert_allclose(matrix @ [*pixel, 1], x, rtol=1e-6)
    hue = jitter_matrix(np.random.default_rng(3), grey, (0, 0, 0, 0.1))
    np.testing.assert_allclose(hue @ [50, 50, 50, 1], [50, 50, 50], rtol=1e-6)  # grey has no hue
    assert abs((hue @ [*pixel, 1] - pixel) @ [0.299, 0.587, 0.114]) < 1e-6
    assert np.abs(hue @ [*pixel, 1] - pixel).max() > 1


def test_a_clip_changes_its_colours_as_a_whole(shards, monkeypatch):
    plain, changing = (ClipDataset(shards, 4, 3, jitter=(x, x, x, x / 2)) for x in (0, 0.2))
    maps = []
    monkeypatch.setattr(use_shards, "jitter_matrix", lambda *args: maps.append(jitter_matrix(*args)) or maps[-1])
    for index in range(len(LENGTHS)):
        before, after = (collate(data.pack([(0, index)]))["images"].double() for data in (plain, changing))
        colour = torch.from_numpy(maps[-1])
        expected = torch.einsum("ij,njhw->nihw", colour[:, :3], before) + colour[:, 3, None, None]
        assert (after - expected.round().clamp(0, 255)).abs().max() <= 1 and not torch.equal(before, after)
