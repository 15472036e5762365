"""Every annotation format as the same checked tubes."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from datasets.config import Project
from datasets.formats.readers import RawTube, RawVideo, read_source
from utils.box_ops import Tube
from utils.misc import InputError

SAME_PERSON_IOU = 0.5  # two boxes of one person in one frame (two actions at a time) overlap at least so

# One rule for each kind of fault. "refused": the video cannot be used. "dropped": the boxes are left out, with a
# counted warning. "kept": a counted warning; evaluation uses the boxes as annotated, training clips them.
RULES = {
    "box is not finite": "refused",
    "box is reversed": "refused",
    "box is outside the picture": "refused",
    "frame does not come after the one before it": "refused",
    "frame is negative": "refused",
    "frame is beyond the video's end": "refused",
    "label is not in the project's labels": "refused",
    "person has two boxes in one frame": "refused",
    "box is empty": "dropped",
    "box sticks out of the picture": "kept",
}


class Fault(NamedTuple):
    """A kind of fault in one tube: how many boxes have it, and the first of their frames (None: no frame)."""

    kind: str
    tube: int
    frame: int | None
    count: int

    def __str__(self) -> str:
        place = f"tube {self.tube}" + (f", frame {self.frame}" if self.frame is not None else "")
        return f"{place}: {self.kind}"


@dataclass(frozen=True)
class Video:
    """A video's ground truth; width, height and n_frames are 0 where the annotation does not say."""

    name: str
    width: int
    height: int
    n_frames: int
    tubes: list[Tube]


def check_tubes(
    video: RawVideo | Video, tubes: Iterable[RawTube | Tube], n_labels: int
) -> tuple[list[Tube], list[Fault]]:
    """The tubes that can be used, and what is wrong with the others, by the rules of `RULES`.

    `video` gives the picture's size and number of frames, where known; labels are indices or None. A tube
    with a refused fault is left out; one with dropped boxes loses them. person_id is the tube's index
    where the annotation has none. Boxes of evaluation stay as annotated.
    """
    good, faults = [], []
    for i, tube in enumerate(tubes):
        frames, boxes = np.asarray(tube.frames, np.int64), np.asarray(tube.boxes, np.float64)
        size = boxes[:, 2:] - boxes[:, :2]
        beyond_video = np.inf if not video.n_frames else video.n_frames
        width, height = (video.width or np.inf, video.height or np.inf)
        with np.errstate(invalid="ignore"):
            masks = {
                "box is not finite": ~np.isfinite(boxes).all(1) | (np.abs(boxes) > 1e6).any(1),
                "box is reversed": (size < 0).any(1),
                "box is empty": (size == 0).any(1),
                "box is outside the picture": (boxes[:, 2:] <= 0).any(1) | (boxes[:, :2] >= (width, height)).any(1),
                "box sticks out of the picture": (boxes[:, :2] < 0).any(1) | (boxes[:, 2:] > (width, height)).any(1),
                "frame is negative": frames < 0,
                "frame is beyond the video's end": frames >= beyond_video,
                "frame does not come after the one before it": np.diff(frames, prepend=frames[:1] - 1) <= 0,
            }
        label = -1 if tube.label is None else tube.label
        found = [
            Fault(kind, i, int(frames[mask.argmax()]), int(mask.sum())) for kind, mask in masks.items() if mask.any()
        ]
        if not (isinstance(label, int) and -1 <= label < n_labels):
            found.append(Fault("label is not in the project's labels", i, None, 1))
        refused = any(RULES[fault.kind] == "refused" for fault in found)
        if refused:
            found = [fault for fault in found if RULES[fault.kind] == "refused"]
        faults += found
        keep = ~masks["box is empty"]
        if not refused and keep.any():
            person = i if tube.person_id is None or tube.person_id < 0 else tube.person_id
            good.append(Tube(frames[keep], boxes[keep], label, 1.0, person))
    clashes = _two_at_once(good)
    return good, faults + clashes


def _two_at_once(tubes: list[Tube]) -> list[Fault]:
    """Faults of tubes that put one person in two places in one frame."""
    faults = []
    by_person: dict[int, list[int]] = {}
    for i, tube in enumerate(tubes):
        for j in by_person.setdefault(tube.person_id, []):
            other = tubes[j]
            frames, a, b = np.intersect1d(tube.frames, other.frames, return_indices=True)
            overlap = _iou(tube.boxes[a], other.boxes[b])
            if (overlap < SAME_PERSON_IOU).any():
                bad = overlap < SAME_PERSON_IOU
                faults.append(Fault("person has two boxes in one frame", i, int(frames[bad.argmax()]), int(bad.sum())))
        by_person[tube.person_id].append(i)
    return faults


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of paired boxes (n, 4) -> (n,)."""
    inter = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter)


def read_annotations(
    project: Project, names: Iterable[str] | None = None, bad: dict[str, str] | None = None
) -> dict[str, Video]:
    """The ground truth of a project: of all annotated videos, or of those in `names`.

    Boxes are float32 xyxy pixels, frames and labels count from 0; person_id is the tube's index in its video
    where the annotation has none. Raises InputError, naming file, video and frame, at the first impossible
    annotation; with `bad` given, such videos are left out and entered there (name -> what is wrong). What can be
    used after a correction is told in one warning line for each kind.
    """
    source = read_source(project)
    warned: dict[str, list[str]] = {}
    videos = {}
    for name in source.videos if names is None else names:
        try:
            videos[name], faults = read_video(name, source.videos, project.labels)
            for fault in faults:
                if RULES[fault.kind] == "refused":
                    raise InputError(f"video {name!r}, {fault}")
        except InputError as error:
            line = f"{source.path}: {error}"
            if bad is None:
                raise InputError(f"{line}; correct it, or leave such videos out with --skip_bad") from None
            bad[name] = line
            videos.pop(name, None)
            continue
        for fault in faults:
            warned.setdefault(fault.kind, []).extend([f"video {name!r}, {fault}"] * fault.count)
    for kind, places in warned.items():
        how = "left out" if RULES[kind] == "dropped" else "clipped in training, kept in evaluation"
        print(
            f"warning: {source.path}: {len(places)} times: {kind}, {how}; first in {places[0].rsplit(':', 1)[0]}",
            file=sys.stderr,
        )
    return videos


def read_video(name: str, held: dict[str, RawVideo], labels: list[str]) -> tuple[Video, list[Fault]]:
    """A video out of an annotation file, with its usable tubes and all its faults; InputError when it has no place."""
    if name not in held:
        raise InputError(f"holds no video {name!r}")
    raw = held[name]
    if min(raw.width, raw.height, raw.n_frames) < 0:
        raise InputError(f"video {name!r}: its size or number of frames is negative")
    index = {label: i for i, label in enumerate(labels)}
    named = [t._replace(label=index.get(t.label, len(index))) if isinstance(t.label, str) else t for t in raw.tubes]
    tubes, faults = check_tubes(raw, named, len(index))
    return Video(name, raw.width, raw.height, raw.n_frames, tubes), faults
