"""Clips `<name>_<first second>_<last second>`, as of AVA-Kinetics; rows have their source's name and second."""

import glob
import re
from pathlib import Path

import numpy as np

from utils.ava_files import MICRO, AvaRows
from utils.misc import InputError

CLIP = re.compile(r"(.+)_(\d{6})_(\d{6})")  # source, first and last second


def in_clips(rows: AvaRows, videos: str, notes: list[str]) -> AvaRows:
    """The rows in the clips that exist at `videos` (a path with {name} in it), named as these, with seconds since their
    beginning; rows without a clip are left out, which a line of `notes` says. InputError where no row has one."""
    clips: dict[str, list[tuple[int, int, str]]] = {}
    before, _, after = Path(videos).name.partition("{name}")
    for path in sorted(Path(videos).parent.glob(f"{glob.escape(before)}*{after}")):
        name = path.stem if after == ".*" else path.name.removesuffix(after)
        if match := CLIP.fullmatch(name.removeprefix(before)):
            clips.setdefault(match[1], []).append((int(match[2]), int(match[3]), match[0]))
    clip_of_row, begins, names = np.full(len(rows.time), -1), np.zeros(len(rows.time), np.int64), {}
    for row, (video, time) in enumerate(zip(rows.video.tolist(), rows.time.tolist(), strict=True)):
        for first, last, clip in clips.get(rows.videos[video], ()):
            if first * MICRO <= time <= last * MICRO:
                clip_of_row[row], begins[row] = names.setdefault(clip, len(names)), first * MICRO
                break
    kept = clip_of_row >= 0
    if not kept.any():
        raise InputError(f"{rows.path}: no row has a clip {videos} named <name>_<first second>_<last second>")
    if not kept.all():
        text = "no clip of {video!r} has second {second}; such rows are left out ({lines})"
        notes.append(rows.line(~kept, text))
    return rows._replace(videos=list(names), video=clip_of_row, time=rows.time - begins).where(kept)
