"""Tars of samples by WebDataset's conventions, written in order and read by offset.

A sample is one video. Its members are `<key>.json` and after it what stock `webdataset` decodes: `<key>.000000.jpg`,
`<key>.000001.jpg`, ... of a shard, or `<key>.<array>.npy`. The json's `members` gives each one's size and crc32 in the
tar's order, so a reader goes from json to json and never looks at the members between them. Nothing is compressed:
a range of an array's rows is mapped (`numpy.memmap`) at its offset, and no reader holds a whole video.
"""

import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.misc import InputError
from utils.storage.files import atomic, seal, unseal

BLOCK = tarfile.BLOCKSIZE
MAX_KEY = 64  # characters: with its extension a member's name fits the 100 of a header
MAX_JSON = 2**30  # bytes: a header that claims more is damaged
MAX_NPY_HEADER = 10 + 2**16  # bytes of an array's magic, version, length and header
END = (2 * BLOCK, 2 * BLOCK + tarfile.RECORDSIZE)  # bytes of zeros after the last member, at least and at most
ALL = slice(None)  # rows of an array
CHUNK = 2**20  # bytes that are read at a time


class Member(NamedTuple):
    """A stretch of a file: a member's data in a tar, or what becomes one."""

    path: Path
    offset: int
    size: int
    crc32: int


Sample = tuple[dict, Mapping[str, Member]]
"""A video's json, its `name` in it, and its other members by extension: `000000.jpg`, `boxes.npy`."""


def safe_key(name: str) -> str:
    """A tar key for a video's name: distinct names give distinct keys of letters, digits, `_`, `-` and `=`.

    WebDataset cuts a member's name at its first dot, and `/` is a folder; so every other byte of the
    name becomes `=` and two hexadecimal digits. Long keys are cut and end in `==` and a hash of the name.
    """
    key = re.sub(rb"[^A-Za-z0-9_-]", lambda m: b"=%02X" % m.group()[0], name.encode()).decode()
    if len(key) <= MAX_KEY:
        return key
    return f"{key[: MAX_KEY // 2]}=={hashlib.sha256(name.encode()).hexdigest()[:24]}"


def padded(size: int) -> int:
    """Bytes that a member's data of this size takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def checksum(file: BinaryIO, offset: int, size: int) -> int:
    """crc32 of `size` bytes of a file from `offset` on; ValueError when the file ends before."""
    crc = 0
    while size:
        data = os.pread(file.fileno(), min(size, CHUNK), offset)
        if not data:
            raise ValueError("the file ends too early")
        crc, offset, size = zlib.crc32(data, crc), offset + len(data), size - len(data)
    return crc


def verify(file: BinaryIO, member: Member, what: str) -> None:
    """InputError, naming the file and `what` the member is, unless its checksum is that of its data in `file`."""
    try:
        if checksum(file, member.offset, member.size) != member.crc32:
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError) as error:
        raise InputError(f"{member.path}: {what} is damaged ({error}); remove it and make it again") from None


def verify_sample(sample: Sample) -> None:
    """InputError, naming the file, unless the checksums of all of a video's members are those of their data."""
    meta, members = sample
    for extension, member in members.items():
        with member.path.open("rb") as file:
            verify(file, member, f"{extension} of {meta['name']!r}")


def whole_file(path: Path) -> Member:
    """A file as a member."""
    size = path.stat().st_size
    with path.open("rb") as file:
        return Member(path, 0, size, checksum(file, 0, size))


def write_tar(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write samples to a tar, atomically; the same samples give the same bytes.

    The folder of the tar is made when it is missing.
    """
    import webdataset  # a second of imports that those who only read tars are spared

    owner = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    with atomic(path) as part, part.open("wb") as out, webdataset.TarWriter(out, **owner) as writer:
        writer.tarstream.format = tarfile.USTAR_FORMAT  # one block a header, or an error
        for meta, members in samples:
            key, sizes = safe_key(meta["name"]), {extension: [m.size, m.crc32] for extension, m in members.items()}
            writer.write({"__key__": key, "json": seal({**meta, "members": sizes})})
            for extension, member in members.items():
                _copy(member, f"{key}.{extension}", writer.tarstream)


def _copy(member: Member, name: str, tar: tarfile.TarFile) -> None:
    """Add part of a file to a tar in blocks; `TarWriter.write` would take all of it into memory.

    The queries of an hour of video may take 8 GiB, a size that GNU's form of a header alone can say.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = member.size, 0o644
    with member.path.open("rb") as source:
        source.seek(member.offset)
        tar.format = tarfile.USTAR_FORMAT if member.size < 8**11 else tarfile.GNU_FORMAT
        tar.addfile(info, source)
    tar.format = tarfile.USTAR_FORMAT


def read_samples(path: str | Path, what: str = "tar", remedy: str = "make it again") -> Iterator[Sample]:
    """Each sample of a tar in order: its json, whose checksum is compared, and where its other members lie.

    Raises InputError, naming the file, when it is missing, damaged, cut off, foreign or of a former form, or holds a
    video twice. Members' own checksums are for those who read them (`checksum`).
    """
    with _open(Path(path), what) as file:
        yield from _samples(file, Path(path), what, remedy)


def _open(path: Path, what: str) -> BinaryIO:
    if not path.is_file():
        raise InputError(f"{path}: no such {what}")
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _samples(file: BinaryIO, path: Path, what: str, remedy: str) -> Iterator[Sample]:
    """`read_samples` of the open file `path`."""
    at, names = 0, set()
    try:
        length = os.fstat(file.fileno()).st_size
        while True:
            file.seek(at)
            block = file.read(BLOCK)
            if not any(block):
                break
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            if not (info.isreg() and re.fullmatch(r"[A-Za-z0-9_=-]+\.json", info.name)):
                raise InputError(f"{path}: member {info.name[:80]!r} does not belong in a {what}; {remedy}")
            if info.size > MAX_JSON:
                raise ValueError(f"a json of {info.size} bytes")
            meta = unseal(file.read(info.size))
            if "members" not in meta:
                raise InputError(f"{path}: a {what} of a former form; {remedy}")
            if meta["name"] in names:
                raise InputError(f"{path}: video {meta['name'][:80]!r} is there twice; {remedy}")
            names.add(meta["name"])
            at += BLOCK + padded(info.size)
            members = {}
            for extension, (size, crc32) in meta.pop("members").items():
                if not (isinstance(size, int) and size >= 0):
                    raise ValueError(f"{extension} of {size} bytes")
                members[extension] = Member(path, at + BLOCK, size, crc32)
                at += BLOCK + padded(size)
            if at > length:
                raise ValueError("it ends too early")
            yield meta, members
        file.seek(at)
        rest = file.read(END[1] + 1)
        if not END[0] <= len(rest) <= END[1] or any(rest):
            raise ValueError(f"no sample and no end at byte {at}")
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged {what} ({error}); {remedy}") from None


class TarStore:
    """Random access to a tar of arrays. Raises InputError, naming the file, as `read_samples` does.

    `names` are the videos' true names in the tar's order, or those given: the tar may hold other videos too. `bad` are
    those of them that could not be used when it was made, and why.
    The checksum of an array is compared when it is first read. The tar stays open, so that one that takes its place
    meanwhile is not read at the offsets of this one, here or in a process forked from this.
    """

    def __init__(self, path: str | Path, what: str = "tar", names: Collection[str] | None = None) -> None:
        self.path = Path(path)
        self._file = _open(self.path, what)
        samples = _samples(self._file, self.path, what, "make it again")
        self._samples = {m["name"]: (m, members) for m, members in samples if names is None or m["name"] in names}
        self.names = list(self._samples if names is None else names)
        self.bad = {name: str(self.json(name)["bad"]) for name in self.names if "bad" in self.json(name)}
        self._arrays: dict[tuple[str, str], tuple[np.dtype, int, tuple[int, ...]]] = {}

    def _sample(self, name: str) -> Sample:
        if name not in self._samples:
            raise InputError(f"{self.path}: no video {name!r}; make it again for this data set and subset")
        return self._samples[name]

    def json(self, name: str) -> dict:
        """The sample's json."""
        return self._sample(name)[0]

    def read(self, name: str, column: str, rows: slice | np.ndarray = ALL) -> np.ndarray:
        """Rows of an array. It is mapped for this read alone, so that memory holds no more than these rows."""
        member = self._sample(name)[1].get(f"{column}.npy")
        if member is None:
            raise InputError(f"{self.path}: {name!r} has no {column}.npy; make it again")
        if (name, column) not in self._arrays:
            verify(self._file, member, f"{column}.npy of {name!r}")
            self._arrays[name, column] = self._place(name, column, member)
        dtype, offset, shape = self._arrays[name, column]
        if not shape[0]:
            return np.empty(shape, dtype)[rows]
        try:
            return np.array(np.memmap(self._file, dtype, "r", offset, shape)[rows])
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read ({error}); make it again") from None

    def _place(self, name: str, column: str, member: Member) -> tuple[np.dtype, int, tuple[int, ...]]:
        """dtype, offset and shape of an array."""
        try:
            start = os.pread(self._file.fileno(), min(member.size, MAX_NPY_HEADER), member.offset)
            header = io.BytesIO(start)
            if np.lib.format.read_magic(header) != (1, 0):
                raise ValueError("it is stored in another form")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
            offset = member.offset + header.tell()
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if fortran or dtype.hasobject or not shape or offset + size != member.offset + member.size:
                raise ValueError("it does not hold the array that it names")
        except Exception as error:  # NumPy's reader raises whatever its parts raise
            text = f"{self.path}: {column}.npy of {name!r} is not a plain array ({error}); make it again"
            raise InputError(" ".join(text.split())) from None
        return dtype, offset, shape
