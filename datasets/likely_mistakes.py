"""Annotations and lists that break no rule, and yet are probably not what was meant: warnings of `datasets.check`, and
of the stages."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

from datasets.config import Project
from datasets.formats.common import RawVideo
from datasets.formats.person_tubes import frame_step
from utils.box_ops import frames_and_boxes
from utils.misc import InputError, counted, tell


def likely_mistakes(videos: Mapping[str, RawVideo], n_frames: Mapping[str, int]) -> Iterator[str]:
    """One counted line for each kind of likely mistake in `videos`, as annotated, unchecked. `n_frames`: of videos that
    were decoded; else the annotation's count."""
    frames = {name: frames_and_boxes(video.tubes)[0] for name, video in videos.items()}
    annotated = {name: video for name, video in videos.items() if frames[name].size}
    if videos and not annotated:
        yield "no box in any video"
    kinds = {text: [name for name, video in annotated.items() if is_so(video)] for text, is_so in MISTAKES.items()}
    if not any(0 in of_video for of_video in frames.values()):
        text = "a box in frame n of n frames, and in no video one in frame 0; frames probably count from 1, but must "
        ends = {name: n_frames.get(name, video.n_frames) for name, video in annotated.items()}
        kinds[text + "count from 0"] = [name for name, end in ends.items() if frames[name].max() == end]
    for text, names in kinds.items():
        if names:
            yield f"{counted(len(names), 'video')}: {text} (first: {names[0]!r})"


def shared_videos(subsets: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """One line for each two subsets that share videos."""
    for a, b in combinations(subsets, 2):
        second = set(subsets[b])
        both = [name for name in subsets[a] if name in second]
        if both:
            text = "metrics are too good where a model was trained on what it is tested on"
            yield f"{counted(len(both), 'video')} in {a} and in {b}; {text} (first: {both[0]!r})"


def warn_of_shared_videos(project: Project, subset: str, trained: str | None = None) -> None:
    """Print a warning where `subset`, which is evaluated, has videos of `trained`; nothing where there is no such.

    `trained`: the subset that is being trained on; None where nothing is trained, which stands for `train`.
    """
    from utils.distributed import rank  # PyTorch, which --help does without

    if rank() != 0:
        return
    if subset == trained:
        tell(f"warning: --val_subset {subset}: is what is trained on; its metrics say nothing about other videos")
    trained = trained or "train"
    if {subset, trained} <= project.splits.keys():
        with contextlib.suppress(InputError):  # who evaluates may not have the training list
            for line in shared_videos({name: project.split(name) for name in (trained, subset)}):
                tell(f"warning: {line}")


def _is_normalised(video: RawVideo) -> bool:
    boxes = frames_and_boxes(video.tubes)[1]
    return bool(((boxes >= 0) & (boxes <= 1)).all() and (boxes % 1 > 0).any())


def _has_double(video: RawVideo) -> bool:
    tubes = [(tube.frames.tobytes(), tube.boxes.tobytes(), tube.label) for tube in video.tubes if len(tube.frames)]
    return len({*tubes}) < len(tubes)


MISTAKES: dict[str, Callable[[RawVideo], bool]] = {
    "all boxes lie between 0 and 1, which are probably shares of the frame; boxes are in pixels": _is_normalised,
    "only every k-th frame has boxes, which are probably key frames; frames between them count as frames without "
    "people: interpolate the boxes": lambda video: frame_step(frames_and_boxes(video.tubes)[0]) > 1
    and video.key_frames is None,
    "a tube is annotated twice": _has_double,
}
"""What is probably meant otherwise, and whether it is so in a video."""
