"""Annotated videos: every frame is there, boxes and strip say what the tracks say, and files are whole or absent."""

import resource
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from datasets.dataset import VideoFrames
from utils.drawing.draw import BLACK, WHITE, colour_of, draw_boxes, fill, put_text, text_size
from utils.drawing.timeline import Person, Strip
from utils.drawing.video_encoder import new_video
from utils.drawing.video_writer import MAX_SIDE, MIN_SIDE, MIN_STRIP, ROWS, annotated_video, resize_image
from utils.misc import InputError

LABELS = ["walk", "run", "sit"]


def person(number: int, label: int, box: tuple = (10, 20, 60, 90)) -> Person:
    return Person(number, np.float32(box), label, 0.5)


def grey(width: int = 120, height: int = 100) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def write(path: Path, people: Sequence[Sequence[Person]], frame: np.ndarray, fps: float = 25.0) -> None:
    """An annotated video that shows `frame` with the people of each frame."""
    height, width = frame.shape[:2]
    with annotated_video(path, (width, height), fps, LABELS, len(people)) as add:
        for shown in people:
            add(resize_image(frame), shown)


def read(path: Path) -> np.ndarray:
    """All frames, RGB."""
    return np.stack(list(VideoFrames(path))).astype(int)


def nearest(colour: np.ndarray, choices: dict) -> object:
    """Videos blur colours: the choice that is nearest."""
    return min(choices, key=lambda name: np.abs(np.array(choices[name]) - colour).sum())


def test_every_frame_is_in_the_video_with_its_boxes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.mp4"
    first, second = person(0, 1), person(1, 2, (70, 20, 110, 90))
    write(path, [[first, second] if 4 <= t < 8 else [first] for t in range(10)], grey())
    frames = read(path)
    assert len(frames) == 10
    assert VideoFrames(path).fps == 25
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    scale = MIN_SIDE / 120
    for t, frame in enumerate(frames):
        assert frame.shape[1] == MIN_SIDE
        assert frame.shape[0] % 2 == 0
        assert nearest(frame[round(40 * scale), round(10 * scale)], {0: colour_of(0), "grey": (128,) * 3}) == 0
        seen = nearest(frame[round(40 * scale), round(70 * scale)], {1: colour_of(1), "grey": (128,) * 3})
        assert seen == (1 if 4 <= t < 8 else "grey")
        assert np.abs(frame[round(60 * scale), round(35 * scale)] - 128).max() <= 3


def test_the_file_is_of_a_kind_that_browsers_play(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path, [[]] * 3, grey())
    data = path.read_bytes()
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize("size", [(2, 2), (34, 46), (96, 64), (130, 70)])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_brightness_and_colour_of_every_place_come_back(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    path, (width, height) = tmp_path / f"a{suffix}", size
    coarse = np.random.default_rng(0).integers(0, 256, (6, height, width, 3), np.uint8)
    images = [cv2.blur(cv2.blur(image, (9, 9)), (9, 9)) for image in coarse]
    images = [cv2.convertScaleAbs(image, alpha=5, beta=-5 * 127 + 127) for image in images]
    with new_video(path, size, 25.0) as encode:
        for image in images:
            encode(image)
    assert np.abs(read(path) - np.stack(images)).mean() < 8


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (33, 47), (481, 271), (700, 10), (10, 700), (1501, 601)])
def test_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    path, (w, h) = tmp_path / "a.mp4", size
    write(path, [[person(3, 0, (0.2 * w, 0.3 * h, 0.6 * w, 0.8 * h))]] * 2, grey(w, h), 29.97)
    frames = read(path)
    assert len(frames) == 2
    height, width = frames[0].shape[:2]
    shown = max(min(max(size), MAX_SIDE), MIN_SIDE) * np.array(size) / max(size)
    assert resize_image(grey(w, h)).shape[1::-1] == pytest.approx(shown, abs=2)
    assert width == pytest.approx(max(shown[0], MIN_STRIP), abs=2)  # even, for the encoder
    assert height > shown[1] + 20
    assert (frames[0] != frames[1]).any()  # the cursor moves
    assert VideoFrames(path).fps == pytest.approx(29.97, abs=0.01)


@pytest.mark.parametrize("fps", [0.5, 7.0, 23.976, 29.97, 59.94, 240.0])
def test_the_rate_is_kept(tmp_path: Path, fps: float) -> None:
    write(tmp_path / "a.mp4", [[]] * 5, grey(), fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-3)


def test_no_frames_bad_rates_and_errors_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(InputError, match="without frames"):
        write(path, [], grey())
    with pytest.raises(InputError, match="frames a second"):
        write(path, [[]], grey(), float("nan"))
    with pytest.raises(InputError, match="frame 3"), annotated_video(path, (120, 100), 25.0, LABELS) as add:
        for _ in range(3):
            add(resize_image(grey()), [])
        raise InputError("frame 3 cannot be decoded")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [2, 60])
def test_a_full_disk_leaves_the_previous_video(tmp_path: Path, n: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match=r"a\.mp4"):
            write(path, [[]] * n, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def strip(rows: int, page: int, width: int = 440, fps: float = 10.0) -> Strip:
    return Strip(width, rows, LABELS, fps, page, 13)


def row_of(shown: Strip, row: int, image: np.ndarray) -> np.ndarray:
    """The colours along a person's row, above its texts."""
    return image[shown.top + row * shown.step + 1]


def test_the_strip_has_the_persons_colour_where_it_acts() -> None:
    shown, actions = strip(2, 40), [-1] * 10 + [0] * 10 + [1] * 10 + [3] * 10
    for t, action in enumerate(actions):
        shown.mark(t, [person(0, action), *([person(4, 2)] if 25 <= t < 35 else [])])
    image = shown.image(39)
    first, second = (row_of(shown, row, image) for row in (0, 1))
    column = [shown._column(t) for t in range(41)]
    middle = shown.top + (shown.step - 2) // 2
    for t in range(39):
        inside = slice(column[t] + 1, column[t + 1] - 1)
        assert (first[inside] == colour_of(0)).all() == (10 <= t < 30)
        assert (second[inside] == colour_of(4)).all() == (25 <= t < 35)
        if t not in range(10, 30):  # there without an action, by -1 or by the number of labels: a thin line
            assert (image[middle, inside] == colour_of(0)).all()
    assert (first[column[20] - 1] != colour_of(0)).all()  # a gap between two actions
    assert (image[:, : shown.left - 3][shown.top + 1, 2:] == colour_of(0)).all()


def test_the_cursor_moves() -> None:
    shown = strip(1, 10)
    for frame in (0, 3, 9):
        shown.mark(frame, [person(1, 0)])
        line = row_of(shown, 0, shown.image(frame))
        white = np.flatnonzero((line[shown.left :] == WHITE).all(1)) + shown.left
        assert shown._column(frame) <= white.min() <= white.max() < shown._column(frame + 1)


def test_the_strip_turns_pages_and_counts_those_without_a_row() -> None:
    shown = strip(ROWS, 20)
    for frame in (0, 1):
        shown.mark(frame, [person(i, 1) for i in range(ROWS + 3)])
    assert list(shown.rows) == list(range(ROWS))
    assert shown.hidden == {ROWS, ROWS + 1, ROWS + 2}
    assert (shown.cells[:, :2] == 1).all()
    assert (shown.cells[:, 2:] < 0).all()
    full = shown.image(0)
    shown.hidden = set()
    shown._axis()
    assert (full[-shown.line :] != shown.image(0)[-shown.line :]).any()  # "+3 more"
    shown.turn(20)
    assert (shown.rows, shown.hidden) == ({}, set())
    assert (shown.cells < 0).all()


def test_labels_that_do_not_fit_are_cut_or_left_out() -> None:
    images = []
    for width in (200, 60):
        shown = Strip(width, 1, ["a very long name of an action", "x"], 10.0, 10, 13)
        for frame in range(10):
            shown.mark(frame, [person(0, 0)])
        images.append(shown.image(9)[shown.top : shown.top + shown.step - 2, shown.left + 4 : -6])
    assert (images[0] == BLACK).all(-1).any()  # some of it is written
    assert not (images[1] == BLACK).all(-1).any()


def test_boxes_outside_are_left_out_and_others_cut() -> None:
    empty = np.zeros((50, 60, 3), np.uint8)
    image = empty.copy()
    outside = np.array([[70, 5, 90, 20], [-30, -30, -5, -5], [5, 60, 9, 70]])
    draw_boxes(image, outside, [WHITE] * 3, ["a"] * 3, 12)
    assert (image == empty).all()
    draw_boxes(image, np.array([[-1e6, 10, 1e6, 40]]), [colour_of(2)], [""], 12)
    assert (image[10, 5:55] == colour_of(2)).all()
    assert (image[15:35, 5:55] == 0).all()
    draw_boxes(image, np.zeros((0, 4)), [], [], 12)


def test_captions_keep_clear_of_each_other_and_of_the_edge() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    boxes = np.array([[100, 2, 200, 150], [104, 4, 204, 152], [280, 60, 299, 150]])
    colours = [colour_of(i) for i in range(3)]
    draw_boxes(image, boxes, colours, ["person one", "person two", "person three"], 12)
    for colour, text in zip(colours, ("person one", "person two", "person three"), strict=True):
        width, height = text_size(text, 12)
        assert (image == colour).all(-1).sum() > 0.4 * width * height


def test_dashed_boxes_are_broken_lines() -> None:
    solid, dashed = (np.full((120, 160, 3), 128, np.uint8) for _ in range(2))
    box = np.array([[20, 20, 140, 100]])
    draw_boxes(solid, box, [colour_of(0)], [""], 12)
    assert (solid[20, 25:135] == colour_of(0)).all()
    draw_boxes(dashed, np.repeat(box, 2, 0), [WHITE, colour_of(0)], ["", ""], 12, [True, False])
    along = dashed[20, 25:135]
    shares = [(along == colour).all(1).mean() for colour in (WHITE, colour_of(0), BLACK)]
    assert sum(shares) == 1
    assert min(shares[:2]) > 0.2  # a solid one shows through


def test_text_is_cut_at_the_edge_and_never_wraps() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    for corner in ((-10, -5), (30, 10), (500, 0), (0, 500), (-500, 0)):
        put_text(image, "walk", corner, 13, WHITE)
    assert image.any()
    untouched = np.zeros((20, 40, 3), np.uint8)
    put_text(untouched, "walk", (40, 0), 13, WHITE)
    fill(untouched, 45, 0, 60, 20, WHITE)
    fill(untouched, -20, 0, -5, 20, WHITE)
    assert not untouched.any()
    assert text_size("歩く", 12)[1] > 0
    assert text_size("W", 24)[0] > text_size("W", 12)[0] > text_size("i", 12)[0]
