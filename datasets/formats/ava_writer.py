"""Annotations as AVA's csv, with frames from 0 in the column of seconds, and what reads it back beside it."""

import json
from pathlib import Path

import numpy as np

from datasets.formats.common import AnnotationFile
from datasets.formats.sources import check_csv_name
from utils.misc import InputError, counted
from utils.storage.files import write_json, write_text

NO_CLASS = 0  # of a person without action; the label map lacks it


def write(file: AnnotationFile, path: Path) -> list[str]:
    """Write `path`, its label map `<stem>.pbtxt` and `<stem>.options.json`, the options that read it.

    A person's action is one tube on key frames there, whether it pauses or not.

    Raises:
        InputError: a video's size, which corners are shares of, is unknown.
    """
    rows, paused = [], 0
    for name, video in file.videos.items():
        if video.tubes and not (video.width and video.height):
            raise InputError(f"{file.path}: video {name!r}: corners of AVA's csv are shares of a size that is unknown")
        check_csv_name(name, file.path)
        paused += len(video.tubes) - len({(tube.person_id, tube.label) for tube in video.tubes})
        size = np.tile([video.width, video.height], 2)
        for tube in video.tubes:
            number = NO_CLASS if tube.label is None else file.labels.index(tube.label) + 1
            for frame, box in zip(tube.frames.tolist(), (tube.boxes / size).tolist(), strict=True):
                corners = ",".join(f"{side:.6f}" for side in box)
                rows.append((name, frame, tube.person_id, number, corners))
    lines = (f"{name},{frame},{corners},{number},{person}\n" for name, frame, person, number, corners in sorted(rows))
    write_text(path, "".join(lines))
    label_map = path.with_suffix(".pbtxt")
    names = (json.dumps(name, ensure_ascii=False) for name in file.labels)
    write_text(label_map, "".join(f"item {{\n  name: {name}\n  id: {i}\n}}\n" for i, name in enumerate(names, 1)))
    sizes = {name: [video.width, video.height] for name, video in file.videos.items() if video.tubes}
    options = {"label_map": label_map.name, "time": "frames", "start": 0, "other_classes": True, "sizes": sizes}
    write_json(path.with_suffix(".options.json"), options)
    empty = len(file.videos) - len(sizes)
    lost = [f"{counted(empty, 'video')} without tubes: a csv has no row of them"] * bool(empty)
    text = "read back as part of another of the same person and action"
    return lost + [f"{counted(paused, 'tube')}: {text}"] * bool(paused)
