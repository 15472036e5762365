"""People who are painted over (`--erase_people`), in clips of images and in cached queries."""

import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from datasets.annotations import Video
from datasets.frame_batches import erase_people
from datasets.transforms import choose_erased, erase
from datasets.use_shards import Clip, Clips, ShardVideo
from utils.box_ops import Tube

SKY, GROUND = 200, 60
PEOPLE = np.array([[10, 20, 22, 60], [60, 24, 76, 64], [70, 10, 90, 50]], np.float32)  # the last two overlap
COLOURS = (0, 255, 128)


def draw_people(n: int) -> np.ndarray:
    """uint8 (80, 120, 3): the first n `PEOPLE` before sky and ground."""
    frame = np.full((80, 120, 3), SKY, np.uint8)
    frame[40:] = GROUND
    for box, colour in zip(PEOPLE[:n].astype(int), COLOURS, strict=False):
        frame[box[1] : box[3], box[0] : box[2]] = colour
    return frame


@pytest.mark.parametrize(("n", "apart"), [(0, {-1}), (1, {-1}), (2, {0, 1}), (3, {0})])
def test_somebody_apart_from_others_is_chosen(n: int, apart: set[int]) -> None:
    draw = np.random.default_rng(0)
    assert {choose_erased(PEOPLE[:n], draw) for _ in range(50)} == apart


@pytest.mark.parametrize("box", [PEOPLE[1], [0, 20, 12, 60], [108, 20, 120, 60], [-3, -2, 121, 81]])
def test_an_erased_box_shows_what_is_beside_it(box: list[float]) -> None:
    x0, y0, x1, y1 = np.clip(np.array(box, int), 0, (120, 80, 120, 80))
    image, background = draw_people(0), draw_people(0)
    image[y0:y1, x0:x1] = 255
    erase(image, np.array(box, np.float32))
    if x1 - x0 < 120:
        np.testing.assert_array_equal(image, background)
    assert image.dtype == np.uint8 and image.shape == background.shape


@pytest.mark.parametrize("box", [[-90, 20, -70, 60], [190, 20, 210, 60], [20, -90, 40, -70], [20, 150, 40, 170]])
def test_a_box_outside_of_the_image_erases_nothing(box: list[float]) -> None:
    """An annotation that states no size is compared with the video only once its frames have been decoded."""
    image = draw_people(3)
    erase(image, np.array(box, np.float32))
    np.testing.assert_array_equal(image, draw_people(3))


def test_colours_run_from_one_side_to_the_other() -> None:
    image = np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 10, axis=0).repeat(3, axis=2)
    erased = image.copy()
    erased[:, 30:60] = 255
    erase(erased, np.array([30, 0, 60, 10], np.float32))
    np.testing.assert_allclose(erased, image, atol=2)


def two_people(frames: int) -> Iterator[tuple[np.ndarray, list[Tube]]]:
    tubes = [Tube(np.arange(frames), np.tile(box, (frames, 1)), i, person_id=i) for i, box in enumerate(PEOPLE[:2])]
    return [draw_people(2)] * frames, tubes


def shown_people(image: np.ndarray) -> set[int]:
    return {i for i in (0, 1) if abs(int(image[45, int(PEOPLE[i, 0]) + 6, 0]) - COLOURS[i]) < 20}


def test_frames_for_cached_queries_lack_one_person_each_time() -> None:
    frames, tubes = two_people(40)
    video = Video("v", 120, 80, 40, tubes)
    erased = [*erase_people(frames, video)]
    assert {frozenset(shown_people(image)) for image in erased} == {frozenset({0}), frozenset({1})}
    for image, again in zip(erased, erase_people(frames, video), strict=True):
        np.testing.assert_array_equal(image, again)
    assert (frames[0] == draw_people(2)).all()
    alone = Video("v", 120, 80, 40, tubes[:1])
    assert all(shown_people(image) == {0, 1} for image in erase_people(frames, alone))


@pytest.mark.parametrize("mirror_frames", [False, True])
def test_clips_without_somebody_have_no_box_of_them(mirror_frames: bool) -> None:
    frames, tubes = two_people(8)
    jpegs = [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes() for frame in frames]
    people = [{"frames": t.frames, "boxes": t.boxes, "label": t.label, "person_id": t.person_id} for t in tubes]
    meta = {"name": "v", "width": 120, "height": 80, "stored": [120, 80], "n_frames": 8, "tubes": people}
    sums = [zlib.crc32(jpeg) for jpeg in jpegs]
    video = ShardVideo("shard", meta | {"made_from": {}}, sums, lambda chosen: [jpegs[i] for i in chosen])
    clips = Clips(jitter=(0, 0, 0, 0), mirror=mirror_frames, mirror_frames=mirror_frames, erase_people=True)
    seen = []
    for seed in range(10):
        packed = clips.pack([Clip(video, np.arange(8), np.random.default_rng(seed))])
        edges = np.concatenate([[0], packed["counts"].numpy().cumsum()])
        for t, image in enumerate(packed["images"].numpy()):
            rows = slice(edges[t], edges[t + 1])
            boxes, ids = packed["boxes"][rows].numpy(), packed["person_ids"][rows].tolist()
            centre = {0: 16 / 120, 1: 68 / 120}
            mirrored = [abs(box[0] - centre[i]) > 1e-3 for box, i in zip(boxes, ids, strict=True)]
            assert len(set(mirrored)) == 1 and packed["actions"][rows].tolist() == ids
            assert shown_people(image[:, ::-1] if mirrored[0] else image) == set(ids)
            seen.append((len(ids), mirrored[0]))
    assert {n for n, _ in seen} == {1, 2} and {flip for _, flip in seen} == {False, mirror_frames}
    assert 0.3 < np.mean([n == 1 for n, _ in seen]) < 0.7
