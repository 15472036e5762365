"""Tars of samples (the WebDataset layout), written in order and read by offset.

A sample is a key and its members `<key>.json`, `<key>.npz`, ... one after another, which any WebDataset
reader takes. Nothing is compressed, so that a row range of an array inside an `npz` member is a plain
read at a known place: no reader here holds a whole video.
"""

import io
import json
import os
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import webdataset

from utils.misc import InputError
from utils.storage.files import atomic, naming, seal, unseal

_MEMBER_LIMIT = 64 * 2**30  # bytes: a header that claims more is damaged
_END = (2 * tarfile.BLOCKSIZE, 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE)  # zeros after the last member, in bytes
_MTIME = 0  # the same samples give the same tar, byte for byte


def safe_key(name: str) -> str:
    """A tar key for a video's name: distinct names give distinct keys of letters, digits, `_`, `-` and `=`.

    WebDataset cuts a member's name at its first dot, and `/` is a folder; so every other byte of the
    name becomes `=` and two hexadecimal digits. The true name stands in the sample's json.
    """
    return re.sub(rb"[^A-Za-z0-9_-]", lambda m: b"=%02X" % m.group()[0], name.encode()).decode()


def write_npz(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as an uncompressed `npz`, without the clock in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


class RowSpool:
    """Arrays of unknown length gathered row by row on disk, then written as one `npz`.

    `append` takes a mapping from name to array; all rows of one name share dtype and shape. Memory holds
    one block at a time. What another spool has left in `folder` is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._files: dict[str, tuple[io.FileIO, np.dtype, tuple[int, ...]]] = {}

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Add the rows of `arrays`."""
        for name, array in arrays.items():
            if name not in self._files:
                self._files[name] = ((self.folder / name).open("wb", buffering=0), array.dtype, array.shape[1:])
            handle, dtype, shape = self._files[name]
            if (array.dtype, array.shape[1:]) != (dtype, shape):
                raise ValueError(f"{name}: rows of {array.dtype} {array.shape[1:]} after {dtype} {shape}")
            data = memoryview(np.ascontiguousarray(array).tobytes())
            with naming(self.folder / name):
                while data:  # one write gives at most 2 GiB, and what room there is
                    data = data[handle.write(data) :]

    def close(self) -> None:
        """Let the files go; nothing is appended any more."""
        for handle, _, _ in self._files.values():
            handle.close()

    def write(self, path: Path) -> None:
        """Write what was gathered to `path` (an `npz`) and remove the spool."""
        self.close()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, (_, dtype, shape) in self._files.items():
                source = self.folder / name
                rows = source.stat().st_size // max(dtype.itemsize * int(np.prod(shape)), 1)
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (rows, *shape),
                }
                with (
                    archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member,
                    source.open("rb") as data,
                ):
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(data, member, 2**20)
        shutil.rmtree(self.folder)


class Member(NamedTuple):
    """Part of a file: where a tar holds a member's data."""

    path: Path
    offset: int
    size: int


def write_tar(path: str | Path, samples: Iterable[tuple[str, dict[str, dict | bytes | Path | Member]]]) -> None:
    """Write samples `(video name, {extension: json value | bytes | file | part of one})` to a tar, atomically.

    Files are copied in blocks. The folder of the tar is made when it is missing.
    """
    with atomic(path) as part, part.open("wb") as out, webdataset.TarWriter(out, mtime=_MTIME) as writer:
        for name, members in samples:
            for extension, value in members.items():
                info = tarfile.TarInfo(f"{safe_key(name)}.{extension}")
                info.mtime, info.mode, info.uname, info.gname = _MTIME, 0o644, "", ""
                if isinstance(value, Path):
                    value = Member(value, 0, value.stat().st_size)
                if isinstance(value, Member):
                    info.size = value.size
                    with value.path.open("rb") as source:
                        source.seek(value.offset)
                        writer.tarstream.addfile(info, source)
                else:
                    data = json.dumps(seal(value)).encode() if isinstance(value, dict) else value
                    info.size = len(data)
                    writer.tarstream.addfile(info, io.BytesIO(data))


class Rows:
    """An array stored at an offset of a file: `rows[a:b]` reads those rows, an index array those it names."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape
        self._row_bytes = dtype.itemsize * int(np.prod(shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            if len(rows) == 0:
                return np.empty((0, *self.shape[1:]), self.dtype)
            first = int(rows.min())
            return self[first : int(rows.max()) + 1][rows - first]
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("row ranges are read with step 1")
        count = max(stop - start, 0)
        with self.path.open("rb") as handle:
            data = os.pread(handle.fileno(), count * self._row_bytes, self.offset + start * self._row_bytes)
            while len(data) < count * self._row_bytes:  # one pread gives at most 2 GiB
                at = self.offset + start * self._row_bytes + len(data)
                more = os.pread(handle.fileno(), count * self._row_bytes - len(data), at)
                if not more:
                    raise InputError(f"{self.path}: truncated; make it again")
                data += more
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:]).copy()


class TarStore:
    """Random access to a tar written by `write_tar`: its `names`, `json(name)` and `arrays(name)`.

    `bad` are the videos that could not be used when it was made, and why. Checksums are compared on the way: of every
    json when the tar is opened, of a video's arrays when they are first asked for. Raises InputError, naming the file,
    when it is missing, damaged, cut off, or holds members that such a tar never has (links, devices, folders, absolute
    names, the same twice).
    """

    def __init__(self, path: str | Path, what: str = "tar") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such {what}")
        self._members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(self.path, "r:") as tar:
                end = 0
                for info in tar:
                    key, _, extension = info.name.partition(".")
                    plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse() and info.size >= 0
                    if not (plain and re.fullmatch(r"[A-Za-z0-9_=-]+", key)):
                        raise InputError(f"{path}: member {info.name[:80]!r} does not belong in a {what}")
                    if info.size > _MEMBER_LIMIT or info.offset_data + info.size > self.path.stat().st_size:
                        raise InputError(f"{path}: truncated {what}; remove it and make it again")
                    if extension in self._members.setdefault(key, {}):
                        raise InputError(f"{path}: member {info.name[:80]!r} is there twice; make it again")
                    self._members[key][extension] = (info.offset_data, info.size)
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            self._check_end(end)
        except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError, OverflowError) as error:
            raise InputError(f"{path}: damaged {what} ({error}); remove it and make it again") from None
        self._checked: set[str] = set()
        self._keys: dict[str, str] = {}
        self.bad: dict[str, str] = {}
        for key in self._members:
            meta = self._read_json(key)
            if self._keys.setdefault(meta["name"], key) != key:
                raise InputError(f"{path}: video {meta['name'][:80]!r} is there twice; make it again")
            if "bad" in meta:
                self.bad[meta["name"]] = str(meta["bad"])

    def _check_end(self, end: int) -> None:
        """ValueError when what follows the last member is not a tar's end: `tarfile` stops at damage as at an end."""
        with self.path.open("rb") as handle:
            handle.seek(end)
            rest = handle.read(_END[1] + 1)
        if not _END[0] <= len(rest) <= _END[1] or any(rest):
            raise ValueError(f"no member and no end at byte {end}")

    @property
    def names(self) -> list[str]:
        """The videos' true names, in the tar's order."""
        return list(self._keys)

    def _read(self, key: str, extension: str) -> bytes:
        try:
            offset, size = self._members[key][extension]
        except KeyError:
            raise InputError(f"{self.path}: sample {key} has no {extension} member; make it again") from None
        with self.path.open("rb") as handle:
            return os.pread(handle.fileno(), size, offset)

    def _read_json(self, key: str) -> dict:
        try:
            value = unseal(json.loads(self._read(key, "json")))
            if not isinstance(value["name"], str):
                raise ValueError("name is not a string")
        except (ValueError, KeyError, RecursionError) as error:
            raise InputError(
                f"{self.path}: damaged json of sample {key} ({error}); remove it and make it again"
            ) from None
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def json(self, name: str) -> dict:
        """The sample's json."""
        return self._read_json(self._key(name))

    def where(self, name: str, extension: str) -> tuple[int, int]:
        """Offset and size in bytes of a member's data."""
        return self._members[self._key(name)][extension]

    def sample(self, name: str) -> dict[str, dict | Member]:
        """The sample as `write_tar` takes it; its arrays' checksums are compared."""
        self.arrays(name)
        return {"json": self.json(name), "npz": Member(self.path, *self.where(name, "npz"))}

    def _key(self, name: str) -> str:
        if name not in self._keys:
            raise InputError(f"{self.path}: no video {name!r}; make it again for this data set and subset")
        return self._keys[name]

    def arrays(self, name: str) -> dict[str, Rows]:
        """The arrays of the sample's `npz` member, not yet read."""
        key = self._key(name)
        if "npz" not in self._members[key]:
            raise InputError(f"{self.path}: video {name!r} has no npz member; make it again")
        offset, size = self._members[key]["npz"]
        try:
            if key not in self._checked:
                self._check_arrays(offset, size)
                self._checked.add(key)
            return dict(self._array_places(offset, size))
        except Exception as error:  # NumPy's and zipfile's readers raise whatever their parts raise
            text = f"{self.path}: damaged arrays of {name!r} ({error}); remove it and make it again"
            raise InputError(" ".join(text.split())) from None

    def _check_arrays(self, offset: int, size: int) -> None:
        with self.path.open("rb") as handle, zipfile.ZipFile(_Window(handle, offset, size)) as archive:
            parts = archive.infolist()
            if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
                raise ValueError("they are larger than the member")
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {bad} is wrong")

    def _array_places(self, offset: int, size: int) -> Iterator[tuple[str, Rows]]:
        with self.path.open("rb") as handle, zipfile.ZipFile(_Window(handle, offset, size)) as archive:
            for info in archive.infolist():
                handle.seek(offset + info.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", handle.read(4))
                handle.seek(name_length + extra_length, os.SEEK_CUR)
                version = np.lib.format.read_magic(handle)
                if version != (1, 0) or info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename} is stored in another form")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
                start = handle.tell()
                rows = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if fortran or dtype.hasobject or len(shape) == 0 or start + rows > offset + size:
                    raise ValueError(f"{info.filename} does not hold the array that it names")
                yield info.filename.removesuffix(".npy"), Rows(self.path, start, dtype, shape)


class _Window(io.RawIOBase):
    """A read-only window of an open file, for `zipfile`."""

    def __init__(self, handle: io.BufferedReader, offset: int, size: int) -> None:
        self._handle, self._offset, self._size, self._at = handle, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        self._at = at + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        self._handle.seek(self._offset + self._at)
        data = self._handle.read(left if count < 0 else min(count, left))
        self._at += len(data)
        return data
