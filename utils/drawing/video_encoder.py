"""Images to a video that browsers play: H.264, or VP9 where FFmpeg comes without x264."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from utils.misc import InputError
from utils.storage.files import atomic

CODECS = {
    # three quarters of the time of crf 21 with CABAC and deblocking, in as many bytes
    ".mp4": ("libx264", {"preset": "ultrafast", "crf": "23"}),
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "31", "b": "0", "row-mt": "1"}),
}
"""By suffix: encoder and its options."""


def browser_suffix() -> str:
    """The suffix of the videos that can be written here: ".mp4" with x264, else ".webm"."""
    return ".mp4" if "libx264" in av.codecs_available else ".webm"


def encoded_rate(fps: float) -> Fraction:
    """The frames a second that a video of `fps` is written with."""
    return Fraction(fps).limit_denominator(1001)


def fitted_size(size: tuple[int, int], max_side: int, min_side: int = 0) -> tuple[int, int]:
    """(width, height) in the proportions of `size`, both even, as encoders want it; the longer side has at least
    `min_side` and at most `max_side` pixels."""
    scale = min(max(*size, min_side), max_side) / max(size)
    return tuple(max(round(side * scale) // 2 * 2, 2) for side in size)


def fit_image(image: np.ndarray, max_side: int, min_side: int = 0) -> np.ndarray:
    """An image, uint8 RGB (H, W, 3), in its `fitted_size`; itself where it has that size."""
    own = image.shape[1::-1]
    size = fitted_size(own, max_side, min_side)
    if size == own:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if size < own else cv2.INTER_CUBIC)


@contextmanager
def new_video(path: Path, size: tuple[int, int], fps: float, gop: int = 0) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that encodes the next image, uint8 RGB (H, W, 3), contiguous, into a file with its index in front.

    The file appears when the block ends well.

    Args:
        path: its suffix, .mp4 or .webm, names the codec.
        size: (width, height) in pixels, both even.
        gop: frames between key frames, for quick jumps; 0: the encoder's choice.

    Raises:
        InputError: no image was encoded.
    """
    codec, options = CODECS[path.suffix]
    faststart = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with atomic(path) as part, av.open(f"file:{part}", "w", format=path.suffix[1:], options=faststart) as container:
        stream = container.add_stream(codec, rate=encoded_rate(fps), options=options)
        stream.width, stream.height = size
        context = stream.codec_context
        if gop:
            context.gop_size = gop
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG  # players guess unnamed colours
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        reformatter, times = VideoReformatter(), count()

        def encode(image: np.ndarray) -> None:
            frame = reformatter.reformat(
                av.VideoFrame.from_numpy_buffer(image, "rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.POINT,  # of chroma
                threads=1,
            )
            frame.pts = next(times)
            container.mux(stream.encode(frame))

        yield encode
        if not next(times):
            raise InputError(f"{path}: a video without frames cannot be written")
        container.mux(stream.encode(None))
