"""Clips out of shards: frames and boxes in step, in order, mirrored, in other colours."""

import zlib

import cv2
import numpy as np
import pytest
import torch

from datasets import use_shards
from datasets.frame_batches import SubsetVideos
from datasets.transforms import jitter_matrix, normalise_boxes, resize, resized_shape
from datasets.use_shards import Clip, ClipDataset, Clips, ShardVideo, collate, epoch_batches, make_loader
from models.detectors import Detections
from models.person_queries import cache_queries
from tests.numbered_frames import LENGTHS, WIDTH
from utils.misc import InputError


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
        cache_queries(tmp_path, SubsetVideos(project, "val", view=view), WhiteBlocks())
        for view in ("plain", "mirrored")
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


def test_a_clip_looks_the_same_beside_larger_ones(shards):
    """Also where it is mirrored: batches are others in two processes, or of another size."""
    dataset = ClipDataset(shards, 2, 1)
    for epoch in range(8):
        keys = [(epoch, i) for i in range(4)]
        batch = collate(dataset.pack(keys))
        for clip, key in enumerate(keys):
            alone = collate(dataset.pack([key]))["images"]
            assert torch.equal(batch["images"][batch["clip"] == clip, :, :, : alone.shape[3]], alone)


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


@pytest.mark.parametrize("mirrored", [False, True])
def test_frames_that_decode_at_half_their_size_fill_the_image(mirrored):
    """Half of 97 rows, rounded up, would become 49 of the 48 that 97 become."""
    frame = np.full((97, 128, 3), 40, np.uint8)
    frame[:, :64] = 200
    jpeg = cv2.imencode(".jpg", frame)[1].tobytes()
    meta = {"name": "odd", "width": 128, "height": 97, "stored": [128, 97], "n_frames": 1, "tubes": [], "made_from": {}}
    video = ShardVideo("shard", meta, [zlib.crc32(jpeg)], lambda frames: [jpeg] * len(frames))
    clips = Clips(image_size=64, jitter=(0, 0, 0, 0), mirror_frames=True)
    seed = next(n for n in range(99) if (np.random.default_rng(n).random() < 0.5) == mirrored)
    image = clips.pack([Clip(video, np.array([0]), np.random.default_rng(seed))])["images"][0].numpy()
    assert image.shape == (48, 64, 3)
    assert np.abs(image[:, :30].astype(int) - (40 if mirrored else 200)).max() <= 4
    assert np.abs(image[:, 34:].astype(int) - (200 if mirrored else 40)).max() <= 4


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
