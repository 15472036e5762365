"""Clips out of shards behind URLs, read by WebDataset's streaming: data sets that no disk here holds.

    python train_detr.py --shards_path 'https://host/train/shard-{000000..000063}.tar' --clips_per_epoch 2000 ...

`pipe:` takes any command that writes a shard to its output, `pipe:aws s3 cp s3://bucket/shard-{000000..000063}.tar -`.
Shards are those of `datasets.make_shards`. Each process reads its share of them one after another, whole, in a thread.

Promised: the same clips in the same order for the same seed, epoch, shards and number of processes, whatever
`--workers`, so a resumed run repeats an uninterrupted one; no clip is decoded that is not used; damaged shards are
errors, as on disk. Not promised: that an epoch sees every video once (it is `clips_per_epoch` clips of shards in an
order of its own, which are read again where they do not suffice), a mix beyond neighbouring shards (`SHUFFLE` clips
are mixed), and a quick resume: what the epoch had read is read again, though not decoded.
"""

import copy
import itertools
import random
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial

from datasets.frame_batches import Ahead
from datasets.make_shards import REMEDY, frame_member
from datasets.use_shards import Clip, Clips, ShardVideo
from utils.distributed import rank, world_size
from utils.misc import InputError, checksum, rng
from utils.storage.files import unseal

SHUFFLE, START = 512, 64  # clips in the buffer that they are drawn from at random, and before the first is drawn


class StreamedClips(Clips):
    """Clips of shards behind URLs with braces (`{000000..000063}`); `len` is the number of clips an epoch, over all
    processes. See the module's text. Each video is given to `check`. InputError where `clips_per_epoch` is None."""

    in_order = True  # a clip's index is its position in the stream

    def __init__(
        self,
        urls: str,
        clips_per_epoch: int | None,
        check: Callable[[ShardVideo], None] = lambda video: None,
        **settings: object,
    ) -> None:
        from webdataset.shardlists import expand_urls

        if clips_per_epoch is None:
            raise InputError(f"{urls}: a stream does not say how many videos it holds; give --clips_per_epoch")
        super().__init__(**settings)
        self.check = check
        self.pattern, self.urls, self.clips_per_epoch = urls, expand_urls(urls), clips_per_epoch
        if len(self.urls) < world_size():
            raise InputError(f"{urls}: {len(self.urls)} shards cannot be shared by {world_size()} processes")

    def __len__(self) -> int:
        return self.clips_per_epoch

    def checksum(self) -> str:
        """A checksum of the shards' addresses, for a resumed run; what lies there is not known beforehand."""
        return checksum(*self.urls, str(self.clips_per_epoch))

    def most_people(self) -> int:
        """0: how many people a frame has is not known beforehand."""
        return 0

    def fetch(self, batches: list[list[tuple[int, int]]]) -> Iterator[list[Clip]]:
        """This process's clips of the batches (epoch, index), which follow one another; read ahead by a thread."""
        if batches:
            epoch, index = batches[0][0]
            clips = itertools.islice(self._clips(epoch), index // world_size(), None)
            with closing(Ahead(list(itertools.islice(clips, len(keys))) for keys in batches)) as ahead:
                yield from ahead

    def _clips(self, epoch: int) -> Iterator[Clip]:
        """The endless stream of this process's clips in an epoch."""
        from webdataset import WebDataset, split_by_node, split_by_worker

        for turn in itertools.count():
            urls = [self.urls[i] for i in rng(self.seed, epoch, turn).permutation(len(self.urls))]
            samples = WebDataset(
                urls, shardshuffle=False, nodesplitter=split_by_node, workersplitter=split_by_worker, seed=0
            )
            draw = random.Random(int(rng(self.seed, epoch, turn, rank()).integers(2**63)))
            clips = samples.compose(partial(self._cut, epoch, turn)).shuffle(SHUFFLE, initial=START, rng=draw)
            clip = None
            try:
                for clip in clips:
                    yield clip
            except (OSError, EOFError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"{self.pattern}: a shard cannot be read ({reason})") from None
            if clip is None:
                raise InputError(f"{self.pattern}: no video of process {rank()}'s shards has frames for clips")

    def _cut(self, epoch: int, turn: int, samples: Iterable[dict]) -> Iterator[Clip]:
        """Each video's clips, which hold no frames but their own."""
        for sample in samples:
            video = streamed_video(sample)
            self.check(video)
            for number in range(self.clips_per_video if len(self.candidates(video)) else 0):
                draw = rng(self.seed, epoch, turn, zlib.crc32(video.name.encode()), number)
                clip = self.clip(video, number, draw)
                frames = dict(zip(clip.frames.tolist(), video.read(clip.frames), strict=True))
                alone = copy.copy(video)
                alone.read = partial(map, frames.__getitem__)
                yield clip._replace(video=alone)


def streamed_video(sample: dict) -> ShardVideo:
    """A video as WebDataset gives it: the bytes of its json and of all its frames. InputError when it is damaged."""
    try:
        meta = unseal(sample["json"])
        checksums = [crc32 for _, crc32 in meta["members"].values()]
        jpegs = [sample[frame_member(i)] for i in range(len(checksums))]
        return ShardVideo(sample["__url__"], meta, checksums, partial(map, jpegs.__getitem__))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        where = f"{sample.get('__url__')}: sample {sample.get('__key__')!r}"
        raise InputError(f"{where} is damaged or no video of a shard ({error}); {REMEDY}") from None
