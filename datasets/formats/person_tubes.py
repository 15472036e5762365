"""A person's boxes in frames as tubes, and tubes as one track a person."""

from collections.abc import Mapping, Sequence

import numpy as np

from datasets.formats.common import RawTube, RawVideo, box_array, whole_numbers
from utils.misc import counted


def tubes_of_person(
    annotated: Mapping[int, Mapping[str | None, Sequence[float]]], person_id: int | None, place: str = ""
) -> list[RawTube]:
    """A person's boxes as tubes: an action's tube lasts while each annotated frame has the action.

    Frames without a box do not end a tube (they are gaps); frames without any action form tubes of label None.

    Args:
        annotated: frame -> action -> box, xyxy pixels.
    """
    frames = sorted(annotated)
    of_frame = [{k: v for k, v in annotated[f].items() if k is not None} or annotated[f] for f in frames]
    tubes = []
    for label in dict.fromkeys(label for boxes in of_frame for label in boxes):
        rows = np.flatnonzero([label in boxes for boxes in of_frame])
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            boxes = box_array([of_frame[row][label] for row in run])
            tubes.append(RawTube(whole_numbers([frames[row] for row in run]), boxes, label, person_id, place=place))
    return tubes


def fill_between(annotated: Mapping[int, Mapping], ends: Mapping[int, int]) -> dict[int, dict]:
    """`annotated` (`tubes_of_person`) with the frames from some of its frames to later ones, `ends`: boxes move
    linearly, and the actions of the earlier frame hold."""
    filled = {frame: dict(actions) for frame, actions in annotated.items()}
    for frame, end in ends.items():
        for action, box in annotated[frame].items():
            after = annotated[end].get(action, next(iter(annotated[end].values())))
            a, b = np.asarray(box, float), np.asarray(after, float)
            for between in range(frame + 1, end):
                filled.setdefault(between, {})[action] = a + (b - a) * ((between - frame) / (end - frame))
    return filled


def frame_step(frames: np.ndarray) -> int:
    """The step k where boxes are in every k-th frame only, 1 where in fewer than three; `frames` (R,), of the boxes."""
    frames = np.unique(frames)
    return int(np.gcd.reduce(np.diff(frames))) if len(frames) > 2 else 1


def fill_steps(annotated: Mapping[int, Mapping], step: int) -> dict[int, dict]:
    """`fill_between` frames that are `step` apart."""
    return fill_between(annotated, {frame: frame + step for frame in annotated if frame + step in annotated})


def tracks_of(tubes: Sequence[RawTube]) -> list[list[RawTube]]:
    """The tubes of each person in order of time, as formats with one action a frame take them.

    A tube that shares a frame with one before it (a second action at the same time) goes to a further list.
    """
    tracks: dict[int, list[list[RawTube]]] = {}
    for tube in sorted(tubes, key=lambda tube: (tube.frames[0], tube.label is None)):
        of_person = tracks.setdefault(tube.person_id, [])
        free = (t for t in of_person if not any(np.intersect1d(tube.frames, other.frames).size for other in t))
        track = next(free, None)
        if track is None:
            of_person.append(track := [])
        track.append(tube)
    return [track for of_person in tracks.values() for track in of_person]


def second_actions(videos: Mapping[str, RawVideo]) -> list[str]:
    """A line about tubes that `tracks_of` could not leave with their person."""
    n = sum(len(tracks_of(v.tubes)) - len({tube.person_id for tube in v.tubes}) for v in videos.values())
    return [f"{counted(n, 'track')} of a second action at the same time: people of their own"] if n else []


def joined_tubes(videos: Mapping[str, RawVideo]) -> list[str]:
    """A line about action tubes that `tubes_of_person` joins to another: an action that ends, and is done again before
    its person has a box without it."""
    n = 0
    for video in videos.values():
        people: dict[int, dict[int, dict]] = {}
        for tube in video.tubes:
            for frame, box in zip(tube.frames.tolist(), tube.boxes, strict=True):
                people.setdefault(tube.person_id, {}).setdefault(frame, {})[tube.label] = box
        read = [tube for person, annotated in people.items() for tube in tubes_of_person(annotated, person)]
        n += sum(tube.label is not None for tube in video.tubes) - sum(tube.label is not None for tube in read)
    return [f"{counted(n, 'tube')}: read back as part of another of the same person and action"] if n else []
