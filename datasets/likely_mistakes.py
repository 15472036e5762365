"""Annotations that break no rule, and yet are probably not what was meant: warnings of `datasets.check`."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from datasets.formats.common import RawVideo
from utils.misc import counted

REVERSED_SHARE = 0.2  # of a video's boxes: more is no slip of the hand


def likely_mistakes(videos: Mapping[str, RawVideo], n_frames: Mapping[str, int]) -> Iterator[str]:
    """One counted line for each kind of likely mistake.

    Args:
        videos: as annotated, unchecked.
        n_frames: numbers of frames as they decode, where known; else those of the annotation count.
    """
    annotated = {name: video for name, video in videos.items() if _boxes(video).size}
    if videos and not annotated:
        yield "no box in any video"
    for text, names in (
        (
            "all boxes lie between 0 and 1, which are probably shares of the frame; boxes are in pixels",
            [name for name, video in annotated.items() if _is_normalised(_boxes(video))],
        ),
        (
            f"{REVERSED_SHARE:.0%} or more of the boxes are reversed, which are probably left, top, width, height; "
            "boxes are left, top, right, bottom",
            [name for name, video in annotated.items() if _reversed_share(_boxes(video)) >= REVERSED_SHARE],
        ),
        (
            "only every k-th frame has boxes, which are probably key frames; frames between them count as frames "
            "without people: interpolate the boxes",
            [name for name, video in annotated.items() if frame_step(video) > 1 and video.key_frames is None],
        ),
        ("a tube is annotated twice", [name for name, video in annotated.items() if _has_double(video)]),
        (
            "a box in frame n of n frames, and in no video one in frame 0; frames probably count from 1, but must "
            "count from 0",
            _counting_from_1(annotated, n_frames),
        ),
    ):
        if names:
            yield f"{counted(len(names), 'video')}: {text} (first: {names[0]!r})"


def shared_videos(subsets: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """One line for each two subsets that share videos."""
    names = list(subsets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            second = set(subsets[b])
            both = [name for name in subsets[a] if name in second]
            if both:
                text = "metrics are too good where a model was trained on what it is tested on"
                yield f"{counted(len(both), 'video')} in {a} and in {b}; {text} (first: {both[0]!r})"


def frame_step(video: RawVideo) -> int:
    """The step k where a video has boxes in every k-th frame only; 1 where fewer than three frames are annotated."""
    frames = np.unique(_frames(video))
    return int(np.gcd.reduce(np.diff(frames))) if len(frames) > 2 else 1


def _frames(video: RawVideo) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(tube.frames for tube in video.tubes)])


def _boxes(video: RawVideo) -> np.ndarray:
    return np.concatenate([np.zeros((0, 4)), *(tube.boxes for tube in video.tubes)])


def _is_normalised(boxes: np.ndarray) -> bool:
    return bool(((boxes >= 0) & (boxes <= 1)).all() and (boxes % 1 > 0).any())


def _reversed_share(boxes: np.ndarray) -> float:
    return float((boxes[:, 2:] < boxes[:, :2]).any(1).mean())


def _has_double(video: RawVideo) -> bool:
    tubes = {(tube.frames.tobytes(), tube.boxes.tobytes(), tube.label) for tube in video.tubes if len(tube.frames)}
    return len(tubes) < sum(len(tube.frames) > 0 for tube in video.tubes)


def _counting_from_1(videos: Mapping[str, RawVideo], n_frames: Mapping[str, int]) -> list[str]:
    if any((_frames(video) == 0).any() for video in videos.values()):
        return []
    return [name for name, video in videos.items() if _frames(video).max() == n_frames.get(name, video.n_frames)]
