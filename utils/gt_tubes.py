"""Ground-truth tubes of a data set's subset, the labels that they give to tracks, and which predictions they judge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from utils.box_ops import Tube, Tubes, paired_iou
from utils.misc import checksum

if TYPE_CHECKING:
    from datasets.config import Project


def make_gt_tubes(
    dataset: "str | Project", subset: str, params: Mapping[str, object] | None = None
) -> dict[str, list[Tube]]:
    """The annotated tubes of every video of a subset, as annotated (never clipped); videos without tubes are keys too.

    `dataset` is a built-in data set's name, a project file's path or a `datasets.config.Project`. `params` may
    give `data_root` and replace fields of the project file. Tubes: `frames` int64 (T,) from 0, `boxes`
    float32 (T, 4) xyxy pixels, `label` an index of the project's labels or -1 for a person without action.
    Raises InputError as `load_project` and `read_annotations` do.
    """
    from datasets.annotations import read_annotations
    from datasets.config import Project, load_project

    project = dataset if isinstance(dataset, Project) else load_project(dataset, **(params or {}))
    return {name: video.tubes for name, video in read_annotations(project, project.split(subset)).items()}


def tubes_checksum(tubes: Sequence[Tube], of_people: bool) -> int:
    """A checksum of a video's annotated tubes, `of_people` with their person ids."""
    parts = []
    for tube in tubes:
        parts += [tube.frames, tube.boxes, f"{tube.label} {tube.person_id}" if of_people else f"{tube.label}"]
    return int(checksum(*parts), 16)


def on_key_frames(tubes: Tubes, key_frames: Mapping[str, np.ndarray | None]) -> dict[str, list[Tube]]:
    """Predicted tubes without the boxes in frames of which nothing is known.

    `key_frames`: of each video the frames that count, None: all. A tube keeps its own score; one without a key frame is
    left out.
    """
    kept: dict[str, list[Tube]] = {name: [] for name in tubes}
    for name, of_video in tubes.items():
        for tube in of_video:
            if key_frames[name] is not None:
                rows = np.isin(tube.frames, key_frames[name])
                scores = None if tube.frame_scores is None else tube.frame_scores[rows]
                tube = replace(tube, frames=tube.frames[rows], boxes=tube.boxes[rows], frame_scores=scores)
            if len(tube):
                kept[name].append(tube)
    return kept


def label_frames(
    frames: np.ndarray,
    boxes: np.ndarray,
    gt: Sequence[Tube],
    iou_th: float,
    no_action: int,
    key_frames: np.ndarray | None = None,
) -> np.ndarray:
    """The action of each frame of a track: int64 (T,).

    `frames` int64 (T,), `boxes` (T, 4) xyxy; in each frame the annotated tube that overlaps most gives its label if
    the IoU is above `iou_th`; `no_action` where there is none, or where that person does nothing (label -1). Equal
    overlaps, as of one person with two actions, go to the earlier tube. Where `key_frames` alone are annotated, other
    frames have label -1: nothing is known about them.
    """
    of_tubes = [tube.label if tube.label >= 0 else no_action for tube in gt]
    labels = np.array([*of_tubes, no_action], np.int64)[_nearest_tube(frames, boxes, gt, iou_th)]
    return labels if key_frames is None else np.where(np.isin(frames, key_frames), labels, -1)


def label_sets(frames: np.ndarray, boxes: np.ndarray, gt: Sequence[Tube], iou_th: float, n_classes: int) -> np.ndarray:
    """All actions of each frame of a track: uint8 (T, n_classes), 1 for those of the annotated person.

    That is whose tube `label_frames` takes, whose other arguments these are; their actions are the labels of all their
    tubes (of one `person_id`) with that frame. A frame without any is one that nothing is known about.
    """
    nearest = _nearest_tube(frames, boxes, gt, iou_th)
    person = np.array([*(tube.person_id for tube in gt), -1])[nearest]
    sets = np.zeros((len(frames), n_classes), np.uint8)
    for tube in gt:
        if tube.label >= 0:
            sets[(nearest >= 0) & (person == tube.person_id) & np.isin(frames, tube.frames), tube.label] = 1
    return sets


def _nearest_tube(frames: np.ndarray, boxes: np.ndarray, gt: Sequence[Tube], iou_th: float) -> np.ndarray:
    """The annotated tube that each box overlaps most, -1 where no IoU is above `iou_th`: int64 (T,)."""
    best, nearest = np.full(len(frames), float(iou_th)), np.full(len(frames), -1)
    for n, tube in enumerate(gt):
        _, rows, rows_of_tube = np.intersect1d(frames, tube.frames, assume_unique=True, return_indices=True)
        iou = paired_iou(boxes[rows], tube.boxes[rows_of_tube])
        better = iou > best[rows]
        best[rows[better]], nearest[rows[better]] = iou[better], n
    return nearest
