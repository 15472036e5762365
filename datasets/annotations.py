"""Every annotation format as the same checked tubes: the one place where annotations are checked."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.config import Project
from datasets.faults import (
    AnnotationFault,
    box_faults,
    boxes_beyond_border,
    impossible_boxes,
    print_warnings,
    refuse,
    two_boxes_of_one_person,
)
from datasets.formats.common import AnnotationFile, RawTube
from utils.box_ops import Tube, frames_and_boxes
from utils.misc import InputError, counted, tell

TAIL = 3  # frames: UCF101's videos may decode to a few frames fewer than were annotated
SHOWN_LABELS = 30
SKIP_BAD = "; correct it, or leave such videos out with --skip_bad"


@dataclass(frozen=True)
class Video:
    """A video's ground truth; width, height and n_frames are 0 where the annotation does not say. `key_frames` and
    `empty_frames` as of `datasets.formats.common.RawVideo`."""

    name: str
    width: int
    height: int
    n_frames: int
    tubes: list[Tube]
    key_frames: np.ndarray | None = None
    empty_frames: np.ndarray | None = None


def read_annotations(
    project: Project,
    names: Iterable[str] | None = None,
    bad: dict[str, str] | None = None,
) -> dict[str, Video]:
    """Read and check the ground truth of a project.

    Boxes are float32 xyxy pixels as annotated; frames and labels count from 0, label -1 is a person without action.
    Faults that leave a video usable are warnings on stderr, one line a kind.

    Args:
        names: videos to read; None: all that are annotated.
        bad: videos that cannot be used are left out and entered here (name -> why).

    Raises:
        InputError: names file, video and frame of the first fault that makes a video unusable, unless `bad` is given.
    """
    file = project.annotation_file
    for note in file.notes:
        tell(f"warning: {note}")
    chosen = file.videos if names is None else names
    return keep_usable(str(file.path), chosen, lambda name: read_used_frames(name, file, project), bad, SKIP_BAD)


def keep_fitting(
    project: Project,
    videos: Mapping[str, Video],
    decoded: Mapping[str, Mapping],
    bad: dict[str, str] | None = None,
) -> dict[str, Video]:
    """The `videos`, as annotated, that keep to the rules as they decode too: `decoded` has each one's `width`, `height`
    and `n_frames`. `bad`, warnings and errors as of `read_annotations`."""

    def compared(name: str) -> tuple[Video, list[AnnotationFault]]:
        width, height, n_frames = (decoded[name][key] for key in ("width", "height", "n_frames"))
        return videos[name], fit_to_video(videos[name], (width, height), n_frames)[1]

    return keep_usable(str(project.annotations), videos, compared, bad, SKIP_BAD)


def keep_usable(
    where: str,
    names: Iterable[str],
    checked: Callable[[str], tuple[Video, list[AnnotationFault]]],
    bad: dict[str, str] | None = None,
    remedy: str = "",
) -> dict[str, Video]:
    """The videos that `checked` gives without a refused fault; the others enter `bad`, or without it are errors.

    Prints the faults that leave a video usable, as warnings. `where` begins each line, `remedy` ends an error's.
    """
    videos, warnings = {}, []
    for name in names:
        try:
            video, faults = checked(name)
            refuse(faults)
        except InputError as error:
            if bad is None:
                raise InputError(f"{where}: {error}{remedy}") from None
            bad[name] = f"{where}: {error}"
            continue
        videos[name] = video
        warnings += faults
    print_warnings(where, warnings)
    return videos


def frames_that_count(videos: Mapping[str, Video], project: Project) -> dict[str, np.ndarray | None]:
    """Of each video the frames that predictions are evaluated in: its key frames, None where all frames count.

    All do also where AVA's csv counts frames and most rows are of consecutive ones (MultiSports): a prediction that
    goes on after an action is an error of time there.
    """

    def frames(keys: np.ndarray | None) -> np.ndarray | None:
        dense = keys is not None and not project.annotation_file.sampled
        return None if dense and 2 * (np.diff(keys) == 1).sum() >= len(keys) else keys

    return {name: frames(video.key_frames) for name, video in videos.items()}


def count_lines(videos: Mapping[str, Video], labels: Sequence[str]) -> list[str]:
    """How many videos, people, tubes, boxes, and tubes of each label there are, in two lines."""
    tubes = [tube for video in videos.values() for tube in video.tubes]
    without = sum(not video.tubes for video in videos.values())
    people = sum(len({tube.person_id for tube in video.tubes}) for video in videos.values())
    of_label = Counter(tube.label for tube in tubes)
    named = [f"{label} {of_label[i]}" for i, label in enumerate(labels)]
    named += [f"no action {of_label[-1]}"] * (-1 in of_label)
    return [
        f"{counted(len(videos), 'video')} ({without} without tubes), people {people}, tubes {len(tubes)}, "
        f"boxes {sum(map(len, tubes))}",
        "tubes by label: " + (", ".join(named) or "none"),
    ]


def read_video(name: str, file: AnnotationFile, labels: Sequence[str]) -> tuple[Video, list[AnnotationFault]]:
    """Check a video's tubes against `RULES`, with the frame size and number of frames that the annotation states.

    A tube with a refused fault is left out, one with dropped boxes loses them. Label indices refer to the annotation
    file's labels where it has some, and become those of `labels` by name. A person id that is missing or negative
    becomes the tube's index, or another free number. A tube without action loses frames in which its person has one.

    Raises:
        InputError: the annotation has no such video.
    """
    if name not in file.videos:
        raise InputError(f"the annotation has no video {name!r}")
    raw = file.videos[name]
    if min(raw.width, raw.height, raw.n_frames) < 0:
        raise InputError(f"video {name!r}: its size or number of frames is negative")
    persons = _person_ids(raw.tubes)
    tubes, faults = [], []
    for i, tube in enumerate(raw.tubes):
        owner = f"video {name!r}, tube {i}" + f" ({tube.place})" * bool(tube.place)
        boxes = np.asarray(tube.boxes, np.float64)
        masks = impossible_boxes(tube.frames, boxes, raw.n_frames) | boxes_beyond_border(boxes, raw.width, raw.height)
        tube_faults = box_faults(owner, masks, tube.frames, boxes)
        try:
            label = _label_index(tube.label, file.labels, labels)
        except ValueError as error:
            first = tube.frames[0] if tube.place else None
            tube_faults.append(AnnotationFault("label is not in the project's labels", owner, str(error), first))
        refused = [fault for fault in tube_faults if fault.refused]
        faults += refused or tube_faults
        keep = ~masks["box is empty"]
        if keep.any() and not refused:
            tubes.append(Tube(tube.frames[keep], boxes[keep], label, 1.0, persons[i]))
    faults += two_boxes_of_one_person(name, tubes)
    tubes = _cut_idle_tubes(tubes)
    return Video(name, raw.width, raw.height, raw.n_frames, tubes, raw.key_frames, raw.empty_frames), faults


def read_used_frames(name: str, file: AnnotationFile, project: Project) -> tuple[Video, list[AnnotationFault]]:
    """`read_video`, in the frames that the project's sampling chooses, counted as it counts them.

    Where it chooses by time, the video's own times say which frames these are (it is opened, not decoded), and the
    annotation is compared with the frames of the file (`fit_to_video`), which are not counted later on.
    """
    video, faults = read_video(name, file, project.labels)
    if project.sampling.all_frames or file.sampled or any(fault.refused for fault in faults):
        return video, faults
    if project.sampling.rate is None and project.sampling.end is None:
        last = max([video.n_frames, *(int(tube.frames[-1]) + 1 for tube in video.tubes)])
        chosen = np.arange(0, last, project.sampling.stride)
    else:
        frames = project.open_video(name)
        chosen = frames.chosen()
        video, own_faults = fit_to_video(video, frames.size, len(frames.own_times))
        faults += own_faults
    tubes, between, after = [], [], []
    for tube in video.tubes:
        rows = np.searchsorted(tube.frames, chosen)
        used = np.append(tube.frames, -1)[rows] == chosen
        if used.any():
            tubes.append(replace(tube, frames=np.flatnonzero(used), boxes=tube.boxes[rows[used]]))
        else:
            (after if tube.frames[0] > chosen.max(initial=-1) else between).append(tube)
    for kind, unused in (("frame lies between those used", between), ("frame is after the last one used", after)):
        if unused:
            owner = f"video {name!r}, frame {unused[0].frames[0]} of the file"
            faults.append(AnnotationFault(kind, owner, kind, count=len(unused)))
    listed = {}
    for field in ("key_frames", "empty_frames"):
        frames = getattr(video, field)
        listed[field] = None if frames is None else np.flatnonzero(np.isin(chosen, frames))
    return replace(video, n_frames=len(chosen) if video.n_frames else 0, tubes=tubes, **listed), faults


def fit_to_video(video: Video, size: tuple[int, int], n_frames: int) -> tuple[Video, list[AnnotationFault]]:
    """Compare an annotation with the `size` (width, height) and number of frames that decode.

    Returns:
        The video with its decoded size, without the boxes after its last frame; and what is wrong: up to `TAIL`
        frames too many are a difference between decoders, boxes beyond that are refused.
    """
    owner = f"video {video.name!r}"
    stated = video.width or size[0], video.height or size[1]
    if stated != size:
        text = f"{size[0]} x {size[1]} pixels, but annotated as {stated[0]} x {stated[1]}"
        return video, [AnnotationFault("size is not the video's", owner, text)]
    tubes, faults = [], []
    if video.n_frames and abs(video.n_frames - n_frames) > TAIL:
        text = f"{n_frames} frames decode, but {video.n_frames} are annotated"
        faults.append(AnnotationFault("number of frames is not the video's", owner, text))
    for tube in video.tubes:
        masks = {
            "frame is beyond the video's end": tube.frames >= n_frames + TAIL,
            "frame is after the last decoded one": (tube.frames >= n_frames) & (tube.frames < n_frames + TAIL),
        }
        if not (video.width and video.height):  # otherwise done when the annotation was read
            masks |= boxes_beyond_border(tube.boxes, *size)
        tube_faults = box_faults(owner, masks, tube.frames, tube.boxes, f" ({n_frames} frames decode)")
        refused = [fault for fault in tube_faults if fault.refused]
        faults += refused or tube_faults
        keep = tube.frames < n_frames
        if keep.any():
            tubes.append(replace(tube, frames=tube.frames[keep], boxes=tube.boxes[keep]))
    width, height = size
    return replace(video, width=width, height=height, n_frames=n_frames, tubes=tubes), faults


def box_columns(tubes: Sequence[Tube]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The N boxes of tubes, one tube after another: frames (N,), boxes float32 (N, 4), person ids (N,), labels (N,)."""
    of_tubes = np.array([(tube.person_id, tube.label) for tube in tubes], np.int64).reshape(-1, 2)
    persons, labels = of_tubes.repeat([len(tube) for tube in tubes], axis=0).T
    return *frames_and_boxes(tubes), persons, labels


def annotated_boxes(video: Video) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A video's boxes by rising frame, a person once in each: frames (G,), boxes (G, 4), person ids (G,), int64."""
    frames, boxes, persons, _ = box_columns(video.tubes)
    _, first = np.unique([frames, persons], axis=1, return_index=True)  # sorted by frame, then person
    return frames[first], boxes[first], persons[first]


def _label_index(label: int | str | None, file_labels: Sequence[str], labels: Sequence[str]) -> int:
    """The label's index in the project's `labels`, -1 for no action; ValueError where they lack it."""
    if label is None or label == -1:
        return -1
    if isinstance(label, int):
        names, owner = (file_labels, "annotation") if file_labels else (labels, "project")
        if not 0 <= label < len(names):
            raise ValueError(f"label {label} is not an index of the {owner}'s {len(names)} labels, counted from 0")
        label = names[label]
    if label in labels:
        return labels.index(label)
    shown = ", ".join(labels[:SHOWN_LABELS]) + f" and {len(labels) - SHOWN_LABELS} more" * (len(labels) > SHOWN_LABELS)
    raise ValueError(f"label {label!r} is not among {shown}")


def _person_ids(tubes: Sequence[RawTube]) -> list[int]:
    """The tubes' person ids; one that is missing becomes the tube's index, or a free number where that is taken."""
    given = {tube.person_id for tube in tubes}
    free = (n for n in itertools.count(len(tubes)) if n not in given)
    return [
        tube.person_id if tube.person_id is not None and tube.person_id >= 0 else next(free) if i in given else i
        for i, tube in enumerate(tubes)
    ]


def _cut_idle_tubes(tubes: list[Tube]) -> list[Tube]:
    """The tubes, those without action cut to the frames in which their person has none.

    Else a person's track beside the tubes of its actions would teach that nothing is done there.
    """
    active: dict[int, list[np.ndarray]] = {}
    for tube in tubes:
        if tube.label >= 0:
            active.setdefault(tube.person_id, []).append(tube.frames)
    kept = []
    for tube in tubes:
        if tube.label < 0 and tube.person_id in active:
            keep = ~np.isin(tube.frames, np.concatenate(active[tube.person_id]))
            tube = replace(tube, frames=tube.frames[keep], boxes=tube.boxes[keep])
        if len(tube):
            kept.append(tube)
    return kept
