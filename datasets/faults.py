"""What may be wrong with a video's annotation: kinds of fault, what is done with each, and how boxes are searched."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.formats.common import SAME_PERSON_IOU
from utils.box_ops import Tube, paired_iou
from utils.misc import InputError, counted, tell

MAX_COORDINATE = 1e6  # pixels
MARGIN = 10  # pixels beyond the border that never count as mostly outside

REFUSED = ("refused", "the video cannot be used")
RULES = {
    "box is not finite": REFUSED,
    "box is reversed": REFUSED,
    "box is outside the frame": REFUSED,
    "box is mostly outside the frame": REFUSED,
    "frame does not come after the one before it": REFUSED,
    "frame is negative": REFUSED,
    "frame is beyond the video's end": REFUSED,
    "label is not in the project's labels": REFUSED,
    "size is not the video's": REFUSED,
    "person has two boxes in one frame": REFUSED,
    "box is empty": ("dropped", "left out"),
    "frame is after the last decoded one": ("dropped", "left out of training"),
    "frame lies between those used": ("dropped", "left out"),
    "frame is after the last one used": ("dropped", "left out"),
    "box extends beyond the frame": ("kept", "clipped in training, kept as annotated in evaluation"),
    "number of frames is not the video's": ("kept", "the decoded frames count"),
}
"""What is done with each kind of fault, and what follows, as a counted warning says it."""


@dataclass(frozen=True)
class AnnotationFault:
    """Boxes of one tube with the same fault: its kind (of `RULES`), whose it is, its first frame, and how many."""

    kind: str
    owner: str
    text: str
    frame: int | None = None
    count: int = 1

    @property
    def place(self) -> str:
        return self.owner if self.frame is None else f"{self.owner}, frame {self.frame}"

    @property
    def refused(self) -> bool:
        return RULES[self.kind] == REFUSED

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def refuse(faults: Iterable[AnnotationFault], where: str = "") -> None:
    """Raise InputError at the first fault for which a video cannot be used."""
    for fault in faults:
        if fault.refused:
            raise InputError(f"{where}{fault}")


def print_warnings(where: str, faults: Sequence[AnnotationFault]) -> None:
    """Print one counted line on stderr for each kind of fault."""
    for kind in dict.fromkeys(fault.kind for fault in faults):
        same = [fault for fault in faults if fault.kind == kind]
        times, (_, consequence) = counted(sum(fault.count for fault in same), "time"), RULES[kind]
        tell(f"warning: {where}: {times}: {kind}, {consequence}; first in {same[0].place}")


def impossible_boxes(frames: np.ndarray, boxes: np.ndarray, n_frames: int) -> dict[str, np.ndarray]:
    """Which boxes (T,) have faults that no frame size can excuse; `n_frames` 0: unknown."""
    with np.errstate(invalid="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
        return {
            "box is not finite": ~(np.abs(boxes) <= MAX_COORDINATE).all(1),
            "box is reversed": (sides < 0).any(1),
            "box is empty": (sides == 0).any(1),
            "frame is negative": frames < 0,
            "frame is beyond the video's end": frames >= (n_frames or np.inf),
            "frame does not come after the one before it": np.diff(frames, prepend=frames[:1] - 1) <= 0,
        }


def boxes_beyond_border(boxes: np.ndarray, width: int, height: int) -> dict[str, np.ndarray]:
    """Which boxes (T,) lie wholly, by more than half of their area, or a little outside a frame; sizes 0: unknown."""
    size = np.array([width or np.inf, height or np.inf])
    low, high = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore"):
        outside = (high <= 0).any(1) | (low >= size).any(1)
        inside = np.clip(high, -MARGIN, size + MARGIN) - np.clip(low, -MARGIN, size + MARGIN)
        mostly = inside.prod(1) < 0.5 * (high - low).prod(1)
        return {
            "box is outside the frame": outside,
            "box is mostly outside the frame": mostly & ~outside,
            "box extends beyond the frame": ((low < 0) | (high > size)).any(1),
        }


def box_faults(
    owner: str, masks: dict[str, np.ndarray], frames: np.ndarray, boxes: np.ndarray, of_video: str = ""
) -> list[AnnotationFault]:
    """One fault for each mask (T,) that holds anywhere, at its first box."""
    faults = []
    for kind, mask in masks.items():
        if mask.any():
            first = int(mask.argmax())
            box = ", ".join(f"{x:g}" for x in boxes[first].tolist())
            text = f"{kind}{of_video}" if kind.startswith("frame") else f"{kind} ({box})"
            faults.append(AnnotationFault(kind, owner, text, int(frames[first]), int(mask.sum())))
    return faults


def two_boxes_of_one_person(name: str, tubes: list[Tube]) -> Iterator[AnnotationFault]:
    """Faults of tubes that put one person in two places in one frame."""
    by_person: dict[int, list[Tube]] = {}
    for tube in tubes:
        for other in by_person.setdefault(tube.person_id, []):
            frames, a, b = np.intersect1d(tube.frames, other.frames, return_indices=True)
            apart = frames[paired_iou(tube.boxes[a], other.boxes[b]) < SAME_PERSON_IOU]
            if len(apart):
                kind, owner = "person has two boxes in one frame", f"video {name!r}, person {tube.person_id}"
                yield AnnotationFault(kind, owner, kind, int(apart[0]), len(apart))
        by_person[tube.person_id].append(tube)
