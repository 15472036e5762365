"""Files that appear whole or not at all, and readers that name the file when something is wrong with it."""

import argparse
import contextlib
import errno
import fcntl
import glob
import json
import math
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from utils.misc import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: str | Path, part: Path | None = None) -> Iterator[None]:
    """A block that writes `path`: a full disk, or a folder that may not be written, is an OSError that names it.

    The operating system's own error of a write names no file, and that of a temporary name, `part`, the wrong one.
    It is no InputError, so that nobody takes it for a fault of what is being read.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL or (part is not None and error.filename == str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix); when the block ends well it becomes `path`.

    The data and then the name are flushed, so that after a kill, a full disk or a power loss `path` is
    the old file or the new one, never half. When the block raises, the temporary file is removed. OSError,
    naming `path`, when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(path.parent, glob.escape(path.stem))
    part = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        with naming(path, part):
            yield part
            sync(part)
            part.replace(path)
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path, stem: str = "*") -> None:
    """Remove the temporary files that killed runs left in `folder` (their writer is gone), of `stem`'s files or all."""
    for part in folder.glob(f".{stem}.*.part*"):
        owner = part.name.rsplit(".part", 1)[0].rsplit(".", 1)[-1].split("-")[0]
        if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: str | Path, what: str) -> Iterator[None]:
    """Hold `folder` for this process; a second run that wants it stops with one line (InputError).

    The operating system frees the lock when the process ends, however it ends.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another {what} is writing here; wait until it has ended") from None
        yield


def read_text(path: str | Path) -> str:
    """A text file; InputError where it is missing or not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@contextlib.contextmanager
def parsing(path: str | Path, what: str) -> Iterator[None]:
    """A block that takes a file's content apart: whatever that raises is an InputError that `path` is not `what`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: not {what} ({reason})") from None


def not_a_number(error: ValueError) -> str:
    """What `float` says of a text, as the end of an error line."""
    return f"{str(error).partition(': ')[2][:80]} is not a number"


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def plain(value: object) -> object:
    """`value` as JSON holds it: NumPy numbers as Python's, undefined metrics (NaN) as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | type(None)) else str(value)


def shorten(numbers: np.ndarray) -> np.ndarray:
    """The same numbers as float64 of the fewest digits: float32 0.1 as 0.1, not as 0.10000000149011612."""
    return numbers.astype(str).astype(np.float64)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, atomically. NaN is refused (ValueError): an undefined metric is None."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str = "JSON file", pairs_hook: Callable[[list], object] | None = None) -> object:
    """Read JSON; InputError when the file is missing, damaged, or holds what `pairs_hook` refuses by a ValueError."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such {what}")
    try:
        return json.loads(read_text(path), object_pairs_hook=pairs_hook)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable {what} ({error})") from None


def seal(value: dict) -> bytes:
    """JSON of a mapping whose last item, `crc32`, is the checksum of all before: a flipped bit in a number is still a
    number."""
    text = json.dumps(value).encode()
    return text[:-1] + b', "crc32": %d}' % zlib.crc32(text)


def unseal(data: bytes) -> dict:
    """What `seal` was given; ValueError when it is not that any more."""
    text, _, checksum = data.rpartition(b', "crc32": ')
    text += b"}"
    if checksum != b"%d}" % zlib.crc32(text):
        raise ValueError("its checksum is wrong, or it is of a former form")
    return json.loads(text)


def write_sealed(path: str | Path, value: dict) -> None:
    """Write a mapping with its checksum (`seal`), atomically."""
    with atomic(path) as part:
        part.write_bytes(seal(value))


def save_torch(path: str | Path, value: object) -> None:
    """`torch.save`, atomically."""
    import torch

    with atomic(path) as part, part.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's writer covers what the disk said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_torch(path: str | Path, what: str = "checkpoint") -> object:
    """`torch.load` on the CPU, weights only; InputError when the file is missing, damaged or holds more.

    The archive's checksums are verified first: torch itself does not look at them, and a flipped bit in
    a weight would pass unseen. What would take more memory than the file has bytes (compressed or overlapping parts,
    tensors larger than what is stored of them) is refused.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: " + (f"a folder; name the {what} in it" if path.is_dir() else f"no such {what}"))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
                if any(part.compress_type for part in parts) or sum(p.file_size for p in parts) > path.stat().st_size:
                    raise ValueError("damaged: its parts are larger than the file")
                if (bad := archive.testzip()) is not None:
                    raise ValueError(f"damaged: checksum of {bad} is wrong")
        with torch.serialization.safe_globals([argparse.Namespace]):  # in checkpoints of official DETR's training
            content = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_inflated(content)
        return content
    except Exception as error:
        raise InputError(f"{path}: not a readable {what} ({_reason(path, error)})") from None


def _reason(path: Path, error: Exception) -> str:
    """Why `torch.load` could not read a file: what the file holds and what to do, in one line."""
    if match := re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", str(error)):
        return (
            f"it holds a Python object, {match[1]}; only tensors, numbers, text and containers of them are read: save "
            "the state dict alone, with the program that made it"
        )
    if isinstance(error, ValueError):
        return str(error)
    with path.open("rb") as file:
        start = file.read(12)
    if not start:
        return "it is empty"
    return f"it begins with {start!r}: not written by torch.save, or cut off or damaged; copy it again"


def _refuse_inflated(value: object) -> None:
    """ValueError when a tensor anywhere in `value` claims more elements than are stored of it."""
    import torch

    if torch.is_tensor(value):
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("it holds a tensor that is larger than what is stored of it")
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_inflated(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_inflated(item)


def load_checkpoint(path: str | Path, what: str, needed: Iterable[str] = (), made_by: str = "") -> dict:
    """A checkpoint of this project, `{"model", "config", "epoch"}`.

    InputError when it is something else, or its config lacks something `needed` ("head.nhead"), which `made_by` writes.
    """
    checkpoint = load_torch(path, f"{what} checkpoint")
    kinds = {"model": dict, "config": dict, "epoch": int}
    if not (
        isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(name), kind) for name, kind in kinds.items())
    ):
        raise InputError(
            f"{path}: not a {what} checkpoint of this project (needs model, config and epoch); "
            "python -m scripts.import_published makes one of the public code's weights"
        )
    for name in needed:
        value = checkpoint["config"]
        for key in name.split("."):
            value = value.get(key, checkpoint) if isinstance(value, dict) else checkpoint
        if value is checkpoint:  # no value of its own config
            text = f"its config has no {name}: no {what} checkpoint, or a former one"
            raise InputError(f"{path}: {text}; make it with {made_by}")
    return checkpoint


def epoch_path(folder: str | Path, epoch: int | None, what: str, made_by: str) -> Path:
    """`folder/epoch_<epoch>.pth`, the newest for None; InputError, naming what makes it, where it is missing."""
    folder = Path(folder)
    checkpoints = {int(p.stem[6:]): p for p in folder.glob("epoch_*.pth") if p.stem[6:].isdecimal()}
    if not checkpoints:
        raise InputError(f"{folder}: no {what} checkpoint here; make one with {made_by}")
    if epoch is None:
        epoch = max(checkpoints)
    if epoch not in checkpoints:
        existing = ", ".join(map(str, sorted(checkpoints)[-8:]))
        raise InputError(f"{folder}/epoch_{epoch}.pth: no such {what} checkpoint; there are epochs {existing}")
    return checkpoints[epoch]
