"""A tar with one entry for each video of a subset, made once, video by video, and gone on with after a stop."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from utils.distributed import barrier, rank, world_size
from utils.files import atomic, lock, remove_parts, write_json
from utils.misc import InputError
from utils.tar_store import RowSpool, TarStore, safe_key, write_tar

Entry = tuple[str, dict]


def video_cache(
    path: Path,
    sources: dict[str, list[int]],
    make: Callable[[Sequence[str], Callable[[str], RowSpool]], Iterable[Entry]],
    settings: dict,
    what: str,
) -> TarStore:
    """The tar `path` with an entry for each video, made where it is missing or its videos have changed.

    `sources` (name -> what identifies the video's file, e.g. number of files and bytes) and `settings` are stored
    with each entry. `make(names, spool_of)` goes through videos in order, appends each one's rows to
    `spool_of(name)` and yields (name, json) when it is whole. A finished video is kept at once beside the tar,
    so a killed run goes on from there. Several processes share the videos, and the first merges them.
    Raises InputError when another process of another run is writing the same tar.
    """
    wanted = {name: {"source": source, "settings": settings} for name, source in sources.items()}
    if not _is_made(path, wanted, what):
        work = path.with_name(f"{path.stem}.parts")
        _make_parts(work, wanted, make)
        barrier()
        if rank() == 0:
            write_tar(path, ((name, _part(work, name)) for name in wanted))
            shutil.rmtree(work)
        barrier()
    return TarStore(path, what)


def _is_made(path: Path, wanted: dict[str, dict], what: str) -> bool:
    if not path.is_file():
        return False
    try:
        store = TarStore(path, what)
    except InputError:
        return False
    return store.names == list(wanted) and all(store.json(name)["made_from"] == wanted[name] for name in wanted)


def _files(work: Path, name: str) -> tuple[Path, Path]:
    key = safe_key(name)
    return work / f"{key}.npz", work / f"{key}.json"


def _part(work: Path, name: str) -> dict[str, dict | Path]:
    npz, meta = _files(work, name)
    return {"json": json.loads(meta.read_text()), "npz": npz}


def _is_done(work: Path, name: str, made_from: dict) -> bool:
    npz, meta = _files(work, name)
    try:
        return npz.is_file() and json.loads(meta.read_text())["made_from"] == made_from
    except (OSError, ValueError, KeyError):
        return False


def _make_parts(work: Path, wanted: dict[str, dict], make: Callable) -> None:
    """This process's share of the videos that are not done yet, each written whole: arrays first, then its json."""
    with lock(work / f"process-{rank()}", "run"):
        if rank() == 0:
            remove_parts(work)
        todo = [name for name, made_from in wanted.items() if not _is_done(work, name, made_from)]
        barrier()  # all have seen the same videos done
        mine = todo[rank() :: world_size()]
        spools: dict[str, RowSpool] = {}

        def spool_of(name: str) -> RowSpool:
            spools[name] = RowSpool(work / f"process-{rank()}" / "rows")
            return spools[name]

        for name, meta in make(mine, spool_of) if mine else ():
            npz, json_path = _files(work, name)
            with atomic(npz) as part:
                spools.pop(name).write(part)
            write_json(json_path, {**meta, "name": name, "made_from": wanted[name]})
