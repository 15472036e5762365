"""Files that appear whole or not at all, and readers that name the file when something is wrong with it."""

import contextlib
import fcntl
import json
import os
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.misc import InputError


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix); when the block ends well it becomes `path`.

    The data and then the name are flushed, so that after a kill, a full disk or a power loss `path` is
    the old file or the new one, never half. When the block raises, the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed runs left in `folder` (their writer is gone)."""
    for part in folder.glob(".*.part*"):
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
            raise InputError(f"{folder}: another {what} is writing here; wait for it or use another name") from None
        yield


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, atomically. NaN is refused (ValueError): an undefined figure is None."""
    text = json.dumps(value, indent=1, allow_nan=False)
    with atomic(path) as part:
        part.write_text(text + "\n")


def read_json(path: str | Path, what: str = "JSON file") -> object:
    """Read JSON; InputError when the file is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable {what} ({error})") from None


def save_torch(path: str | Path, value: object) -> None:
    """`torch.save`, atomically."""
    with atomic(path) as part:
        torch.save(value, part)


def load_torch(path: str | Path, what: str = "checkpoint") -> object:
    """`torch.load` on the CPU, weights only; InputError when the file is missing, damaged or holds more.

    The archive's checksums are verified first: torch itself does not look at them, and a flipped bit in
    a weight would pass unseen.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such {what}")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (bad := archive.testzip()) is not None:
                    raise InputError(f"{path}: damaged {what} (checksum of {bad} is wrong)")
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a readable {what} ({str(error).splitlines()[0][:120]})") from None


def load_checkpoint(path: str | Path, what: str) -> dict:
    """A checkpoint of this project, `{"model", "config", "epoch"}`; InputError when it is something else."""
    held = load_torch(path, f"{what} checkpoint")
    if not (isinstance(held, dict) and {"model", "config", "epoch"} <= held.keys()):
        raise InputError(f"{path}: not a {what} checkpoint of this project (needs model, config and epoch)")
    return held


def epoch_path(folder: str | Path, epoch: int | None, what: str, made_by: str) -> Path:
    """`folder/epoch_<epoch>.pth`, the newest for None; InputError, naming the script that makes it, where it is missing."""
    folder = Path(folder)
    held = sorted((int(p.stem[6:]), p) for p in folder.glob("epoch_*.pth") if p.stem[6:].isdecimal())
    if not held:
        raise InputError(f"{folder}: no {what} checkpoint here; make one with {made_by}")
    if epoch is None:
        return held[-1][1]
    path = folder / f"epoch_{epoch}.pth"
    if not path.is_file():
        there = ", ".join(str(n) for n, _ in held[-8:])
        raise InputError(f"{path}: no such {what} checkpoint; there are epochs {there}")
    return path
