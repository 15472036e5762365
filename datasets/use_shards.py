"""Clips out of shards: a map-style data set, the order of an epoch, batches with padding masks.

Augmentations and clip starts are a pure function of (seed, epoch, index), so neither the number of workers nor a
resumed run changes what is seen.
"""

import math
import os
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets import MAX_PIXELS
from datasets.annotations import box_columns
from datasets.dataset import decode_image
from datasets.make_shards import REMEDY, frame_member, read_shards
from datasets.transforms import GREY, erase_in_clip, jitter_matrix, normalise_boxes, resize_to, resized_shape
from utils.box_ops import Tube, box_cxcywh_to_xyxy
from utils.misc import InputError, checksum, rng

AHEAD = 3  # batches that each worker may be ahead
MAX_FREE = 4  # images of batches whose memory is kept for the next ones
PERSON = 1  # the detector's label of a person, as in COCO
_RGB = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)  # OpenCV 4.11 and newer decode to RGB
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


class ShardVideo:
    """A video of a shard: its n boxes sorted by frame, one of each person and frame, and where its JPEGs are.

    Attributes:
        frames, persons: int64 (n,); boxes: float32 (n, 4), cxcywh, normalised.
        actions: int64 (n,), the first action of that person and frame, -1 for none; float32 (n, C), 1 for each action,
            of data with several at once.
        key_frames: int64 (k,), the frames in which everybody has a box; None: all from the first to the last box.
        made_from: what the sample depends on.
        read: a function of frames that yields their JPEGs.

    Raises:
        ValueError, KeyError, TypeError: the sample's json does not fit.
    """

    def __init__(
        self, where: object, meta: dict, checksums: Sequence[int], read: Callable[[Sequence[int]], Iterator[bytes]]
    ) -> None:
        self.where, self.name, self.checksums, self.read = where, meta["name"], checksums, read
        self.width, self.height = int(meta["width"]), int(meta["height"])
        self.made_from = dict(meta["made_from"])
        self.stored = (int(meta["stored"][1]), int(meta["stored"][0]))  # height, width
        if not (min(self.stored) > 0 and self.stored[0] * self.stored[1] <= MAX_PIXELS):
            raise ValueError("its frames have an impossible size")
        if len(checksums) != meta["n_frames"] or not meta["n_frames"]:
            raise ValueError("its numbers of frames differ")
        tubes = [Tube(t["frames"], t["boxes"], t["label"], person_id=t["person_id"]) for t in meta["tubes"]]
        frames, boxes, persons, actions = box_columns(tubes)
        keys, first, inverse = np.unique(  # sorted by frame, then person
            [frames, persons], axis=1, return_index=True, return_inverse=True
        )
        (self.frames, self.persons), self.actions = keys, actions[first]
        if "n_actions" in self.made_from:
            self.actions = np.zeros((len(first), self.made_from["n_actions"]), np.float32)
            self.actions[inverse.reshape(-1)[actions >= 0], actions[actions >= 0]] = 1
        inside = np.clip(boxes[first], 0, (self.width, self.height, self.width, self.height))
        self.boxes = normalise_boxes(inside, self.width, self.height)
        self.key_frames = np.array(meta["key_frames"], np.int64) if "key_frames" in meta else None

    def __len__(self) -> int:
        return len(self.checksums)

    def rows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the boxes in these frames, one frame after another, and how many each has (T,)."""
        start, stop = np.searchsorted(self.frames, frames), np.searchsorted(self.frames, frames, "right")
        return np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)]), stop - start


def _read_frames(path: Path, offsets: np.ndarray, sizes: np.ndarray, frames: Sequence[int]) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        for frame in frames:
            yield os.pread(file.fileno(), int(sizes[frame]), int(offsets[frame]))


def choose_frames(
    candidates: np.ndarray,
    n_frames: int,
    sampling_rate: int,
    draw: np.random.Generator,
    share: float | None = None,
) -> np.ndarray:
    """The frames (T,) of a clip out of `candidates` (n,), fewer than `n_frames` where there is no room.

    It starts at random, or after this share of the room that there is.
    """
    span = min((n_frames - 1) * sampling_rate + 1, len(candidates))
    room = len(candidates) - span
    start = draw.integers(room + 1) if share is None else int(room * share)
    return candidates[start : start + span : sampling_rate]


def somebody_twice(candidates: np.ndarray, persons: np.ndarray, sampling_rate: int) -> bool:
    """Whether the clips of `choose_frames` have several frames, and one of `persons` (n,), those of a video's boxes, is
    there twice."""
    return len(candidates) > sampling_rate and len(np.unique(persons)) < len(persons)


class Clip(NamedTuple):
    """Frames of a video, int64 (T,), and the generator that its augmentations are drawn from."""

    video: ShardVideo
    frames: np.ndarray
    draw: np.random.Generator


@dataclass(eq=False)
class Clips:
    """What clips are. In training they start at random and are augmented, otherwise they are spread evenly.

    Args:
        n_frames: frames of a clip; fewer where the video is shorter.
        sampling_rate: step between them, counted in key frames where the video is annotated in these alone.
        image_size: longer side in pixels; 0: as stored.
        clips_per_video: clips of each video an epoch.
        jitter: strength of the changes of brightness, contrast, saturation and hue, which a clip's frames share.
        pad_square: the padding up to a square counts as image: it has no mask, and boxes are divided by the square.
        whole_videos: take clips from anywhere. Else they lie between the first and the last annotated frame, or consist
            of key frames: people elsewhere have no boxes.
        mirror: mirror half of the clips, or with `mirror_frames` half of their frames.
        erase_people: paint over somebody who overlaps nobody in half of the frames that show more people.
    """

    n_frames: int = 1
    sampling_rate: int = 1
    image_size: int = 0
    train: bool = True
    seed: int = 42
    clips_per_video: int = 1
    jitter: Sequence[float] = (0.2, 0.2, 0.2, 0.1)
    pad_square: bool = False
    whole_videos: bool = False
    mirror: bool = True
    mirror_frames: bool = False
    erase_people: bool = False
    in_order: ClassVar[bool] = False  # whether the clips of an epoch come in the order of their indices

    def __post_init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=MAX_FREE)

    def candidates(self, video: ShardVideo) -> np.ndarray:
        """The frames that a video's clips are chosen from; none where all of its key frames are excluded."""
        if not self.whole_videos and video.key_frames is not None:
            return video.key_frames
        annotated = len(video.frames) and not self.whole_videos
        return np.arange(video.frames[0], video.frames[-1] + 1) if annotated else np.arange(len(video))

    def anybody_twice(self) -> bool:
        """Whether a clip can show a person in two frames; of streams only known to be so for clips of one frame."""
        return self.n_frames > 1

    def clip(self, video: ShardVideo, number: int, draw: np.random.Generator) -> Clip:
        """A video's `number`-th clip."""
        share = None if self.train else (2 * number + 1) / (2 * self.clips_per_video)
        frames = choose_frames(self.candidates(video), self.n_frames, self.sampling_rate, draw, share)
        return Clip(video, frames, draw)

    def _images(self, shape: tuple[int, ...], pin: bool) -> Tensor:
        """A uint8 tensor with anything in it. Its memory is used again once it is gone, since fresh pages cost as much
        as colour jitter; pinned memory comes from torch, which keeps its own store."""
        if pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        try:
            memory = self._free.popleft()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        view = memory[:size]
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view).view(shape)

    def _read_clip(self, video: ShardVideo, frames: np.ndarray, out: np.ndarray, flips: np.ndarray) -> None:
        """Decode frames into `out` (T, H, W, 3), mirrored where `flips`, bool (T,)."""
        size = max(out.shape[1:3])
        shrink = next((k for k in (8, 4, 2) if size * k <= max(video.stored)), 0)
        try:
            for frame, data, target, flip in zip(frames, video.read(frames), out, flips, strict=True):
                where = f"{video.where}: frame {frame} of {video.name!r}"
                if zlib.crc32(data) != video.checksums[frame]:
                    raise InputError(f"{where} is damaged; {REMEDY}")
                image = decode_image(data, where, _REDUCED.get(shrink, _RGB))
                if shrink or _RGB == cv2.IMREAD_COLOR:
                    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                image = resize_to(image, *target.shape[:2])
                if flip:
                    cv2.flip(image, 1, dst=target)
                else:
                    target[:] = image
        except (OSError, ValueError, cv2.error) as error:
            raise InputError(f"{video.where}: {video.name!r} cannot be read ({error}); {REMEDY}") from None

    def pack(self, clips: Sequence[Clip], pin: bool = False) -> dict:
        """A batch of clips, packed in few arrays (`collate` gives them their form)."""
        videos = [clip.video for clip in clips]
        lengths = [len(clip.frames) for clip in clips]
        shapes = [resized_shape(*v.stored, self.image_size) if self.image_size else v.stored for v in videos]
        sizes = [(max(shape), max(shape)) for shape in shapes] if self.pad_square else shapes
        images = self._images((sum(lengths), *map(max, zip(*sizes, strict=True)), 3), pin)
        padded = len({*shapes, *sizes}) > 1
        if padded:
            images.zero_()
        parts = np.split(images.numpy(), np.cumsum(lengths)[:-1])
        columns, first_id = [], 0
        for clip, part, (high, wide), size in zip(clips, parts, shapes, sizes, strict=True):
            flips = np.zeros(len(clip.frames), bool)
            if self.train:
                draws = clip.draw.random(len(flips) if self.mirror_frames else 1)
                flips |= (draws < 0.5) & self.mirror
            images_of_clip = part[:, :high, :wide]
            self._read_clip(clip.video, clip.frames, images_of_clip, flips)
            rows, counts = clip.video.rows(clip.frames)
            boxes = clip.video.boxes[rows]
            flipped = np.repeat(flips, counts)
            boxes[flipped, 0] = 1 - boxes[flipped, 0]
            if self.train and self.erase_people:
                corners = box_cxcywh_to_xyxy(torch.from_numpy(boxes)).numpy() * [wide, high, wide, high]
                shown = erase_in_clip(images_of_clip, corners, counts, clip.draw)
                counts = np.array([of_frame.sum() for of_frame in np.split(shown, np.cumsum(counts)[:-1])])
                rows, boxes = rows[shown], boxes[shown]
            if self.train:
                step = -16 if flips.all() else 16  # the mean is of the same pixels, mirrored or not
                mean = images_of_clip[:: len(images_of_clip) // 4 + 1, ::16, ::step].reshape(-1, 3).mean(0)
                colour = jitter_matrix(clip.draw, mean @ GREY, self.jitter).astype(np.float32)
                for image in images_of_clip:
                    cv2.transform(image, colour, dst=image)
            boxes *= np.array([wide / size[1], high / size[0]] * 2, np.float32)
            persons, ids = np.unique(clip.video.persons[rows], return_inverse=True)
            columns.append((clip.frames, boxes, ids.reshape(-1) + first_id, clip.video.actions[rows], counts))
            first_id += len(persons)
        names = ("frames", "boxes", "person_ids", "actions", "counts")
        packed = {
            n: torch.from_numpy(np.concatenate(c)) for n, c in zip(names, zip(*columns, strict=True), strict=True)
        }
        return packed | {
            "images": images,
            "sizes": torch.tensor(sizes),
            "lengths": torch.tensor(lengths),
            "names": [video.name for video in videos],
        }


class ClipDataset(Clips):
    """Clips from a folder of shards; InputError where these are missing or damaged.

    A clip is named (epoch, index); `len` is the number of clips an epoch, `clips_per_video` for each of `videos`, which
    are those that have any; `names` are those of all. Opening reads each video's json and no frame.
    """

    def __init__(self, shards_dir: str | Path, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)
        videos: list[ShardVideo] = []
        for path, meta, members in read_shards(shards_dir):
            try:
                if list(members) != [frame_member(i) for i in range(len(members))]:
                    raise ValueError("its members are not its frames")
                offsets, sizes, checksums = np.array([member[1:] for member in members.values()], np.int64).T
                videos.append(ShardVideo(path, meta, checksums, partial(_read_frames, path, offsets, sizes)))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path}: damaged sample {meta['name']!r} ({error}); {REMEDY}") from None
        self.names = {video.name for video in videos}
        self.videos = [video for video in videos if len(self.candidates(video))]
        if not self.videos:
            raise InputError(f"{shards_dir}: the shards hold no video")

    def __len__(self) -> int:
        return len(self.videos) * self.clips_per_video

    def checksum(self) -> str:
        """A checksum of the videos' names and annotations, and of what was stored of which files, for a resumed run."""
        made_from = (str(v.made_from) for v in self.videos)
        parts = (part for v in self.videos for part in (v.name, v.frames, v.persons, v.actions, v.boxes))
        return checksum(*made_from, *parts)

    def anybody_twice(self) -> bool:
        twice = (somebody_twice(self.candidates(v), v.persons, self.sampling_rate) for v in self.videos)
        return super().anybody_twice() and any(twice)

    def most_people(self) -> int:
        """The largest number of people in one frame."""
        return max(int(np.bincount(video.frames).max(initial=0)) for video in self.videos)

    def fetch(self, batches: list[list[tuple[int, int]]]) -> Iterator[list[tuple[int, int]]]:
        """What `pack` takes for each batch."""
        return iter(batches)

    def pack(self, keys: Sequence[tuple[int, int]], pin: bool = False) -> dict:
        """The clips of a batch, (epoch, index) each."""
        n = self.clips_per_video
        clips = [self.clip(self.videos[i // n], i % n, rng(self.seed, epoch, i)) for epoch, i in keys]
        return super().pack(clips, pin)


def collate(packed: dict, device: torch.device | str = "cpu") -> dict:
    """A batch of `ClipDataset` as training takes it, on `device`.

    `images` uint8 RGB (N, 3, H, W), channels last in memory, padded with 0 right and below; `mask` bool (N, H, W),
    True on padding; `targets` N dicts of `boxes` (n, 4) cxcywh normalised by the image without it, `labels` (n,) all
    PERSON, `person_ids` (n,) distinct between clips, `actions` (n,); `clip` and `frames` int64 (N,); `names` of the
    clips' videos. N is the number of frames of all clips.
    """
    lengths, counts = packed["lengths"], packed["counts"].tolist()
    on = {key: value.to(device, non_blocking=True) for key, value in packed.items() if isinstance(value, Tensor)}
    images = on["images"].permute(0, 3, 1, 2)
    n, _, high, wide = images.shape
    if (packed["sizes"] == packed["sizes"][0]).all():  # nothing is padded
        mask = torch.zeros((1, 1, 1), dtype=torch.bool, device=device).expand(n, high, wide)
    else:
        heights, widths = on["sizes"].repeat_interleave(on["lengths"], 0, output_size=n).T[:, :, None]
        below, beside = torch.arange(high, device=device) >= heights, torch.arange(wide, device=device) >= widths
        mask = below[:, :, None] | beside[:, None]
    labels = torch.full_like(on["person_ids"], PERSON)
    columns = {"boxes": on["boxes"], "labels": labels, "person_ids": on["person_ids"], "actions": on["actions"]}
    split = {key: column.split(counts) for key, column in columns.items()}
    return {
        "images": images,
        "mask": mask,
        "targets": [dict(zip(split, row, strict=True)) for row in zip(*split.values(), strict=True)],
        "clip": torch.arange(len(lengths)).repeat_interleave(lengths),
        "frames": packed["frames"],
        "names": packed["names"],
    }


def epoch_batches(
    dataset: Sized, epoch: int, batch_size: int, rank: int = 0, world: int = 1, shuffle: bool = True
) -> list[list[tuple[int, int]]]:
    """One rank's batches of an epoch: every clip once over all ranks, as many batches for each rank.

    The order depends on the data set's seed and the epoch alone. Clips are dealt in rounds of `world *
    batch_size`; the last round may be smaller, shared evenly (ranks differ by at most one clip); where it has
    fewer clips than ranks, it joins the round before. InputError when there are fewer clips than ranks.
    """
    n = len(dataset)
    if n < world:
        raise InputError(f"{n} clips cannot be shared by {world} processes; start fewer")
    shuffle = shuffle and not getattr(dataset, "in_order", False)
    order = rng(dataset.seed, epoch).permutation(n) if shuffle else np.arange(n)
    starts = list(range(0, n, world * batch_size))
    if n - starts[-1] < world:
        starts.pop()
    rounds = np.split(order, starts[1:])
    return [[(epoch, int(i)) for i in part[rank::world]] for part in rounds]


def make_loader(
    dataset: Clips,
    batches: list[list[tuple[int, int]]],
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[dict]:
    """Batches of `epoch_batches` as `collate` gives them, loaded by `workers` threads (0: by the caller's).

    Threads, because decoding runs outside Python's lock: frames are decoded where they are used, in pinned
    memory for a GPU, and never sent from process to process (which cost a third of the decoding). Slicing `batches`
    resumes an epoch. Raises InputError when a shard turns out to be damaged.
    """
    pin = torch.device(device).type == "cuda"
    if not workers:
        yield from (collate(dataset.pack(clips, pin), device) for clips in dataset.fetch(batches))
        return
    cv2.setNumThreads(0)
    left = dataset.fetch(batches)
    pool = ThreadPoolExecutor(workers, "loader")
    try:
        ahead = deque(pool.submit(dataset.pack, clips, pin) for clips in islice(left, AHEAD * workers))
        while ahead:
            packed = ahead.popleft().result()
            ahead.extend(pool.submit(dataset.pack, clips, pin) for clips in islice(left, 1))
            yield collate(packed, device)
    finally:
        pool.shutdown(cancel_futures=True)
