"""Clips out of shards: a map-style data set, the order of an epoch, batches with padding masks.

Everything drawn depends on (seed, epoch, index) alone, so neither the number of workers nor a resumed run
changes what is seen.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.dataset import quiet_opencv
from datasets.make_shards import read_shards
from datasets.transforms import (
    GREY,
    apply_colour,
    clip_boxes,
    flip_boxes,
    jitter_matrix,
    normalise_boxes,
    resize,
)
from utils.misc import InputError, rng

PERSON = 1  # the detector's label of a person, as in COCO
_RGB = getattr(cv2, "IMREAD_COLOR_RGB", 0)  # OpenCV 4.11 and newer decode to RGB
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


class _Clips(Dataset):
    """What `ClipDataset` and its errors need of torch."""


class _Entry:
    """A video's place in its shard, and its boxes sorted by frame."""

    def __init__(self, path: Path, at: int, size: int, meta: dict) -> None:
        self.path, self.name = path, meta["name"]
        self.width, self.height = int(meta["width"]), int(meta["height"])
        self.stored = max(int(side) for side in meta["stored"])
        self.offsets = np.asarray(meta["offsets"], np.int64) + at
        self.checksums = np.asarray(meta["crc32s"], np.uint32)
        if len(self.offsets) != meta["n_frames"] + 1 or len(self.checksums) != meta["n_frames"]:
            raise ValueError("its numbers of frames differ")
        if (np.diff(self.offsets) <= 0).any() or self.offsets[-1] != at + size or not meta["n_frames"]:
            raise ValueError("its frames are not where it says")
        tubes = meta["tubes"]
        counts = [len(tube["frames"]) for tube in tubes]
        frames = np.concatenate([np.asarray(t["frames"], np.int64) for t in tubes]) if tubes else np.zeros(0, np.int64)
        boxes = np.concatenate([np.asarray(t["boxes"], np.float32) for t in tubes]) if tubes else np.zeros((0, 4))
        order = np.argsort(frames, kind="stable")
        self.frames = frames[order]
        self.boxes = clip_boxes(boxes.astype(np.float32), self.width, self.height)[order]
        self.persons = np.repeat([t["person_id"] for t in tubes], counts).astype(np.int64)[order]
        self.actions = np.repeat([t["label"] for t in tubes], counts).astype(np.int64)[order]

    def __len__(self) -> int:
        return len(self.checksums)

    def at(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (n, 4), person ids (n,) and actions (n,) of a frame; a person with several actions appears once."""
        rows = slice(*np.searchsorted(self.frames, [frame, frame + 1]))
        persons, first = np.unique(self.persons[rows], return_index=True)
        return self.boxes[rows][first], persons, self.actions[rows][first]


class ClipDataset(_Clips):
    """Clips of `n_frames` frames, `sampling_rate` apart, from a folder of shards.

    Indexed by (epoch, index); `len` is the number of clips an epoch, `clips_per_video` for each video. Clips lie
    between the first and the last annotated frame, since people outside it may be there without boxes; what is
    shorter than a clip gives fewer frames. In training the start is random, the clip is mirrored half of the time
    and changes colour as a whole; otherwise clips are spread evenly. Frames come with their longer side
    `image_size` (0: as stored). Raises InputError for shards that are missing or damaged; an item that meets
    damage is the InputError itself, which `make_loader` raises.
    """

    def __init__(
        self,
        shards_dir: str | Path,
        n_frames: int = 1,
        sampling_rate: int = 1,
        image_size: int = 0,
        train: bool = True,
        seed: int = 42,
        clips_per_video: int = 1,
    ) -> None:
        self.n_frames, self.sampling_rate, self.image_size = n_frames, sampling_rate, image_size
        self.train, self.seed, self.clips_per_video = train, seed, clips_per_video
        self.videos: list[_Entry] = []
        for store, meta in read_shards(shards_dir):
            try:
                self.videos.append(_Entry(store.path, *store.where(meta["name"], "frames"), meta))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{store.path}: damaged sample {meta['name']!r} ({error}); make it again") from None
        if not self.videos:
            raise InputError(f"{shards_dir}: the shards hold no video")

    def __len__(self) -> int:
        return len(self.videos) * self.clips_per_video

    def clip_frames(self, video: _Entry, number: int, draw: np.random.Generator) -> np.ndarray:
        """Frame numbers (T,) of a video's `number`-th clip."""
        low, high = (video.frames[0], video.frames[-1] + 1) if len(video.frames) else (0, len(video))
        span = min((self.n_frames - 1) * self.sampling_rate + 1, high - low)
        room = int(high - low - span)
        start = draw.integers(room + 1) if self.train else room * (2 * number + 1) // (2 * self.clips_per_video)
        return np.arange(low + start, low + start + span, self.sampling_rate)

    def _decode(self, video: _Entry, frame: int, handle: int) -> np.ndarray:
        start, stop = int(video.offsets[frame]), int(video.offsets[frame + 1])
        data = np.frombuffer(os.pread(handle, stop - start, start), np.uint8)
        if zlib.crc32(data) != video.checksums[frame]:
            raise InputError(f"{video.path}: frame {frame} of {video.name!r} is damaged; make the shard again")
        shrink = next((k for k in (8, 4, 2) if 0 < self.image_size * k <= video.stored), 0)
        image = cv2.imdecode(data, _REDUCED[shrink] if shrink else _RGB or cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{video.path}: frame {frame} of {video.name!r} cannot be decoded")
        if shrink or not _RGB:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
        return resize(image, self.image_size) if self.image_size else image

    def __getitem__(self, key: tuple[int, int]) -> dict | InputError:
        epoch, index = key
        number, video = index % self.clips_per_video, self.videos[index // self.clips_per_video]
        draw = rng(self.seed, epoch, index)
        frames = self.clip_frames(video, number, draw)
        try:
            with video.path.open("rb", buffering=0) as handle:
                images = [self._decode(video, frame, handle.fileno()) for frame in frames]
        except InputError as error:
            return error
        except (OSError, cv2.error) as error:
            return InputError(f"{video.path}: {video.name!r} cannot be read ({error})")
        flip, colour = self.train and draw.random() < 0.5, None
        if self.train:
            grey = np.mean([image[::16, ::16].reshape(-1, 3).mean(0) for image in images[:: len(images) // 4 + 1]], 0)
            colour = jitter_matrix(draw, float(grey @ GREY))
        targets = []
        for frame in frames:
            boxes, persons, actions = video.at(frame)
            if flip:
                boxes = flip_boxes(boxes, video.width)
            boxes = normalise_boxes(boxes, video.width, video.height)
            targets.append((boxes, persons, actions))
        return {
            "name": video.name,
            "frames": frames,
            "images": images,
            "flip": flip,
            "colour": colour,
            "targets": targets,
        }


def collate(samples: Sequence[dict | InputError]) -> dict | InputError:
    """Clips -> one batch, frames flattened; an InputError among them is passed on.

    `images` uint8 RGB (N, 3, H, W), channels last in memory, padded right and below; `mask` bool (N, H, W), True
    on padding; `targets` N dicts of `boxes` (n, 4) cxcywh normalised by the unpadded picture, `labels` (n,) all
    PERSON, `person_ids` (n,) distinct between clips, `actions` (n,); `clip` and `frames` int64 (N,); `names` of the
    clips' videos; `colour` float32 (N, 3, 4), the colour change still to be applied, or None.
    """
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    images = [image for sample in samples for image in sample["images"]]
    flips = [sample["flip"] for sample in samples for _ in sample["images"]]
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = any(image.shape[:2] != (height, width) for image in images)
    batch = (torch.zeros if padded else torch.empty)((len(images), height, width, 3), dtype=torch.uint8)
    mask = torch.ones((len(images), height, width), dtype=torch.bool) if padded else None
    array = batch.numpy()
    for i, (image, flip) in enumerate(zip(images, flips, strict=True)):
        h, w = image.shape[:2]
        if flip and not padded:
            cv2.flip(image, 1, dst=array[i])
        else:
            array[i, :h, :w] = cv2.flip(image, 1) if flip else image
        if padded:
            mask[i, :h, :w] = False
    lengths = torch.tensor([len(sample["images"]) for sample in samples])
    colour = None
    if samples[0]["colour"] is not None:
        matrices = torch.from_numpy(np.stack([sample["colour"] for sample in samples]).astype(np.float32))
        colour = matrices.repeat_interleave(lengths, 0)
    targets, first_id = [], 0
    for sample in samples:
        ids = np.unique(np.concatenate([persons for _, persons, _ in sample["targets"]]))
        for boxes, persons, actions in sample["targets"]:
            targets.append(
                {
                    "boxes": torch.from_numpy(boxes),
                    "labels": torch.full((len(boxes),), PERSON),
                    "person_ids": torch.from_numpy(np.searchsorted(ids, persons) + first_id),
                    "actions": torch.from_numpy(actions),
                }
            )
        first_id += len(ids)
    return {
        "images": batch.permute(0, 3, 1, 2),
        "mask": torch.zeros((len(images), height, width), dtype=torch.bool) if mask is None else mask,
        "targets": targets,
        "clip": torch.arange(len(samples)).repeat_interleave(lengths),
        "frames": torch.from_numpy(np.concatenate([sample["frames"] for sample in samples])),
        "names": [sample["name"] for sample in samples],
        "colour": colour,
    }


def epoch_batches(
    dataset: ClipDataset, epoch: int, batch_size: int, rank: int = 0, world: int = 1, shuffle: bool = True
) -> list[list[tuple[int, int]]]:
    """One rank's batches of an epoch: every clip once over all ranks, as many batches for each rank.

    The order depends on the data set's seed and the epoch alone. Clips are dealt in rounds of `world *
    batch_size`; the last round may be smaller, shared evenly (ranks differ by at most one clip); where it has
    fewer clips than ranks, it joins the round before. InputError when there are fewer clips than ranks.
    """
    n = len(dataset)
    if n < world:
        raise InputError(f"{n} clips cannot be shared by {world} processes; start fewer")
    order = rng(dataset.seed, epoch).permutation(n) if shuffle else np.arange(n)
    starts = list(range(0, n, world * batch_size))
    if n - starts[-1] < world:
        starts.pop()
    rounds = np.split(order, starts[1:])
    return [[(epoch, int(i)) for i in part[rank::world]] for part in rounds]


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    quiet_opencv()


def _to(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to(item, device) for key, item in value.items()}
    return [_to(item, device) for item in value] if isinstance(value, list) else value


class Loader:
    """What `make_loader` gives: `len` and iteration over batches on the device."""

    def __init__(
        self,
        dataset: ClipDataset,
        batches: list[list[tuple[int, int]]],
        workers: int,
        device: torch.device | str,
    ) -> None:
        self.device = torch.device(device)
        self.loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_start_worker,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader:
            if isinstance(batch, InputError):
                raise batch
            padded = bool(batch["mask"].any())
            batch = _to(batch, self.device)
            colour = batch.pop("colour")
            if colour is not None:
                batch["images"] = apply_colour(batch["images"], colour)
                if padded:
                    batch["images"].masked_fill_(batch["mask"][:, None], 0)
            yield batch


def make_loader(
    dataset: ClipDataset,
    batches: list[list[tuple[int, int]]],
    workers: int = 0,
    device: torch.device | str = "cpu",
) -> Loader:
    """Batches of `epoch_batches`, loaded by `workers` processes (0: by this one), on `device`.

    Yields what `collate` gives, with the colours changed on the device; slicing `batches` resumes an epoch.
    Raises InputError when a shard turns out to be damaged.
    """
    return Loader(dataset, batches, workers, device)
