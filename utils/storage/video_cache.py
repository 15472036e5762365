"""A tar with one entry for each video of a subset, made once, video by video, and gone on with after a stop."""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from utils.distributed import barrier, per_rank, rank, world_size
from utils.misc import InputError
from utils.storage.files import atomic, lock, remove_parts, write_json
from utils.storage.tars import Member, RowSpool, TarStore, write_tar

Entry = tuple[str, dict]


class BadVideo(InputError):
    """A video that cannot be used, in a run that leaves such videos out (`--skip_bad`)."""


def video_cache(
    path: Path,
    sources: dict[str, list[int]],
    make: Callable[[Sequence[str], Callable[[str], RowSpool]], Iterable[Entry]],
    settings: dict,
    what: str,
    skip_bad: bool = False,
) -> TarStore:
    """The tar `path` with an entry for each video; those that are missing in it, or have changed, are made.

    `sources` (name -> what identifies the video's file, e.g. number of files and bytes) and `settings` are stored
    with each entry. `make(names, spool_of)` goes through videos in order, appends each one's rows to
    `spool_of(name)` (asked for again, it begins anew) and yields (name, json) when it is whole; a json with
    `bad`, the reason, stands for a video that cannot be used, and counts as made for `skip_bad` alone. A finished video
    is kept at once beside the tar, so a killed run goes on from there. Several processes share the videos, and the
    first merges them. Raises InputError when another run is writing the same tar.
    """
    wanted = {name: {"source": source, "settings": settings} for name, source in sources.items()}
    work = path.with_name(f"{path.stem}.parts")
    if per_rank(_is_made(path, wanted, skip_bad))[0]:
        _clear(work)
    else:
        with lock(work / f"process-{rank()}", "run"):
            if rank() == 0:
                remove_parts(work)
                remove_parts(path.parent)
            held = _fitting(path, wanted, skip_bad)  # another run may have made it in the meantime
            todo = [n for n in wanted if n not in held and not _is_done(work, n, wanted[n], skip_bad)]
            barrier()  # all have seen the same videos done
            _make_parts(work, todo[rank() :: world_size()], wanted, make)
            barrier()
            if rank() == 0:
                _tell_changes(path, settings)
                write_tar(path, ((n, held[n].sample(n) if n in held else _part(work, n)) for n in wanted))
                shutil.rmtree(work)
            barrier()
    return TarStore(path, what)


def _clear(work: Path) -> None:
    """Remove what a run that was killed at its very end has left, unless another run is at work there."""
    if rank() == 0 and work.is_dir():
        with contextlib.suppress(InputError), lock(work / "process-0", "run"):
            shutil.rmtree(work)


def _fitting(path: Path, wanted: dict[str, dict], skip_bad: bool) -> dict[str, TarStore]:
    """The tar as it is, for each video whose entry there can stay."""
    try:
        store = TarStore(path)
    except InputError:
        return {}
    return {name: store for name in store.names if _fits(store.json(name), wanted.get(name), skip_bad)}


def _tell_changes(path: Path, settings: dict) -> None:
    """Say in which settings a tar that is about to be made again differs."""
    with contextlib.suppress(InputError, KeyError, IndexError, AttributeError):
        store = TarStore(path)
        then = store.json(store.names[0])["made_from"]["settings"]
        changed = [f"{n} {then.get(n)}, now {now}" for n, now in settings.items() if then.get(n) != now]
        if changed:
            print(f"{path}: was made with other settings ({'; '.join(changed)}), so it was made again", file=sys.stderr)


def _fits(meta: dict, made_from: dict | None, skip_bad: bool) -> bool:
    return meta.get("made_from") == made_from is not None and (skip_bad or "bad" not in meta)


def _is_made(path: Path, wanted: dict[str, dict], skip_bad: bool) -> bool:
    held = _fitting(path, wanted, skip_bad)
    return list(held) == list(wanted) and next(iter(held.values())).names == list(wanted)


def _files(work: Path, name: str) -> tuple[Path, Path]:
    key = hashlib.sha256(name.encode()).hexdigest()[:32]  # a name may be longer than a file's can be
    return work / key / "rows.npz", work / key / "rows.json"  # a folder each: `atomic` looks through what is beside


def _part(work: Path, name: str) -> dict[str, dict | Path | Member]:
    npz, meta = _files(work, name)
    return {"json": json.loads(meta.read_text()), "npz": npz}


def _is_done(work: Path, name: str, made_from: dict, skip_bad: bool) -> bool:
    npz, meta = _files(work, name)
    try:
        return npz.is_file() and _fits(json.loads(meta.read_text()), made_from, skip_bad)
    except (OSError, ValueError, AttributeError):
        return False


def _make_parts(work: Path, names: Sequence[str], wanted: dict[str, dict], make: Callable) -> None:
    """These videos, each written whole: arrays first, then its json."""
    spool: RowSpool | None = None

    def spool_of(_: str) -> RowSpool:
        nonlocal spool
        if spool is not None:
            spool.close()
        spool = RowSpool(work / f"process-{rank()}" / "rows")
        return spool

    try:
        for name, meta in make(names, spool_of) if names else ():
            npz, json_path = _files(work, name)
            with atomic(npz) as part:
                spool.write(part)
            write_json(json_path, {**meta, "name": name, "made_from": wanted[name]})
    finally:
        if spool is not None:
            spool.close()
