"""The synthetic data set in the layouts of ACT (JHMDB21) and MultiSports, which are pickles."""

import json
from pathlib import Path

import numpy as np
import yaml

from datasets.synthetic.layouts import DEFAULTS, whole_tubes
from tests.pickles import pickled

FILES = {"jhmdb21": "JHMDB-GT.pkl", "multisports": "multisports_GT.pkl"}


def write_pickled_layout(root: Path, layout: str) -> None:
    """Write a layout's pickle and `project.yml` beside the synthetic data set in `root`: frames from 1, corners,
    resolution (height, width)."""
    content = json.loads((root / "annotations.json").read_text())
    videos = content["videos"]
    tubes: dict[str, dict[int, list[np.ndarray]]] = {name: {} for name in videos}
    for name, video in videos.items():
        for label, frames, boxes in whole_tubes(video):
            rows = np.column_stack([frames + 1, boxes]).astype(np.float32)
            tubes[name].setdefault(label, []).append(rows)
    ground_truth = {
        "labels": content["labels"],
        "train_videos": [(root / "train.txt").read_text().split()],
        "test_videos": [(root / "val.txt").read_text().split()],
        "nframes": {name: video["n_frames"] for name, video in videos.items()},
        "resolution": {name: (video["height"], video["width"]) for name, video in videos.items()},
        "gttubes": tubes,
    }
    (root / FILES[layout]).write_bytes(pickled(ground_truth))
    project = {
        "name": f"synthetic-{layout}", "format": layout, "annotations": FILES[layout], "frames": "videos/{name}.avi",
        "splits": {"train": {"list": "train_videos", "number": 1}, "val": {"list": "test_videos", "number": 1}},
        "defaults": {**DEFAULTS, "filter_length": 4},
    }  # fmt: skip
    (root / "project.yml").write_text(yaml.safe_dump(project))
