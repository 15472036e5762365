"""A tar of arrays with one sample a video, made once, video by video, and gone on with after a stop.

with fill_cache(path, sources, settings) as cache:
    for name in cache.missing:
        with cache.sample(name) as sample:
            sample.append({"scores": ...})
            sample.json["n_frames"] = ...
store = TarStore(path)
"""

import contextlib
import io
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.distributed import barrier, per_rank, rank, world_size
from utils.misc import InputError, tell
from utils.storage.files import lock, naming, sync, unseal, write_sealed
from utils.storage.tars import Member, Sample, read_samples, safe_key, verify_sample, whole_file, write_tar

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
        """Flush the arrays to the disk, and leave the json with their sizes and checksums, as in a tar."""
        members = {}
        for path in sorted(self._folder.glob("*.npy")):
            with naming(path):
                sync(path)
            members[path.name] = whole_file(path)[2:]
        write_sealed(self._folder / META, {**self.json, "members": members})


class VideoCache:
    """A tar of arrays that is being made: `missing` are the videos whose samples this process has to add.

    What `look` found last: `samples` that can stay, the listed videos' first, in the tar or in folders beside it that
    wait to be merged; `in_tar`, the names of those in the tar, in its order.
    """

    def __init__(
        self, path: Path, sources: Mapping[str, list[int]], settings: dict, skip_bad: bool, keep: bool
    ) -> None:
        self.path, self.work = path, path.with_name(f"{path.stem}.parts")
        self.made_from = {name: {"source": source, "settings": settings} for name, source in sources.items()}
        self.settings, self.skip_bad, self.keep = settings, skip_bad, keep
        self.missing: Sequence[str] = ()
        self.look()

    @contextlib.contextmanager
    def sample(self, name: str) -> Iterator[VideoSample]:
        """Write a video's sample, which is kept once the block has ended. Where the block raises BadVideo, the sample
        has no arrays, and its json says why (`bad`)."""
        folder = self.work / safe_key(name)
        sample = VideoSample(folder)
        try:
            yield sample
        except BadVideo as error:
            sample = VideoSample(folder)
            sample.json["bad"] = str(error)
        sample.json |= {"name": name, "made_from": self.made_from[name]}
        sample.finish()

    def look(self) -> None:
        """Find out what has been made."""
        self._tar: dict[str, Sample] = {}
        self._fault: InputError | None = None  # of the tar
        try:
            self._tar = {meta["name"]: (meta, members) for meta, members in read_samples(self.path)}
        except InputError as error:
            self._fault = error
        made = {name: sample for name, sample in self._tar.items() if self._fits(sample[0])}
        self.in_tar = list(made)
        for folder in sorted(self.work.iterdir()) if self.work.is_dir() else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                meta = unseal((folder / META).read_bytes())
                members = {name: Member(folder / name, 0, *m) for name, m in meta.pop("members").items()}
                if self._fits(meta):
                    made.setdefault(meta["name"], (meta, members))
        listed = {name: made.pop(name) for name in self.made_from if name in made}
        self.samples = listed | made

    def _fits(self, meta: dict) -> bool:
        listed, made_from = self.made_from.get(meta["name"]), meta.get("made_from")
        if "bad" in meta and not (listed and self.skip_bad):
            return False
        if listed is None:
            return self.keep and isinstance(made_from, dict) and made_from.get("settings") == self.settings
        return made_from == listed

    def is_complete(self) -> bool:
        """Whether the tar holds all listed videos; without `keep` in order, and no other."""
        if self.keep:
            return {*self.in_tar} >= self.made_from.keys()
        return self.in_tar == [*self._tar] == [*self.made_from]

    def say_why(self) -> None:
        """Say why the tar is made again: it cannot be read, or is of other settings."""
        if self._fault and self.path.is_file():
            tell(f"{self._fault}: this has been done")
        for meta, _ in [*self._tar.values()][:1]:
            before = meta.get("made_from", {}).get("settings", {})
            changed = [f"{n} {before.get(n)}, now {new}" for n, new in self.settings.items() if before.get(n) != new]
            if changed:
                tell(f"{self.path}: was made with other settings ({'; '.join(changed)}), so it was made again")

    def write(self) -> None:
        """Write the tar of `samples`, which have to hold all listed videos; damaged ones of others are left out."""
        assert self.samples.keys() >= self.made_from.keys(), "the block has not made all samples"

        def intact() -> Iterator[Sample]:
            for name, sample in self.samples.items():
                try:
                    verify_sample(sample)
                except InputError:
                    if name in self.made_from:
                        raise
                    continue
                yield sample

        write_tar(self.path, intact())


@contextlib.contextmanager
def fill_cache(
    path: Path, sources: Mapping[str, list[int]], settings: dict, skip_bad: bool = False, keep: bool = False
) -> Iterator[VideoCache]:
    """Bring the tar `path` up to date: the block makes the samples that are missing in it, or have changed.

    A finished sample is kept at once beside the tar, so a killed run goes on from there. Several processes share
    the missing videos, and the first merges them when all have ended the block.

    Args:
        sources: name -> what identifies the video's file: number of files, bytes, a checksum, and whatever else its
            sample depends on; stored with each sample.
        settings: what all samples depend on; stored likewise.
        skip_bad: take samples of videos that could not be used for made.
        keep: samples of videos that are not in `sources` stay, in whatever order, so readers have to pick theirs: of
            samples that take hours.

    Raises:
        InputError: another run is writing the same tar.
    """
    cache = VideoCache(path, sources, settings, skip_bad, keep)
    if per_rank(cache.is_complete())[0]:
        _remove_left_over(cache)
        yield cache
        return
    with lock(cache.work / f"process.{rank()}", "run"):  # no video's key has a dot
        cache.look()  # another run may have made some in the meantime
        missing = [name for name in cache.made_from if name not in cache.samples]
        barrier()  # all have seen the same videos finished
        cache.missing = missing[rank() :: world_size()]
        yield cache
        barrier()
        if rank() == 0:
            cache.say_why()
            cache.look()
            cache.write()
            shutil.rmtree(cache.work, ignore_errors=True)  # on NFS the folders of held locks stay, empty
        barrier()


def _remove_left_over(cache: VideoCache) -> None:
    """Remove what a run that was killed at its very end has left, unless another run is at work there, or other videos'
    samples wait there."""
    if rank() == 0 and cache.work.is_dir():
        with contextlib.suppress(InputError), lock(cache.work / "process-0", "run"):
            cache.look()
            if len(cache.in_tar) == len(cache.samples):
                shutil.rmtree(cache.work, ignore_errors=True)
