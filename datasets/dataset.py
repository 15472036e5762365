"""A video as a sequence of frames, from a video file or a folder of images."""

import re
import shlex
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from datasets import MAX_PIXELS
from datasets.sampling import ALL_FRAMES, FOLDER_FPS, Sampling
from utils.misc import InputError, available_cores

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FEW = 0.1  # share of a folder's images: if fewer, or a single one, are named otherwise, these are no frames
MAX_THREADS = 16  # of a decoder: each keeps frames of its own
SEEK = 10  # seconds: a video that is used from later on is not decoded from its beginning,
SEEKABLE = ("mov", "matroska")  # in containers where a seek ends at a key frame before, and frames have their own times
END_TOLERANCE = (3, 0.02)  # frames, share of the duration: how much earlier than announced a Matroska file may end
_END = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # how a whole JPEG and PNG begin and end
_TURN = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, -90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, -180: cv2.ROTATE_180}


def decode_image(data: bytes, where: object, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decode an image file's bytes to uint8 (H, W, 3), BGR unless OpenCV's `flags` say otherwise.

    Raises:
        InputError, which begins with `where`: the image is damaged, cut off, or of more than `MAX_PIXELS`.
    """
    end = _END.get(data[:2])
    if end is not None and end not in data[-256:]:
        raise InputError(f"{where}: the image is cut off")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what matters is raised
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        if "MAX_IMAGE" in error.err:
            raise InputError(f"{where}: an image of more than {MAX_PIXELS} pixels") from None
        image = None
    if image is None:
        raise InputError(f"{where}: not a readable image")
    return image


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order (2.jpg before 10.jpg), without hidden files.

    Raises:
        InputError: no image, a few that are named otherwise than the others, two of one number, or numbers missing
            between the first and the last one.
    """
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    if not images:
        raise InputError(f"{folder}: a folder without images ({', '.join(IMAGES)})")
    images.sort(key=lambda path: (_natural(path), path.suffix))
    texts = [tuple(_natural(image)[::2]) for image in images]
    text, n = Counter(texts).most_common(1)[0]
    if n > 1 and 0 < len(images) - n < max(FEW * len(images), 2):
        other = next(image for image, of_image in zip(images, texts, strict=True) if of_image != text)
        raise InputError(f"{folder}: {other.name} is named otherwise than the others; if it is no frame, remove it")
    missing = []
    for image, after in pairwise(images):
        changes = [(a, b) for a, b in zip(_natural(image), _natural(after), strict=False) if a != b]
        if not changes and len(_natural(image)) == len(_natural(after)):
            raise InputError(f"{folder}: {image.name} and {after.name} are one frame twice; remove one of them")
        if changes and all(isinstance(a, int) and b - a > 1 for a, b in changes):  # whichever of them counts the frames
            number, next_number = changes[0]
            missing.append(f"{number + 1} to {next_number - 1}" if next_number - number > 2 else f"{number + 1}")
    if missing:
        shown = ", ".join([*missing[:8], *["..."] * (len(missing) > 8)])
        place = f"between {images[0].name} and {images[-1].name}, which would shift the boxes of later frames"
        raise InputError(f"{folder}: images {shown} are missing {place}; add them, or number the images without gaps")
    return images


def _natural(path: Path) -> list[str | int]:
    """A file's name without suffix as text, number, text, number, ..."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)]


class _BrokenVideo(Exception):
    """Packets of a video file are missing or broken."""


class VideoFrames:
    """The frames of a video file, or of a folder of images in natural order; those alone that `sampling` chooses.

    Iterating decodes from the start, one frame at a time: uint8 RGB (H, W, 3), turned as the file asks.
    What decodes counts, whatever number of frames the container announces. Colours follow the matrix and range that the
    file names.

    Attributes:
        path: the file or folder.
        size: (width, height) in pixels.
        fps: frames a second, of those chosen; of a folder, all of them are the sampling's `image_rate`.
        announced: number of frames by the container, an estimate; 0 where it says nothing.

    Raises:
        InputError, naming file and frame: missing, unreadable or empty; a codec that cannot be decoded; packets that
            are missing or broken; frames that change their size; a folder as for `list_images`.
    """

    def __init__(self, path: str | Path, sampling: Sampling = ALL_FRAMES) -> None:
        self.path, self.sampling, self._own_fps = Path(path), sampling, FOLDER_FPS
        self._images: list[Path] = []
        if self.path.is_dir():
            self._images = list_images(self.path)
            first = self._read_image(self._images[0])
            self._own_fps = sampling.image_rate
            seconds = len(self._images) / self._own_fps
        elif self.path.is_file():
            with self._opened() as (container, stream):
                first = next(self._decode(container, stream, ALL_FRAMES), None)
                rate = float(stream.guessed_rate or 0)
                seconds = (container.duration or 0) / av.time_base
            if first is None:
                raise InputError(f"{self.path}: a video without frames")
            self._own_fps = rate if 0 < rate < 1000 else FOLDER_FPS
        else:
            raise InputError(f"{self.path}: no such video file or folder of images")
        self.fps = sampling.fps(self._own_fps)
        self.announced = round(max(min(seconds, sampling.end or seconds) - sampling.start, 0) * self.fps)
        self.size = (first.shape[1], first.shape[0])

    def __iter__(self) -> Iterator[np.ndarray]:
        where = None
        for where, frame in self._read():
            height, width = frame.shape[:2]
            if (width, height) != self.size:
                raise InputError(f"{where}: {width} x {height} pixels after {self.size[0]} x {self.size[1]}")
            yield frame
        if where is None:
            raise InputError(f"{self.path}: has no frame from second {self.sampling.start:g} on; is it the right file?")

    def _read(self) -> Iterator[tuple[object, np.ndarray]]:
        """The frames, each with its place for errors."""
        if self._images:
            chosen = self.sampling.choose(self._timed_images(), self._own_fps)
            yield from ((path, self._read_image(path)) for path in chosen)
            return
        with self._opened() as (container, stream):
            if self.sampling.start > SEEK and container.format.name.startswith(SEEKABLE):
                container.seek(int((self.sampling.start - SEEK) * av.time_base) + (container.start_time or 0))
            for number, frame in enumerate(self._decode(container, stream, self.sampling)):
                yield f"{self.path}: frame {number}", frame

    def _timed_images(self) -> Iterator[tuple[Path, float]]:
        for number, path in enumerate(self._images):
            yield path, (number - self.sampling.image_offset) / self._own_fps

    @cached_property
    def own_times(self) -> list[float]:
        """The times of all frames of the file, rising, in seconds from its beginning. One of them is decoded."""
        if self._images:
            return [time for _, time in self._timed_images()]
        with self._opened() as (container, stream):
            begin, first, shown = (container.start_time or 0) / av.time_base, None, []
            for packet in container.demux(stream):
                if first is None and not _is_avi(container):
                    first = next((frame.pts for frame in stream.decode(packet)), None)
                if _is_shown(packet):  # an AVI's times are in the order of decoding; sorted, they are the frames'
                    shown.append(packet.dts if packet.pts is None or _is_avi(container) else packet.pts)
            if {*shown} == {None}:  # a raw stream has no times
                return [number / self._own_fps for number in range(len(shown))]
            # packets before the first frame show nothing: a recording that begins between two key frames has such
            return sorted(float(s * stream.time_base) - begin for s in shown if first is None or s >= first)

    def chosen(self) -> np.ndarray:
        """The number in the file, from 0, of each frame that is chosen: int64 (n,)."""
        return np.fromiter(self.sampling.choose(enumerate(self.own_times), self._own_fps), np.int64)

    @staticmethod
    def _read_image(path: Path) -> np.ndarray:
        try:
            return cv2.cvtColor(decode_image(path.read_bytes(), path), cv2.COLOR_BGR2RGB)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:  # "file:" since a name may hold a colon; metadata may be in any encoding
            container = av.open(f"file:{self.path}", metadata_errors="ignore")
        except (av.FFmpegError, UnicodeError):
            raise InputError(f"{self.path}: not a readable video; give a video file or a folder of images") from None
        with container:
            stream = container.streams.best("video") or next(iter(container.streams.video), None)
            if stream is None:
                raise InputError(f"{self.path}: a file without video; give a video file or a folder of images")
            context = stream.codec_context
            if context is None:
                raise InputError(self._undecodable("unknown to FFmpeg"))
            if context.width * context.height > MAX_PIXELS:
                raise InputError(f"{self.path}: frames of more than {MAX_PIXELS} pixels")
            context.options = {"max_pixels": str(MAX_PIXELS)}
            context.thread_type, context.thread_count = "AUTO", min(available_cores(), MAX_THREADS)
            yield container, stream

    def _undecodable(self, codec: str) -> str:
        copy = self.path.with_name(f"{self.path.stem}-h264.mp4")
        command = shlex.join(["ffmpeg", "-i", f"file:{self.path}", "-c:v", "libx264", "-crf", "18", f"file:{copy}"])
        return f"{self.path}: no frame can be decoded (codec: {codec}); repair or convert it: {command}"

    def _decode(self, container: InputContainer, stream: VideoStream, sampling: Sampling) -> Iterator[np.ndarray]:
        reformatter, count, begin = VideoReformatter(), 0, (container.start_time or 0) / av.time_base

        def timed() -> Iterator[tuple[av.VideoFrame, float]]:
            nonlocal count
            time = -1 / self._own_fps
            unused: deque[int] = deque()
            for packet in _packets(container, stream):
                if _is_avi(container) and packet is not None:
                    unused.append(packet.dts)
                for frame in stream.decode(packet):
                    pts = unused.popleft() if unused else frame.pts  # not frame.time, which the last frames lack
                    time = time + 1 / self._own_fps if pts is None else float(pts * stream.time_base) - begin
                    yield frame, time
                    count += 1

        try:
            for frame in sampling.choose(timed(), self._own_fps):
                # bicubic, by way of BGR: bit for bit what OpenCV's own reader gives
                bgr = reformatter.reformat(frame, format="bgr24", interpolation=Interpolation.BICUBIC, threads=1)
                rgb = cv2.cvtColor(bgr.to_ndarray(), cv2.COLOR_BGR2RGB)
                turn = _TURN.get(frame.rotation)
                yield rgb if turn is None else cv2.rotate(rgb, turn)
        except (av.FFmpegError, _BrokenVideo):
            if count == 0:
                raise InputError(self._undecodable(stream.codec_context.name)) from None
            reason = "packets are missing or broken (cut off or damaged)"
            raise InputError(f"{self.path}: frame {count} cannot be decoded: {reason}") from None


def _is_avi(container: InputContainer) -> bool:
    """Whether a file has no times: those that FFmpeg gives are of the order of decoding."""
    return container.format.name == "avi"


def _is_shown(packet: av.Packet) -> bool:
    """Whether a packet of a video has a frame to show; VP8 also has some that others refer to alone."""
    hidden = packet.stream.codec_context.name == "vp8" and packet.size and not memoryview(packet)[0] & 16
    return bool(packet.size) and not packet.is_discard and not hidden


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """The packets of a video stream, and None at their end, which flushes the decoder.

    Raises:
        _BrokenVideo: packets are missing or broken; where FFmpeg notices it itself, av.FFmpegError.
    """
    end, n = Fraction(0), 0
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream is stream and packet.is_corrupt:
            yield None
            raise _BrokenVideo
        if packet.stream is stream and packet.size:
            n += 1
            yield packet
    yield None
    # an AVI's index lists all packets, of which FFmpeg skips damaged ones without an error
    lost = _is_avi(container) and n < sum(entry.size > 0 for entry in stream.index_entries)
    if lost or _is_cut_off(container, stream, float(end)):
        raise _BrokenVideo


def _is_cut_off(container: InputContainer, stream: VideoStream, end: float) -> bool:
    """Whether the container says that it goes on after the file's end; `end` in seconds is that of its last packet."""
    size = container.size
    if any(entry.pos + entry.size > size for entry in stream.index_entries):
        return True
    if _is_avi(container):  # the RIFF chunk's size, without its first 8 bytes
        with Path(container.name.removeprefix("file:")).open("rb") as file:
            return int.from_bytes(file.read(8)[4:], "little") > size
    if container.format.name.startswith("matroska") and container.duration:  # of the longest of its streams
        frames, share = END_TOLERANCE
        duration = container.duration / av.time_base
        return duration - end > max(frames / float(stream.guessed_rate or FOLDER_FPS), share * duration)
    return False
