"""UCF101-24 with the corrected annotations: `pyannot.pkl` or `finalAnnots.mat`, which hold the same 4,458 tubes.

Boxes are left, top, width, height; every video is 320 x 240. The two files count differently: in the pickle `sf`
counts from 0 and `ef` is the frame after the last; in the MATLAB file `sf` and `ef` are the first and the last frame,
counted from 1, and classes count from 1.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

from datasets.formats.common import AnnotationFile, RawTube, RawVideo, corners, whole_number
from utils.misc import InputError
from utils.safe_pickle import read_pickle

WIDTH, HEIGHT = 320, 240
MAX_MAT = 2**28  # bytes of a MATLAB file's decompressed part
COMPRESSED = 15  # MATLAB's miCOMPRESSED


def read(path: Path) -> AnnotationFile:
    """Read either file; label indices are those of the project file."""
    videos = _read_mat(path) if path.suffix == ".mat" else _read_pkl(path)
    return AnnotationFile(path, videos)


def _tube(start: object, stop: object, boxes: object, label: object, first: int = 0) -> RawTube:
    """A tube of the frames from `start` to before `stop` (from 0); `start` and `label` count from `first`."""
    start, stop, boxes = whole_number(start) - first, whole_number(stop), corners(boxes)
    if len(boxes) != stop - start:
        raise ValueError(f"a tube of {stop - start} frames has {len(boxes)} boxes")
    return RawTube(np.arange(start, stop), boxes, whole_number(label) - first)


def _read_pkl(path: Path) -> dict[str, RawVideo]:
    videos = {}
    for name, video in read_pickle(path, "annotation file").items():
        tubes = [_tube(t["sf"], t["ef"], t["boxes"], t["label"]) for t in video["annotations"]]
        videos[str(name)] = RawVideo(WIDTH, HEIGHT, whole_number(video["numf"]), tubes)
    return videos


def _read_mat(path: Path) -> dict[str, RawVideo]:
    import scipy.io

    _check_mat(path)
    try:
        annotations = scipy.io.loadmat(path, variable_names=["annot"])["annot"].reshape(-1)
    except Exception as error:  # SciPy's reader raises whatever its parts raise on damaged files
        raise InputError(f"{path}: not a readable MATLAB file ({error})"[:300]) from None
    videos = {}
    for video in annotations:
        tubes = [_tube(t["sf"], t["ef"], t["boxes"], t["class"], first=1) for t in video["tubes"].reshape(-1)]
        videos[str(video["name"].item())] = RawVideo(WIDTH, HEIGHT, whole_number(video["num_imgs"]), tubes)
    return videos


def _check_mat(path: Path) -> None:
    """InputError when a MATLAB 5 file is cut off, or a checksum of its compressed parts is wrong.

    SciPy's reader does not look, and damage can crash the interpreter.
    """
    data, at = path.read_bytes(), 128
    try:
        if data[124:128] != b"\x00\x01IM" or len(data) == at:
            raise ValueError("its header is not of MATLAB 5, little-endian")
        while at < len(data):
            kind, size = struct.unpack_from("<II", data, at)
            stream = zlib.decompressobj()
            stream.decompress(data[at + 8 : at + 8 + size], MAX_MAT)
            if kind != COMPRESSED or not stream.eof or stream.unused_data:
                raise ValueError("it is cut off, or not compressed")
            at += 8 + size
    except (ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path}: damaged MATLAB file ({error}); download it again, or use pyannot.pkl") from None
