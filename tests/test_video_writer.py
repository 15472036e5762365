"""Annotated videos: every frame is there, boxes and strip say what the tracks say, and files are whole or absent."""

import resource
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.drawing import video_writer
from utils.drawing.draw import BLACK, WHITE, colour_of, draw_boxes, fill, put_text, text_size
from utils.drawing.timeline import Person, PersonTrack, Strip
from utils.drawing.video_writer import LEAST, LEAST_WIDTH, MOST, ROWS, TubeVideoWriter, write_tube_video
from utils.misc import InputError

LABELS = ["walk", "run", "sit"]


@pytest.fixture(params=["ffmpeg", "opencv"])
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of encoding; a machine without ffmpeg tests the other one."""
    if request.param == "ffmpeg" and not video_writer._has_x264():
        pytest.skip("no ffmpeg with x264 is installed")
    monkeypatch.setattr(video_writer, "_has_x264", lambda: request.param == "ffmpeg")
    return request.param


def track(
    person: int, frames: range | list[int], labels: list[int] | int, box: tuple = (10, 20, 60, 90)
) -> PersonTrack:
    n = len(frames)
    return PersonTrack(person, np.array(frames), np.tile(box, (n, 1)), np.broadcast_to(labels, n), np.full(n, 0.5))


def grey(n: int, width: int = 120, height: int = 100, level: int = 128) -> Iterator[np.ndarray]:
    return (np.full((height, width, 3), level, np.uint8) for _ in range(n))


def read(path: Path) -> list[np.ndarray]:
    """All frames, RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (got := capture.read())[0]:
        frames.append(got[1][..., ::-1].astype(int))
    assert frames, path
    return frames


def nearest(colour: np.ndarray, choices: dict) -> object:
    """Videos blur colours: the choice that is nearest."""
    return min(choices, key=lambda name: np.abs(np.array(choices[name]) - colour).sum())


def test_every_frame_is_in_the_video_with_its_boxes(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "new" / "a.mp4"
    tracks = [track(0, range(10), 1), track(1, range(4, 8), 2, (70, 20, 110, 90))]
    assert write_tube_video(path, grey(10), 25.0, tracks, LABELS, 10) == 10
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    frames = read(path)
    assert len(frames) == 10
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]
    scale = LEAST / 120
    for t, frame in enumerate(frames):
        assert frame.shape[1] == LEAST
        assert frame.shape[0] % 2 == 0
        assert nearest(frame[round(40 * scale), round(10 * scale)], {0: colour_of(0), "grey": (128,) * 3}) == 0
        seen = nearest(frame[round(40 * scale), round(70 * scale)], {1: colour_of(1), "grey": (128,) * 3})
        assert seen == (1 if 4 <= t < 8 else "grey")
        assert nearest(frame[round(60 * scale), round(35 * scale)], {"grey": (128,) * 3, "black": BLACK}) == "grey"


def test_the_file_is_of_a_kind_that_browsers_play(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "a.mp4"
    write_tube_video(path, grey(3), 25.0, [], LABELS)
    data = path.read_bytes()
    assert data[4:8] == b"ftyp"
    assert {"ffmpeg": b"avc1", "opencv": b"vp09"}[encoder] in data
    if encoder == "ffmpeg":  # plays while it loads
        assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (33, 47), (481, 271), (700, 10), (10, 700), (1501, 601)])
def test_any_size(tmp_path: Path, encoder: str, size: tuple[int, int]) -> None:
    path, (w, h) = tmp_path / "a.mp4", size
    tracks = [track(3, range(2), 0, (0.2 * w, 0.3 * h, 0.6 * w, 0.8 * h))]
    assert write_tube_video(path, grey(2, w, h), 29.97, tracks, LABELS, 2) == 2
    frames = read(path)
    assert len(frames) == 2
    height, width = frames[0].shape[:2]
    picture = max(min(max(size), MOST), LEAST) * np.array(size) / max(size)
    assert width == pytest.approx(max(picture[0], LEAST_WIDTH), abs=2)  # even, for the encoders
    assert height > picture[1] + 20
    assert (frames[0] != frames[1]).any()  # the cursor moves


def test_writing_begins_at_once_and_holds_no_frames(tmp_path: Path, encoder: str) -> None:
    alive = []

    def frames() -> Iterator[np.ndarray]:
        for frame in grey(60):
            parts = list(tmp_path.glob(".a.*.part.mp4"))
            alive.append(len(parts))
            yield frame

    write_tube_video(tmp_path / "a.mp4", frames(), 25.0, [], LABELS)
    assert alive[0] == 0
    assert set(alive[5:]) == {1}


def test_without_tracks_the_people_come_frame_by_frame(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "a.mp4"
    with TubeVideoWriter(path, (640, 480), 10.0, LABELS, n_frames=20, rows=2) as video:
        for t, frame in enumerate(grey(20, 640, 480)):
            box = np.array([100, 100, 200, 300], np.float32)
            video.write(frame, [Person(5, box, 0, 0.9)] if t < 12 else [])
    last = read(path)[-1]
    row = last[480 + video.strip.top + 3]
    known = {5: colour_of(5), "track": (44, 44, 44)}
    left, right = video.strip.left, 640
    assert nearest(row[left + (right - left) // 4], known) == 5
    assert nearest(row[left + 7 * (right - left) // 10], known) == "track"


def test_no_frames_bad_rates_and_errors_leave_nothing(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(InputError, match="without frames"):
        write_tube_video(path, [], 25.0, [], LABELS)
    with pytest.raises(InputError, match="without frames"), TubeVideoWriter(path, (64, 48), 25.0, LABELS):
        pass
    with pytest.raises(InputError, match="frames a second"):
        write_tube_video(path, grey(2), float("nan"), [], LABELS)

    def broken() -> Iterator[np.ndarray]:
        yield from grey(3)
        raise InputError("frame 3 cannot be decoded")

    with pytest.raises(InputError, match="frame 3"):
        write_tube_video(path, broken(), 25.0, [], LABELS)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_previous_video(tmp_path: Path, encoder: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    noise = np.random.default_rng(0).integers(0, 256, (2, 480, 640, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(InputError, match=r"a\.mp4: the video could not be written"):
            write_tube_video(path, noise, 25.0, [], LABELS)
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
    shown = strip(2, 40)
    shown.turn(0, [track(0, range(40), [-1] * 10 + [0] * 10 + [1] * 10 + [3] * 10), track(4, range(25, 35), 2)])
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


def test_the_cursor_moves_and_the_future_is_pale() -> None:
    shown = strip(1, 10)
    shown.turn(0, [track(1, range(10), 0)])
    for now in (0, 3, 9):
        line = row_of(shown, 0, shown.image(now))
        white = np.flatnonzero((line[shown.left :] == WHITE).all(1)) + shown.left
        assert shown._column(now) <= white.min() <= white.max() < shown._column(now + 1)
        acting = (line == colour_of(1)).all(1)
        assert not acting[white.max() + 1 :].any()
        assert acting[shown.left : white.min()].all()


def test_the_strip_turns_pages_and_counts_those_without_a_row() -> None:
    shown = strip(ROWS, 20)
    crowd = [track(i, range(i, 20), 0) for i in range(15)]
    shown.turn(0, crowd)
    assert shown.ids == list(range(ROWS))  # the longest ones, by their first frame
    assert shown.hidden == {12, 13, 14}
    full = shown.image(0)
    shown.hidden = set()
    shown._picture = None
    assert (full[-shown.line :] != shown.image(0)[-shown.line :]).any()  # "+3 more"
    shown.turn(20, crowd)
    assert (shown.ids, shown.hidden) == ([], set())
    for frame in (20, 21):
        shown.mark(frame, [Person(i, np.zeros(4), 1, 0.5) for i in range(14)])
    assert (len(shown.ids), shown.hidden) == (ROWS, {12, 13})
    assert (shown.cells[:, :2] == 1).all()
    assert (shown.cells[:, 2:] < 0).all()


def test_a_strip_of_few_tracks_at_a_time_has_few_rows(tmp_path: Path) -> None:
    one_by_one = [track(i, range(500 * i, 500 * i + 400), 0) for i in range(5)]
    assert len(TubeVideoWriter(tmp_path / "a.mp4", (64, 48), 25.0, LABELS, one_by_one, 2500).strip.cells) == 1
    assert len(TubeVideoWriter(tmp_path / "a.mp4", (64, 48), 25.0, LABELS, [], 100).strip.cells) == 1


def test_labels_that_do_not_fit_are_cut_or_left_out() -> None:
    shown = Strip(200, 1, ["a very long name of an action", "x"], 10.0, 10, 13)
    shown.turn(0, [track(0, range(10), 0)])
    whole = shown.image(9)
    assert (whole[: shown.step, shown.left + 3 :] == BLACK).all(-1).any()  # some of it is written
    narrow = Strip(60, 1, ["a very long name of an action"], 10.0, 10, 13)
    narrow.turn(0, [track(0, range(10), 0)])
    inside = narrow.image(0)[narrow.top : narrow.top + narrow.step - 2, narrow.left + 4 : -4]
    assert not (inside == BLACK).all(-1).any()


def test_tracks_are_checked() -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        track(0, [1, 1], 0)
    with pytest.raises(ValueError, match="scores"):
        PersonTrack(0, np.arange(2), np.zeros((2, 4)), np.zeros(2), np.zeros(3))
    held = track(7, [2, 5], [1, -1])
    assert held.at(5)[0::2] == (7, -1)
    assert held.at(3) is None
    assert held.at(6) is None


def test_boxes_outside_or_not_finite_are_left_out_and_others_cut() -> None:
    empty = np.zeros((50, 60, 3), np.uint8)
    image = empty.copy()
    bad = np.array([[np.nan, 1, 2, 3], [0, 0, np.inf, 9], [70, 5, 90, 20], [-30, -30, -5, -5], [5, 60, 9, 70]])
    draw_boxes(image, bad, [WHITE] * 5, ["a"] * 5, 12)
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
