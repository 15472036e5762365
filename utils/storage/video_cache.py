"""A tar of arrays with one sample a video, made once, video by video, and gone on with after a stop.

with fill_cache(path, sources, settings) as cache:
    for name in cache.missing:
        with cache.sample(name) as sample:
            sample.append({"scores": ...})
            sample.json["n_frames"] = ...
store = TarStore(path)
"""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from utils.distributed import barrier, per_rank, rank, world_size
from utils.misc import InputError
from utils.storage.files import lock, remove_parts, write_json
from utils.storage.tars import ArrayWriter, Sample, TarStore, whole_file, write_tar

META = "sample.json"


class BadVideo(InputError):
    """A video that cannot be used, in a run that leaves such videos out (`--skip_bad`)."""


class VideoSample:
    """One video's sample while it is written: rows of its arrays are appended, its `json` is filled."""

    def __init__(self, folder: Path) -> None:
        self.json: dict = {}
        self._arrays = ArrayWriter(folder)
        self.append, self.finish, self.close = self._arrays.append, self._arrays.finish, self._arrays.close


class VideoCache:
    """The videos that this process has to add to a tar: their names are `missing`."""

    def __init__(self, work: Path, made_from: Mapping[str, dict], missing: Sequence[str]) -> None:
        self._work, self._made_from, self.missing = work, made_from, missing

    @contextlib.contextmanager
    def sample(self, name: str) -> Iterator[VideoSample]:
        """Write a video's sample, which is kept once the block has ended. Where the block raises BadVideo, the sample
        has no arrays, and its json says why (`bad`)."""
        folder = self._work / folder_name(name)
        sample = VideoSample(folder)
        try:
            yield sample
            sample.finish()
        except BadVideo as error:
            sample.close()
            sample = VideoSample(folder)
            sample.json["bad"] = str(error)
        finally:
            sample.close()
        write_json(folder / META, {**sample.json, "name": name, "made_from": self._made_from[name]})


@contextlib.contextmanager
def fill_cache(
    path: Path, sources: Mapping[str, list[int]], settings: dict, skip_bad: bool = False
) -> Iterator[VideoCache]:
    """Bring the tar `path` up to date: the block makes the samples that are missing in it, or have changed.

    A finished sample is kept at once beside the tar, so a killed run goes on from there. Several processes share
    the missing videos, and the first merges them when all have ended the block.

    Args:
        sources: name -> what identifies the video's file, e.g. number of files and bytes; stored with each sample.
        settings: what else the samples depend on; stored likewise.
        skip_bad: take samples of videos that could not be used for made.

    Raises:
        InputError: another run is writing the same tar.
    """
    made_from = {name: {"source": source, "settings": settings} for name, source in sources.items()}
    work = path.with_name(f"{path.stem}.parts")
    if per_rank(_is_complete(path, made_from, skip_bad))[0]:
        _remove_left_over(work)
        yield VideoCache(work, made_from, ())
        return
    with lock(work / f"process-{rank()}", "run"):
        if rank() == 0:
            remove_parts(work)
            remove_parts(path.parent)
        kept = _fitting(path, made_from, skip_bad)  # another run may have made it in the meantime
        missing = [name for name in made_from if name not in kept and not _is_done(work, name, made_from, skip_bad)]
        barrier()  # all have seen the same videos done
        yield VideoCache(work, made_from, missing[rank() :: world_size()])
        barrier()
        if rank() == 0:
            _say_why(path, settings)
            write_tar(path, (_stored(kept[n], n) if n in kept else _finished(work, n) for n in made_from))
            shutil.rmtree(work)
        barrier()


def folder_name(name: str) -> str:
    """The folder of a video's finished sample; a name may be longer than a folder's can be."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _remove_left_over(work: Path) -> None:
    """Remove what a run that was killed at its very end has left, unless another run is at work there."""
    if rank() == 0 and work.is_dir():
        with contextlib.suppress(InputError), lock(work / "process-0", "run"):
            shutil.rmtree(work)


def _fitting(path: Path, made_from: Mapping[str, dict], skip_bad: bool) -> dict[str, TarStore]:
    """The tar as it is, for each video whose sample there can stay."""
    try:
        store = TarStore(path)
    except InputError:
        return {}
    return {name: store for name in store.names if _fits(store.json(name), made_from.get(name), skip_bad)}


def _say_why(path: Path, settings: dict) -> None:
    """Say why a tar is made again: it cannot be read, or is of other settings."""
    if not path.is_file():
        return
    try:
        store = TarStore(path)
        before = store.json(store.names[0])["made_from"]["settings"]
        changed = [f"{n} {before.get(n)}, now {value}" for n, value in settings.items() if before.get(n) != value]
        if changed:
            print(f"{path}: was made with other settings ({'; '.join(changed)}), so it was made again", file=sys.stderr)
    except InputError as error:
        print(f"{error}: this has been done", file=sys.stderr)
    except (KeyError, IndexError, AttributeError):
        return


def _fits(meta: dict, made_from: dict | None, skip_bad: bool) -> bool:
    return meta.get("made_from") == made_from is not None and (skip_bad or "bad" not in meta)


def _is_complete(path: Path, made_from: Mapping[str, dict], skip_bad: bool) -> bool:
    kept = _fitting(path, made_from, skip_bad)
    return list(kept) == list(made_from) and next(iter(kept.values())).names == list(made_from)


def _is_done(work: Path, name: str, made_from: Mapping[str, dict], skip_bad: bool) -> bool:
    try:
        return _fits(json.loads((work / folder_name(name) / META).read_text()), made_from[name], skip_bad)
    except (OSError, ValueError, AttributeError):
        return False


def _finished(work: Path, name: str) -> Sample:
    """A finished sample as `write_tar` takes it."""
    folder = work / folder_name(name)
    arrays = {path.name: whole_file(path) for path in sorted(folder.glob("*.npy"))}
    return name, json.loads((folder / META).read_text()), arrays


def _stored(store: TarStore, name: str) -> Sample:
    """A sample of a former tar as `write_tar` takes it."""
    return name, store.json(name), store.members(name)
