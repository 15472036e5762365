"""MultiSports as its `multisports_GT.pkl`, ACT's layout without identities: people are joined from their tubes.

A tube is one action of somebody, and the same person's next action another tube, often from the next frame on. Were
each a person, a matcher would be trained to tell somebody from themselves. So two tubes of a video are one person where
they have frames in common, or one begins in the frame after the other's last, and their boxes there overlap by a mean
IoU of `person_iou`: the pairs that overlap most are joined first, and nobody is in two places in one frame.
"""

from pathlib import Path

import numpy as np

from datasets.formats import jhmdb21
from datasets.formats.common import SAME_PERSON_IOU, AnnotationFile, RawTube
from utils.box_ops import paired_iou


def read(path: Path, *, person_iou: float = 0.5) -> AnnotationFile:
    """Read the ground truth of all videos, its labels and its lists of videos."""
    file = jhmdb21.read(path)
    for name, video in file.videos.items():
        persons = person_ids(video.tubes, person_iou)
        tubes = [tube._replace(person_id=person) for tube, person in zip(video.tubes, persons, strict=True)]
        file.videos[name] = video._replace(tubes=tubes)
    return file


def person_ids(tubes: list[RawTube], person_iou: float) -> list[int]:
    """The person of each tube, numbered in the order of the tubes; see the module's docstring for the rule."""
    pairs, clash = [], np.zeros((len(tubes), len(tubes)), bool)
    spans = np.array([(t.frames[0], t.frames[-1]) if len(t.frames) else (0, -2) for t in tubes]).reshape(-1, 2)
    near = (spans[:, None, 0] <= spans[None, :, 1] + 1) & (spans[None, :, 0] <= spans[:, None, 1] + 1)
    for i, j in np.argwhere(np.triu(near, 1)).tolist():
        iou, together = _overlap(tubes[i], tubes[j])
        clash[i, j] = clash[j, i] = together and bool((iou < SAME_PERSON_IOU).any())
        if iou.size and iou.mean() >= person_iou:
            pairs.append((-float(iou.mean()), i, j))
    group = np.arange(len(tubes))
    for _, i, j in sorted(pairs):
        mine, other = group == group[i], group == group[j]
        if group[i] != group[j] and not clash[np.ix_(mine, other)].any():
            group[mine | other] = min(group[i], group[j])
    return np.unique(group, return_inverse=True)[1].tolist()


def _overlap(a: RawTube, b: RawTube) -> tuple[np.ndarray, bool]:
    """The IoU in each frame that both have, or, where one follows on the other, of the two boxes that meet; and
    whether they have frames in common."""
    _, in_a, in_b = np.intersect1d(a.frames, b.frames, return_indices=True)
    if len(in_a):
        return paired_iou(a.boxes[in_a], b.boxes[in_b]), True
    first, second = (a, b) if a.frames[0] < b.frames[0] else (b, a)
    if second.frames[0] != first.frames[-1] + 1:  # one lies in a gap of the other
        return np.zeros(0), False
    return paired_iou(first.boxes[-1:], second.boxes[:1]), False
