"""The synthetic data set's annotation in the layouts of public data sets, each with a project file, `project.yml`.

What a layout cannot hold is lost: boxes between key frames in AVA's; people's ids, people without an action and gaps (a
tube is cut there) in UCF101-24's. JHMDB21 and MultiSports have pickles, which this program does not write.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from utils.storage.files import atomic, write_text

MAT_TEXT = b"MATLAB 5.0 MAT-file".ljust(116)  # how the file begins; SciPy would add the time of day
KEY_SECOND = 900  # of the first frame, as of AVA's videos cut from 15:00
DEFAULTS = {"qmm_psn_score_th": 0.5, "qmm_iou_th": 0.3, "psn_score_th": 0.8, "iou_th": 0.3, "sim_th": 0.4}
Subsets = Mapping[str, Sequence[str]]


def write_ava(root: Path, content: Mapping, subsets: Subsets, fps: float) -> dict:
    """AVA's csv at one key frame a second in `annotations/`, and the label map.

    A person without an action is a row of a class outside the map, a key frame without people one of two columns.
    """
    step, idle = round(fps), len(content["labels"])
    for subset, names in subsets.items():
        lines = []
        for name in names:
            video = content["videos"][name]
            seconds = {frame: f"{name},{KEY_SECOND + frame // step:04d}" for frame in range(0, video["n_frames"], step)}
            sides, used = np.array([video["width"], video["height"]] * 2), set()
            for tube in video["tubes"]:
                number = 1 + (idle if tube["label"] is None else tube["label"])
                for frame, box in zip(tube["frames"], tube["boxes"], strict=True):
                    if frame in seconds:
                        corners = ",".join(f"{x:.4f}" for x in (np.array(box) / sides).clip(0, 1))
                        lines.append(f"{seconds[frame]},{corners},{number},{tube['person_id']}\n")
                        used.add(frame)
            lines += [f"{second}\n" for frame, second in seconds.items() if frame not in used]
        write_text(root / "annotations" / f"ava_{subset}.csv", "".join(lines))
    items = (f'item {{\n  name: "{label}"\n  id: {i}\n}}\n' for i, label in enumerate(content["labels"], 1))
    write_text(root / "annotations" / "ava_action_list.pbtxt", "".join(items))
    return {
        "format": "ava", "annotations": "annotations", "subsets": {subset: f"ava_{subset}.csv" for subset in subsets},
        "label_map": "ava_action_list.pbtxt", "other_classes": True,
        "rate": 1, "start": KEY_SECOND, "video_start": KEY_SECOND,
        "splits": {subset: {"list": subset, "number": 1} for subset in subsets}, "multi_label": True,
        "defaults": {**DEFAULTS, "filter_length": 1, "min_tube_length": 1, "end_consecutive_frames": 2},
    }  # fmt: skip


def write_ucf101_24(root: Path, annotation: Mapping, subsets: Subsets, _: float) -> dict:
    """The corrected annotations' `finalAnnots.mat`: left, top, width, height in frames of 320 x 240; frames and classes
    from 1."""
    import scipy.io

    rows = []
    for name, video in annotation["videos"].items():
        tubes = [
            (label + 1, frames[-1] + 1, frames[0] + 1, np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1))
            for label, frames, boxes in whole_tubes(video)
        ]
        rows.append((name, video["n_frames"], np.array(tubes, [(key, "O") for key in ("class", "ef", "sf", "boxes")])))
    content = np.array(rows, [(key, "O") for key in ("name", "num_imgs", "tubes")])
    scipy.io.savemat(file := io.BytesIO(), {"annot": content}, do_compression=True)
    with atomic(root / "finalAnnots.mat") as part:
        part.write_bytes(MAT_TEXT + file.getvalue()[len(MAT_TEXT) :])
    return {
        "format": "ucf101-24", "annotations": "finalAnnots.mat", "labels": list(annotation["labels"]),
        "splits": {subset: f"{subset}.txt" for subset in subsets}, "defaults": {**DEFAULTS, "filter_length": 4},
    }  # fmt: skip


LAYOUTS: dict[str, Callable[[Path, Mapping, Subsets, float], dict]] = {
    "ava": write_ava,
    "ucf101-24": write_ucf101_24,
}
"""Layouts beside the project's own: a function that writes the annotation, of which it is given the project's own JSON,
the names of each subset's videos and their rate, and returns the fields of a project file."""


def whole_tubes(video: Mapping) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Label, frames and boxes of the video's action tubes, cut at gaps."""
    for tube in video["tubes"]:
        if tube["label"] is not None:
            frames, boxes = np.array(tube["frames"]), np.array(tube["boxes"])
            cuts = np.flatnonzero(np.diff(frames) > 1) + 1
            for piece in zip(np.split(frames, cuts), np.split(boxes, cuts), strict=True):
                yield tube["label"], *piece
