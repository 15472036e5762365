"""Clips of detections out of the query cache: what the person encoder trains on, without running DETR."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from datasets.annotations import Video, annotated_boxes
from datasets.use_shards import choose_frames, somebody_twice
from utils.misc import checksum, rng


class QueryClips:
    """Clips of detections that are assigned to ground truth. A clip is named (epoch, index); `len` is their number an
    epoch.

    Args:
        videos: the ground truth. Clips are of the videos with an assigned detection in every view.
        views: functions of a video's name that give its detections (`frames`, `boxes`, `queries(rows)`, `slots`,
            `meta`) in the frames as they are, mirrored, or without somebody; each frame of a clip is of one at random.
        match: function of detections, frames (G,) and boxes (G, 4) of ground truth; each detection's box, -1 for none.
        n_frames, sampling_rate, clips_per_video, whole_videos: as of `datasets.use_shards.Clips`.
        by_slot: identities are the numbers of queries, as in the published training, not of persons.
        between: of key frames, take the frames between them too, with interpolated boxes.
    """

    def __init__(
        self,
        videos: Mapping[str, Video],
        views: Sequence[Callable],
        match: Callable,
        n_frames: int,
        sampling_rate: int,
        seed: int,
        clips_per_video: int = 1,
        whole_videos: bool = False,
        by_slot: bool = False,
        between: bool = False,
    ) -> None:
        self.n_frames, self.sampling_rate, self.seed = n_frames, sampling_rate, seed
        self.clips_per_video, self.annotations = clips_per_video, videos
        self.videos = []  # name, the frames that clips consist of, and of each view its assigned detections
        self.n_boxes = self.n_matched = 0
        for name, video in videos.items():
            frames, boxes, persons = annotated_boxes(video)
            keys = None if whole_videos or between else video.key_frames
            if between and video.key_frames is not None:
                frames, boxes, persons = with_boxes_between(frames, boxes, persons, video.key_frames)
            assigned = []
            for detections in (detections_of(name) for detections_of in views):
                matched = match(detections, frames, boxes)
                rows = np.flatnonzero(matched >= 0)
                identities = detections.slots[rows] if by_slot else persons[matched[rows]]
                assigned.append((detections, detections.frames[rows], identities, rows))
                self.n_boxes, self.n_matched = self.n_boxes + len(frames), self.n_matched + len(rows)
            if all(len(rows) for *_, rows in assigned):
                first, last = (0, detections.meta["n_frames"] - 1) if whole_videos else (frames[0], frames[-1])
                self.videos.append((name, np.arange(first, last + 1) if keys is None else keys, assigned))

    def __len__(self) -> int:
        return len(self.videos) * self.clips_per_video

    def checksum(self) -> str:
        """A checksum of the videos' names, files, annotations and key frames, for a resumed run."""
        files = [str(views[0][0].meta["made_from"]["source"]) for *_, views in self.videos]
        tubes = ((name, tube) for name, video in self.annotations.items() for tube in video.tubes)
        parts = (part for name, t in tubes for part in (name, str(t.person_id), t.frames, t.boxes))
        key_frames = (video.key_frames for video in self.annotations.values() if video.key_frames is not None)
        return checksum(*self.annotations, *files, *parts, *key_frames)

    def anybody_twice(self) -> bool:
        """Whether a clip can show a person in two frames."""
        videos = ((candidates, views[0][2]) for _, candidates, views in self.videos)
        return any(somebody_twice(candidates, persons, self.sampling_rate) for candidates, persons in videos)

    def names(self, keys: Sequence[tuple[int, int]]) -> list[str]:
        """The videos of clips, (epoch, index) each."""
        return [self.videos[index // self.clips_per_video][0] for _, index in keys]

    def pack(self, keys: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Queries float32 (M, d) and identities int64 (M,), distinct between the clips `keys`, (epoch, index) each."""
        queries, ids, first_id = [], [], 0
        for epoch, index in keys:
            _, candidates, views = self.videos[index // self.clips_per_video]
            draw = rng(self.seed, epoch, index)
            clip_frames = choose_frames(candidates, self.n_frames, self.sampling_rate, draw)
            view_of = draw.integers(len(views), size=len(clip_frames))
            chosen_persons = []
            for number, (detections, frames, persons, rows) in enumerate(views):
                chosen = np.flatnonzero(np.isin(frames, clip_frames[view_of == number]))
                queries.append(detections.queries(rows[chosen]))
                chosen_persons.append(persons[chosen])
            distinct, inverse = np.unique(np.concatenate(chosen_persons), return_inverse=True)
            ids.append(inverse.reshape(-1) + first_id)
            first_id += len(distinct)
        return np.concatenate(queries), np.concatenate(ids)

    def across(self, indices: Sequence[int], gap: int, share: float) -> tuple[tuple, tuple]:
        """Detections of a frame of each clip's video and those `gap` frames later, of the first view, as `pack` gives
        them, identities distinct between the videos, each of which comes once.

        Args:
            indices: of clips, whose videos are meant.
            share: where the frame is among those that have assigned detections now and `gap` frames later: 0 the first.
        """

        def shown(later: int) -> tuple[np.ndarray, np.ndarray]:
            queries, ids = [], []
            for number in dict.fromkeys(index // self.clips_per_video for index in indices):
                _, _, ((detections, frames, persons, rows), *_) = self.videos[number]
                starts = np.intersect1d(frames, frames - gap)
                frame = starts[int(len(starts) * share)] + later if len(starts) else -1
                chosen = np.flatnonzero(frames == frame)
                queries.append(detections.queries(rows[chosen]))
                ids.append(persons[chosen] + (number << 32))
            return np.concatenate(queries), np.concatenate(ids)

        return shown(0), shown(gap)


def with_boxes_between(
    frames: np.ndarray, boxes: np.ndarray, persons: np.ndarray, key_frames: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes as of `annotated_boxes`, and those interpolated between neighbouring key frames that both show a person.

    `key_frames` int64 (k,) rising. The result is by rising frame, then person.
    """
    parts = [(frames, boxes, persons)]
    key = np.searchsorted(key_frames, frames)
    order = np.lexsort((frames, persons))
    for a, b in pairwise(order.tolist()):
        if persons[a] == persons[b] and key[b] - key[a] == 1:
            between = np.arange(frames[a] + 1, frames[b])
            weight = ((between - frames[a]) / (frames[b] - frames[a]))[:, None]
            interpolated = boxes[a] + weight * (boxes[b] - boxes[a])
            parts.append((between, interpolated.astype(np.float32), np.full(len(between), persons[a])))
    frames, boxes, persons = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((persons, frames))
    return frames[order], boxes[order], persons[order]
