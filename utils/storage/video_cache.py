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
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.distributed import barrier, per_rank, rank, world_size
from utils.misc import InputError
from utils.storage.files import lock, naming, sync, write_json
from utils.storage.tars import Sample, TarStore, whole_file, write_tar

META = "sample.json"


class BadVideo(InputError):
    """A video that cannot be used, in a run that leaves such videos out (`--skip_bad`)."""


class VideoSample:
    """A video's sample while it is written: its `json`, and arrays of unknown length in `folder/<column>.npy`.

    Rows are appended block by block; all of a column share dtype and shape. What the folder held before is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.json: dict = {}
        self._folder = folder
        self._n_rows: Counter[str] = Counter()  # written so far, by column
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows, an array a column."""
        for column, rows in columns.items():
            path, mode = self._folder / f"{column}.npy", "r+b" if column in self._n_rows else "wb"
            self._n_rows[column] += len(rows)
            header = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False}
            header["shape"] = (self._n_rows[column], *rows.shape[1:])
            with naming(path), path.open(mode) as file:
                np.lib.format.write_array_header_1_0(file, header)  # NumPy leaves room in it for the number to grow
                file.seek(0, io.SEEK_END)
                file.write(rows.tobytes())

    def finish(self) -> None:
        """Flush the arrays to the disk."""
        for path in self._folder.glob("*.npy"):
            with naming(path):
                sync(path)


class VideoCache:
    """A tar of arrays that is being made: `missing` are the videos whose samples this process has to add."""

    def __init__(self, path: Path, sources: Mapping[str, list[int]], settings: dict, skip_bad: bool) -> None:
        self.path, self.work = path, path.with_name(f"{path.stem}.parts")
        self.made_from = {name: {"source": source, "settings": settings} for name, source in sources.items()}
        self.skip_bad = skip_bad
        self.missing: Sequence[str] = ()

    @contextlib.contextmanager
    def sample(self, name: str) -> Iterator[VideoSample]:
        """Write a video's sample, which is kept once the block has ended. Where the block raises BadVideo, the sample
        has no arrays, and its json says why (`bad`)."""
        folder = self.work / folder_name(name)
        sample = VideoSample(folder)
        try:
            yield sample
            sample.finish()
        except BadVideo as error:
            sample = VideoSample(folder)
            sample.json["bad"] = str(error)
        write_json(folder / META, {**sample.json, "name": name, "made_from": self.made_from[name]})

    def finished(self, name: str) -> bool:
        """Whether a video's sample has been made, of what it would be made from now."""
        try:
            return self._fits(json.loads((self.work / folder_name(name) / META).read_text()), name)
        except (OSError, ValueError, AttributeError):
            return False

    def stored(self) -> dict[str, TarStore]:
        """The tar as it is, by the videos whose samples in it can stay."""
        try:
            store = TarStore(self.path)
        except InputError:
            return {}
        return {name: store for name in store.names if self._fits(store.json(name), name)}

    def is_complete(self) -> bool:
        """Whether the tar as it is holds all samples, in order, and no other."""
        names, stored = list(self.made_from), self.stored()
        return list(stored) == names and all(store.names == names for store in stored.values())

    def write(self, stored: Mapping[str, TarStore]) -> None:
        """Write the tar of samples that are `stored` in the former one, and of finished ones."""
        write_tar(self.path, (self._sample_of(name, stored.get(name)) for name in self.made_from))

    def _sample_of(self, name: str, store: TarStore | None) -> Sample:
        if store:
            return name, store.json(name), store.members(name)
        folder = self.work / folder_name(name)
        arrays = {path.name: whole_file(path) for path in sorted(folder.glob("*.npy"))}
        return name, json.loads((folder / META).read_text()), arrays

    def _fits(self, meta: dict, name: str) -> bool:
        made_from = self.made_from.get(name)
        return meta.get("made_from") == made_from is not None and (self.skip_bad or "bad" not in meta)


def folder_name(name: str) -> str:
    """The name of what is kept of a video while it is worked on; a video's name may be longer than a file's can be."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


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
    cache = VideoCache(path, sources, settings, skip_bad)
    if per_rank(cache.is_complete())[0]:
        _remove_left_over(cache.work)
        yield cache
        return
    with lock(cache.work / f"process-{rank()}", "run"):
        stored = cache.stored()  # another run may have made it in the meantime
        missing = [name for name in cache.made_from if name not in stored and not cache.finished(name)]
        barrier()  # all have seen the same videos finished
        cache.missing = missing[rank() :: world_size()]
        yield cache
        barrier()
        if rank() == 0:
            _say_why(path, settings)
            cache.write(stored)
            shutil.rmtree(cache.work)
        barrier()


def _remove_left_over(work: Path) -> None:
    """Remove what a run that was killed at its very end has left, unless another run is at work there."""
    if rank() == 0 and work.is_dir():
        with contextlib.suppress(InputError), lock(work / "process-0", "run"):
            shutil.rmtree(work)


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
