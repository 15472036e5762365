"""A video at a rate of its own: which frames are used, and what becomes of the annotation."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.dataset import SEEK, VideoFrames
from datasets.frame_batches import SubsetVideos
from datasets.make_shards import make_shards
from datasets.sampling import ALL_FRAMES, TOLERANCE, Sampling
from datasets.use_shards import ClipDataset
from tests.videos import gradient_frames, write_video
from utils.misc import InputError


def chosen(sampling: Sampling, times: np.ndarray, fps: float = 25.0) -> list[int]:
    return list(sampling.choose(enumerate(times.tolist()), fps))


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_is_the_frame_on_screen_at_its_time(seed: int) -> None:
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.choice([0.02, 0.04, 0.1, 0.7], 80)) - draw.choice([0, 0.02])
    sampling = Sampling(rate=float(draw.choice([1, 5, 7.5, 40])), start=float(draw.choice([0, 1.5])))
    expected = []
    for k in range(100_000):
        time = sampling.start + k / sampling.rate
        if time >= times[-1] + 0.04 - TOLERANCE:
            break
        expected.append(max([i for i, t in enumerate(times) if t <= time + TOLERANCE], default=0))
    assert chosen(sampling, times) == expected
    end = float(times[40])
    bounded = chosen(Sampling(sampling.rate, start=sampling.start, end=end), times)
    assert bounded == expected[: int((end - sampling.start) * sampling.rate + 1 + 1e-2)]


def test_the_same_rate_and_a_container_that_rounds_times_give_every_frame() -> None:
    for fps in (24, 25, 30_000 / 1001, 30, 59.94):
        times = np.arange(2000) / fps
        for rounded in (times, times.round(3)):  # to milliseconds, as Matroska does
            assert chosen(Sampling(rate=fps), rounded, fps) == list(range(2000))
    seconds = chosen(Sampling(rate=1, start=900, end=1799), np.arange(60_000) * 1001 / 30_000, 29.97)
    assert len(seconds) == 900 and seconds[2] == 27_032  # the 27,033rd would come 3 ms after second 902


def test_stride_counts_the_videos_own_frames() -> None:
    times = np.cumsum(np.full(20, 0.04)) - 0.04
    assert chosen(Sampling(stride=6), times) == [0, 6, 12, 18]
    assert chosen(Sampling(stride=6, start=0.2, end=0.5), times) == [5, 11]
    assert chosen(ALL_FRAMES, times - 1) == list(range(20))


def shown(path: Path, sampling: Sampling) -> list[int]:
    """The numbers of the frames that are chosen; reading the video gives these frames."""
    frames, video = list(VideoFrames(path)), VideoFrames(path, sampling)
    numbers = video.chosen().tolist()
    for frame, number in zip(video, numbers, strict=True):
        assert np.array_equal(frame, frames[number])
    return numbers


TIMES = [0, 1, 2, 3, 10, 11, 12, 25, 26, 27, 28, 29, 50, 51, 52, 53, 54, 55]  # of 1/25 s: at second 1, frame 7


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_videos_of_varying_rate_are_sampled_by_time(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"v.{suffix}", gradient_frames(18), times=TIMES)
    sampling = Sampling(rate=5)  # each 5/25 s
    assert shown(path, sampling) == [0, 3, 4, 6, 6, 7, 11, 11, 11, 11, 12, 17]
    assert VideoFrames(path, sampling).fps == 5


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_with_b_frames_is_sampled_as_it_is_shown(tmp_path: Path, codec: str) -> None:
    """An AVI has no times, and FFmpeg's guesses follow the order of decoding, and begin late."""
    images = [np.roll(gradient_frames(1)[0], i, axis=1) for i in range(40)]  # motion, for which B-frames are chosen
    options = {"bf": "3", "crf": "1"} if codec == "libx264" else {"bf": "2", "b": "4000000"}
    path = write_video(tmp_path / "v.avi", images, codec, options=options)
    frames = list(VideoFrames(path))
    order = [int(np.argmin([np.abs(image - frame.astype(int)).mean() for image in images])) for frame in frames]
    assert order == list(range(40))
    assert shown(path, Sampling(rate=12.5)) == list(range(0, 40, 2))


def test_a_raw_stream_without_times_is_sampled_by_its_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.h264", gradient_frames(20), options={"bf": "2"})
    frames, video = list(VideoFrames(path)), VideoFrames(path, Sampling(rate=5))
    assert video.chosen().tolist() == [0, 5, 10, 15]
    for frame, number in zip(video, video.chosen(), strict=True):
        assert np.array_equal(frame, frames[number])


def hidden_vp8(data: bytes) -> bytes:
    """A frame of VP8 that is not shown (its header's fifth bit), as two-pass encoding adds for others to refer to."""
    return bytes([data[0] & ~16]) + data[1:]


@pytest.mark.parametrize(("codec", "options", "cut"), [("libx264", {"g": "12", "bf": "2"}, 5), ("libvpx", {}, 0)])
def test_packets_that_show_nothing_are_no_frames(tmp_path: Path, codec: str, options: dict, cut: int) -> None:
    """A recording that begins between two key frames, and VP8 with frames that are not shown."""
    images = [np.roll(gradient_frames(1)[0], i, axis=1) for i in range(40)]
    path = tmp_path / "v.mkv"
    with (
        av.open(write_video(tmp_path / "whole.mkv", images, codec, options=options)) as whole,
        av.open(path, "w") as out,
    ):
        stream = out.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(list(whole.demux(video=0))[cut:-1]):
            packet.stream = stream
            if codec == "libvpx" and number % 10 == 5:
                hidden = av.Packet(hidden_vp8(bytes(packet)))
                hidden.stream, hidden.time_base, hidden.pts = stream, packet.time_base, packet.pts - 9
                out.mux(hidden)
            out.mux(packet)
    length = 40 - 12 * bool(cut)
    assert len(list(VideoFrames(path))) == length and shown(path, Sampling(rate=12.5))[-1] >= length - 2


def test_a_late_start_is_found_without_decoding_what_is_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", (gradient_frames(64) * 10)[:600], options={"g": "30", "bf": "2"})
    frames = list(VideoFrames(path))
    converted = []
    monkeypatch.setattr(
        "datasets.dataset._packets",
        lambda *a, real=VideoFrames.__init__.__globals__["_packets"]: (
            converted.append(packet) or packet for packet in real(*a)
        ),
    )
    for sampling in (Sampling(rate=5, start=SEEK + 10, end=22), Sampling(stride=3, start=SEEK + 10)):
        video = VideoFrames(path, sampling)
        converted.clear()
        for frame, number in zip(video, video.chosen(), strict=True):
            assert np.array_equal(frame, frames[number])
        assert 0 < len(converted) < 500
    with pytest.raises(InputError, match="has no frame from second 100 on"):
        list(VideoFrames(path, Sampling(start=100.0)))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("v.ts", "libx264", {"g": "600", "sc_threshold": "0"}), ("v.avi", "mpeg4", {"g": "30", "bf": "2", "b": "4M"})],
)
def test_a_late_start_is_right_where_a_seek_is_not(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    path = write_video(tmp_path / name, (gradient_frames(64) * 10)[:630], codec, options=options)
    assert shown(path, Sampling(rate=5, start=SEEK + 10))


def project_at(folder: Path, line: str, frames: list[int]) -> Path:
    """One video of 40 frames at 25 a second, one tube whose boxes say in which frame they are."""
    write_video(folder / "v.mp4", gradient_frames(40))
    boxes = [[i / 4, 1, i / 4 + 10, 20] for i in frames]
    tube = {"label": "walk", "person_id": 0, "frames": frames, "boxes": boxes}
    video = {"width": 64, "height": 48, "n_frames": 40, "tubes": [tube]}
    (folder / "a.json").write_text(json.dumps({"labels": ["walk"], "videos": {"v": video}}))
    (folder / "train.txt").write_text("v\n")
    path = folder / "own.yml"
    fields = "name: own\nformat: json\nannotations: a.json\nframes: '{name}.mp4'\nsplits: {train: train.txt}\n"
    path.write_text(fields + line)
    return path


@pytest.mark.parametrize(
    ("line", "used"), [("stride: 6", [0, 6, 12, 18, 24, 30, 36]), ("rate: 10", [0, 2, 5, 7, 10, 12, 15, 17, 20])]
)
def test_annotations_and_shards_count_the_frames_that_are_used(tmp_path: Path, line: str, used: list[int]) -> None:
    annotated = list(range(3, 22))
    project = load_project(project_at(tmp_path, line, annotated))
    (video,) = read_annotations(project).values()
    (tube,) = video.tubes
    numbers = [i for i in used if i in annotated]
    assert (tube.boxes[:, 0] * 4).tolist() == numbers and tube.frames.tolist() == [used.index(i) for i in numbers]
    make_shards(project, "train", tmp_path / "shards", workers=1)
    (shown,) = ClipDataset(tmp_path / "shards").videos
    assert len(shown) == video.n_frames == (7 if "stride" in line else 16)
    assert shown.frames.tolist() == tube.frames.tolist()
    sampled = SubsetVideos(project, "train")
    assert sum(len(b) for v in sampled.open(["v"], 0, 3, False) for b in v.batches) == video.n_frames
    assert len(sampled.sources()["v"]) == 4  # another rate is another source


def test_a_rate_does_not_hide_that_other_frames_were_annotated(tmp_path: Path) -> None:
    """Such as those of a video before it was encoded at another rate."""
    project = load_project(project_at(tmp_path, "rate: 5", list(range(80))), labels=["walk"])
    annotation = json.loads((tmp_path / "a.json").read_text())
    del annotation["videos"]["v"]["n_frames"]
    (tmp_path / "a.json").write_text(json.dumps(annotation))
    with pytest.raises(InputError, match=r"video 'v', frame 43: frame is beyond the video's end \(40 frames"):
        read_annotations(project)


def test_a_tube_between_the_used_frames_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project_at(tmp_path, "stride: 6", [1, 2, 3])
    assert read_annotations(load_project(path))["v"].tubes == []
    assert "1 time: frame lies between those used, left out; first in video 'v', frame 1" in capsys.readouterr().err


def test_images_of_jhmdb21_are_30_a_second(shared: Path) -> None:
    assert load_project("jhmdb21", shared / "data").sampling.image_rate == 30
