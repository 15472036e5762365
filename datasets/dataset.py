"""A video as a sequence of frames, from a video file or a folder of images."""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from utils.misc import InputError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_PIXELS = 2**26  # of a frame: more is a bomb, not a picture
FOLDER_FPS = 25.0
END_TOLERANCE = (3, 0.02)  # frames, share of the frames: containers often announce a few more than they hold
_END = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # how a whole JPEG and PNG begin and end


def quiet_opencv() -> None:
    """Keep OpenCV's and FFmpeg's own messages off stderr: what matters is raised."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode_image(data: bytes, where: object) -> np.ndarray:
    """An encoded image -> uint8 BGR (H, W, 3); InputError naming `where` when it is damaged, cut off or huge.

    Formats are those of `IMAGES`, whatever the file's name says: OpenCV would try many more.
    """
    end = _END.get(data[:2])
    if end is not None and end not in data[-256:]:
        raise InputError(f"{where}: the image is cut off")
    refuse_bomb(data, where)
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        frame = None
    if frame is None:
        raise InputError(f"{where}: not a readable image")
    return frame


def refuse_bomb(data: bytes, where: object) -> None:
    """InputError, naming `where`, when an encoded image is of another format, or its header says that it is huge."""
    size = next((size for read in (_jpeg_size, _png_size, _bmp_size, _webp_size) if (size := read(data))), None)
    if size is None:
        raise InputError(f"{where}: not a readable image")
    width, height = size
    if width * height > MAX_PIXELS:
        raise InputError(f"{where}: {width} x {height} pixels are more than {MAX_PIXELS}")


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"\x89PNG" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _bmp_size(data: bytes) -> tuple[int, int] | None:
    if data[:2] != b"BM" or len(data) < 26:
        return None
    kind = "H" if int.from_bytes(data[14:18], "little") == 12 else "i"  # the first version has 16 bits
    return tuple(map(abs, struct.unpack_from(f"<{kind}{kind}", data, 18)))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in a JPEG's frame header."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + length
    return None


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


class VideoFrames:
    """The frames of a video file, or of a folder of images in natural order (2.jpg before 10.jpg).

    `len` is the number of frames that the file announces (an iteration may end up to `END_TOLERANCE` before it,
    and may go beyond it), `size` is (width, height) in pixels, `fps` frames a second (`FOLDER_FPS` for a folder).
    Iterating decodes from the start, one frame at a time: uint8 RGB (H, W, 3). Raises InputError, naming file and
    frame, for a video that is missing, unreadable, empty, broken in the middle, or whose frames change size.
    """

    def __init__(self, path: str | Path) -> None:
        quiet_opencv()
        self.path = Path(path)
        self._images: list[Path] = []
        if self.path.is_dir():
            self._images = sorted((p for p in self.path.iterdir() if p.suffix.lower() in IMAGES), key=_natural)
            if not self._images:
                raise InputError(f"{self.path}: a folder without images ({', '.join(IMAGES)})")
            first = self._read_image(self._images[0])
            self.fps, self._count = FOLDER_FPS, len(self._images)
        elif self.path.is_file():
            capture = self._open()
            ok, first = capture.read()
            self.fps = capture.get(cv2.CAP_PROP_FPS)
            self._count = int(min(max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0), 2**40))
            capture.release()
            if not ok:
                raise InputError(f"{self.path}: no frame of this video can be decoded")
            if not 0 < self.fps < 1000:
                self.fps = FOLDER_FPS
        else:
            raise InputError(f"{self.path}: no such video file or folder of images")
        self.size = (first.shape[1], first.shape[0])

    def __len__(self) -> int:
        return self._count

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise InputError(f"{self.path}: not a readable video; give a video file or a folder of images")
        if capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT) > MAX_PIXELS:
            raise InputError(f"{self.path}: frames of more than {MAX_PIXELS} pixels")
        return capture

    @staticmethod
    def _read_image(path: Path) -> np.ndarray:
        try:
            return decode_image(path.read_bytes(), path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None

    def _decode(self) -> Iterator[np.ndarray]:
        if self._images:
            yield from map(self._read_image, self._images)
            return
        capture = self._open()
        try:
            count = 0
            while True:
                ok, frame = capture.read()
                if not ok:
                    break
                count += 1
                yield frame
        finally:
            capture.release()
        frames, share = END_TOLERANCE
        if self._count - count > max(frames, share * self._count):
            raise InputError(f"{self.path}: frame {count} cannot be decoded ({self._count} frames announced)")

    def __iter__(self) -> Iterator[np.ndarray]:
        for i, frame in enumerate(self._decode()):
            if frame.shape[1::-1] != self.size:
                where = self._images[i] if self._images else f"{self.path}: frame {i}"
                raise InputError(
                    f"{where}: {frame.shape[1]} x {frame.shape[0]} pixels after {self.size[0]} x {self.size[1]}"
                )
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
