"""Small videos written for the tests."""

import struct
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

ONE = 1 << 16
TURNS = {90: (0, ONE, -ONE, 0), 180: (-ONE, 0, 0, -ONE), 270: (0, -ONE, ONE, 0)}
"""Degrees, clockwise -> the first four numbers of an mp4's matrix, which takes x, y to a x + c y, b x + d y."""


def gradient_frames(n: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Smooth frames with a number in their brightness, uint8 RGB."""
    y, x = np.mgrid[:height, :width]
    return [np.stack([x * 3 % 256, y * 4 % 256, np.full_like(x, 4 * i % 256)], 2).astype(np.uint8) for i in range(n)]


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Iterable[int] | None = None,
    colorspace: int = 2,
    color_range: int = 0,
    **container: dict,
) -> Path:
    """Encode frames at 25 frames a second, or at `times` in 1/25 s; the file's kind follows from its suffix."""
    frames = list(frames)
    with av.open(f"file:{path}", "w", **container) as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        for time, image in zip(range(len(frames)) if times is None else times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range)
            frame.pts, frame.time_base = time, 1 / stream.codec_context.framerate
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def turn_video(path: Path, turn: int) -> None:
    """Write into an mp4 that it is to be shown otherwise: one of `TURNS`."""
    data = bytearray(path.read_bytes())
    a, b, c, d = TURNS[turn]
    start = data.index(struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
