"""Videos as frames: containers, codecs, colours, rotation, names, damage; folders of images."""

import os
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from datasets.dataset import VideoFrames, list_images
from tests.videos import gradient_frames, turn_video, write_video
from utils.misc import InputError

LENGTH = 60
CASES = {
    "whole.mp4": 60, "cut.mp4": 52, "sound_longer.mkv": 60, "vfr.mkv": 40, "dropped_frames.avi": 40, "av1.mp4": 60,
}  # fmt: skip
NAMES = ("12:30:05.mp4", "-v.mp4", "100%03d.mp4", "a?b#c&d.mp4", "歩く.mp4", "a 'b\"$(c).mp4", os.fsdecode(b"\xff.mp4"))
KINDS = {
    "a.mp4": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "motion_jpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"b": "4000000"}},
    "a.ts": {},
}


def read(path: Path) -> np.ndarray:
    return np.stack(list(VideoFrames(path)))


def read_with_opencv(path: Path) -> np.ndarray:
    """What OpenCV's own reader, which uses the same FFmpeg functions, makes of a file."""
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (result := capture.read())[0]:
        frames.append(cv2.cvtColor(result[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


@pytest.mark.parametrize(("name", "length"), CASES.items())
def test_what_decodes_counts(shared: Path, name: str, length: int) -> None:
    video = VideoFrames(shared / "cases" / "videos" / name)
    assert (sum(1 for _ in video), video.size, video.fps) == (length, (96, 64), 25)


def test_a_file_that_is_cut_off_is_told(shared: Path) -> None:
    with pytest.raises(InputError, match=r"cut_off\.mp4: frame 5\d cannot be decoded: packets are missing or broken"):
        read(shared / "cases" / "videos" / "cut_off.mp4")


@pytest.mark.parametrize("name", KINDS)
def test_every_container_is_read_whole_or_told(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, gradient_frames(LENGTH, 160, 120), **KINDS[name])
    frames = read(path)
    assert frames.shape == (LENGTH, 120, 160, 3)
    blue = frames[..., 2].mean((1, 2))
    assert (np.abs(blue - 4 * np.arange(LENGTH)) < 8).all()  # in order, none twice
    assert (frames == read_with_opencv(path)).all()
    if name == "a.ts":  # made to be cut anywhere
        return
    data = path.read_bytes()
    for share in (0.5, 0.9, 0.96):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError, match=rf"{name}: (no )?frame .*decoded") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_variable_rate_and_a_longer_sound_are_no_fault(tmp_path: Path) -> None:
    times = [*range(20), *range(20, 110, 3)]
    for suffix in ("mkv", "mp4"):
        path = write_video(tmp_path / f"a.{suffix}", gradient_frames(len(times)), times=times)
        assert len(read(path)) == len(times)
    longer = tmp_path / "longer.mkv"
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(longer), "w") as out:
        picture = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=8000, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                out.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        for _ in range(100):
            out.mux(sound.encode(silence))
        out.mux(sound.encode(None))
    assert len(read(longer)) == len(times)


def test_a_damaged_middle_is_told_where_frames_are_lost(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", gradient_frames(LENGTH))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    try:
        assert len(read(path)) == LENGTH
    except InputError as error:
        assert "packets are missing or broken" in str(error)


def test_packets_that_an_avi_lists_and_lacks_are_told(tmp_path: Path) -> None:
    """FFmpeg goes on with the next one, and every later frame would have another number."""
    path = write_video(tmp_path / "a.avi", gradient_frames(LENGTH), "mpeg4")
    data = bytearray(path.read_bytes())
    chunk = data.index(b"00dc", len(data) // 2)
    data[chunk : chunk + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(InputError, match="packets are missing or broken"):
        read(path)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_is_turned_as_it_asks(tmp_path: Path, degrees: int) -> None:
    path = write_video(tmp_path / "a.mp4", gradient_frames(3, 64, 32))
    upright = read(path)
    turn_video(path, degrees)
    assert VideoFrames(path).size == ((64, 32) if degrees == 180 else (32, 64))
    assert (read(path) == np.rot90(upright, -degrees // 90, (1, 2))).all()
    assert (read(path) == read_with_opencv(path)).all()


@pytest.mark.parametrize(
    ("pix_fmt", "colorspace", "color_range"),
    [("yuv420p", 1, 1), ("yuv420p", 5, 1), ("yuv420p", 1, 2), ("yuv444p", 5, 1), ("yuv420p10le", 1, 1)],
)
def test_colours_follow_the_matrix_and_range_of_the_file(
    tmp_path: Path, pix_fmt: str, colorspace: int, color_range: int
) -> None:
    colours = np.array([[230, 20, 20], [20, 200, 30], [30, 40, 220], [0, 0, 0], [255, 255, 255], [120, 120, 120]])
    image = np.repeat(colours[None], 32, 0).repeat(16, 1).astype(np.uint8)
    options = {"crf": "1"}
    path = write_video(
        tmp_path / "a.mp4", [image], "libx264", pix_fmt, options, colorspace=colorspace, color_range=color_range
    )
    frames = read(path)
    assert np.abs(frames[0, 16, 8::16].astype(int) - colours).max() <= 4
    with av.open(str(path)) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24")
    difference = np.abs(frames[0].astype(int) - plain).reshape(32, 6, 16, 3)
    assert difference[:, :, 4:12].max() <= 3  # at the colours' edges, PyAV's own conversion blurs chroma otherwise


def test_odd_sizes_are_read_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", gradient_frames(4, 63, 47), pix_fmt="yuv444p")
    assert read(path).shape == (4, 47, 63, 3)
    path = write_video(tmp_path / "b.avi", gradient_frames(4, 63, 47), "mjpeg", "yuvj420p")
    assert (read(path) == read_with_opencv(path)).all()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "source.mp4", gradient_frames(3))
    shutil.move(tmp_path / "source.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(name))) == len(read(tmp_path / name)) == 3


def test_metadata_of_any_encoding_is_no_fault(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", gradient_frames(3))
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        out.metadata["title"] = "Mueller"
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "b.mkv").read_bytes()
    assert data.count(b"Mueller") == 1
    (tmp_path / "b.mkv").write_bytes(data.replace(b"Mueller", b"M\xfcllerX"))
    assert len(read(tmp_path / "b.mkv")) == 3


def test_a_codec_that_cannot_be_decoded_is_named_with_a_command(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a b.mp4", gradient_frames(3))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match=r"codec: .*ffmpeg -i 'file:.*a b\.mp4' -c:v libx264"):
        VideoFrames(path)
    (tmp_path / "sound.mp3").write_bytes(b"ID3" + bytes(100))
    with pytest.raises(InputError, match=r"sound\.mp3: not a readable video"):
        VideoFrames(tmp_path / "sound.mp3")


def images(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        ok, data = cv2.imencode(Path(name).suffix, np.full((32, 48, 3), 10 * i, np.uint8))
        assert ok
        (folder / name).write_bytes(data)
    return folder


def test_images_are_read_by_their_numbers_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    folder = images(tmp_path / "v", "img9.png", "img10.png", "img11.png")
    for name in ("._img10.png", ".DS_Store", "Thumbs.db", ".img12.png"):
        (folder / name).write_bytes(b"x")
    assert [path.name for path in list_images(folder)] == ["img9.png", "img10.png", "img11.png"]
    assert read(folder)[:, 0, 0, 0].tolist() == [0, 10, 20]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("0.png", "1.png", "3.png"), "images 2 are missing between 0.png and 3.png"),
        (("f_0001.jpg", "f_0005.jpg", "f_0007.jpg"), "images 2 to 4, 6 are missing"),
        (("img_0001_t10.jpg", "img_0003_t30.jpg", "img_0004_t40.jpg"), "images 2 are missing between img_0001_t10.jpg"),
        (("t10_f1.jpg", "t30_f3.jpg"), "images 11 to 29 are missing"),
        (("00001.jpg", "00001.png", "00002.jpg"), "00001.jpg and 00001.png are one frame twice"),
        (("1.png", "01.png"), "are one frame twice"),
        ((), "a folder without images"),
    ],
)
def test_gaps_and_doubles_in_a_folder_are_told(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VideoFrames(images(tmp_path / "v", *names))


@pytest.mark.parametrize("n", [2, 9, 12])
@pytest.mark.parametrize("cover", ["cover.png", "thumb_1.png", "f_00_small.png"])
def test_a_cover_among_the_frames_is_told(tmp_path: Path, cover: str, n: int) -> None:
    """It would shift all frames by one, and so few frames too many are taken for a difference between decoders."""
    folder = images(tmp_path / "v", cover, *(f"f_{i:02d}.png" for i in range(n)))
    with pytest.raises(InputError, match=f"{cover} is named otherwise than the others"):
        VideoFrames(folder)


def test_names_that_are_no_numbers_are_in_order(tmp_path: Path) -> None:
    folder = images(tmp_path / "v", "b.png", "a.png", "c1_2.png", "c2_7.png", "c2_8.png")
    assert [path.name for path in list_images(folder)] == ["a.png", "b.png", "c1_2.png", "c2_7.png", "c2_8.png"]
    timed = ["t1000_f1.png", "t1040_f2.png", "t1080_f3.png"]  # the second number counts the frames
    assert [path.name for path in list_images(images(tmp_path / "timed", *timed))] == timed
