"""Read everything of a data set, count it, and name each fault with its video and frame.

python -m datasets.check --dataset path/to/own.yml
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datasets.annotations import Video, annotated_boxes, box_columns, count_lines, fit_to_video, read_used_frames
from datasets.config import Project, load_project
from datasets.dataset import VideoFrames
from datasets.faults import AnnotationFault
from datasets.formats import AnnotationFile
from datasets.likely_mistakes import likely_mistakes, shared_videos
from datasets.transforms import resize
from utils.box_ops import motion_category
from utils.cli import Parser, positive_int, run
from utils.drawing.draw import colour_of, draw_boxes
from utils.misc import InputError, available_cores, counted, progress
from utils.storage.files import atomic

CELL, COLUMNS, ROWS = 160, 6, 6  # of the contact sheet: pixels, images


def annotation_faults(project: Project, names: Sequence[str]) -> tuple[dict[str, Video], list[str]]:
    """The videos whose annotations can be used, and one line for each fault of any."""
    file, lines, videos = project.annotation_file, [], {}
    for name in names:
        try:
            project.frames_path(name)
            video, faults = read_used_frames(name, file, project)
        except InputError as error:
            lines.append(f"error: {error}")
            continue
        lines += [_line(fault, file, name) for fault in faults]
        if not any(fault.refused for fault in faults):
            videos[name] = video
    return videos, lines


def _line(fault: AnnotationFault, file: AnnotationFile, name: str, where: str = "") -> str:
    """A fault of the video `name`, with the place in the file of formats that can say so: ", second 905 (line 33)"."""
    boxes = f", {fault.count} boxes" if fault.count > 1 else ""
    known = fault.frame is not None and hasattr(file.videos, "place")
    place = file.videos.place(name, fault.frame) if known else ""
    return f"{'error' if fault.refused else 'warning'}: {where}{fault}{boxes}{place}"


def decode(project: Project, video: Video) -> tuple[list[str], tuple[int, int] | None, int, np.ndarray | None]:
    """Decode every frame and compare the annotation with them.

    Returns:
        What is wrong; the frames' size, None where one cannot be decoded; how many decode; and a cell of the contact
        sheet: the middle frame of the longest tube, with its boxes.
    """
    path = project.frames_path(video.name)
    longest = max(video.tubes, key=len, default=None)
    shown = int(longest.frames[len(longest) // 2]) if longest else 0
    cell, n_frames = None, 0
    try:
        frames = VideoFrames(path, project.sampling)
        for n_frames, frame in enumerate(frames, 1):
            if n_frames - 1 == shown:
                cell = _with_boxes(frame, video, shown)
    except InputError as error:
        return [f"error: {error}"], None, n_frames, cell
    faults = fit_to_video(video, frames.size, n_frames)[1]
    lines = [_line(fault, project.annotation_file, video.name, f"{path}: ") for fault in faults]
    return lines, frames.size, n_frames, cell


def _with_boxes(frame: np.ndarray, video: Video, number: int) -> np.ndarray:
    """A cell of the contact sheet, uint8 RGB (CELL, CELL, 3)."""
    small = resize(frame, CELL)
    cell = np.zeros((CELL, CELL, 3), np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    frames, boxes, persons, _ = box_columns(video.tubes)
    shown = boxes[frames == number] * CELL / max(frame.shape[:2])
    draw_boxes(cell, shown, [colour_of(n) for n in persons[frames == number].tolist()], [""] * len(shown), size=12)
    return cell


def contact_sheet(cells: list[np.ndarray], path: Path) -> None:
    """Write up to ROWS x COLUMNS cells, spread over the list, as one PNG."""
    chosen = [cells[i] for i in np.unique(np.linspace(0, len(cells) - 1, ROWS * COLUMNS).astype(int))]
    chosen += [np.zeros_like(chosen[0])] * (-len(chosen) % COLUMNS)
    rows = [np.hstack(chosen[i : i + COLUMNS]) for i in range(0, len(chosen), COLUMNS)]
    _, data = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    with atomic(path) as part:
        part.write_bytes(data.tobytes())


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:g} to {high:g}, median {middle:g}"


def summary(project: Project, videos: Mapping[str, Video]) -> Iterator[str]:
    """Lines about the annotation: counts, labels, lengths, sizes, motion."""
    yield from count_lines(videos, project.labels)
    tubes = [tube for video in videos.values() for tube in video.tubes]
    yield f"frames a tube: {_spread([len(tube) for tube in tubes])}"
    sides = [float(np.sqrt(np.prod(t.boxes[:, 2:] - t.boxes[:, :2], axis=1)).mean()) for t in tubes]
    yield f"box side (root of the area) in pixels: {_spread([round(side, 1) for side in sides])}"
    motion = Counter(motion_category(tube) for tube in tubes)
    yield "motion: " + ", ".join(f"{kind} {motion[kind]}" for kind in ("small", "medium", "large"))


def crowd(videos: Mapping[str, Video], num_queries: int) -> Iterator[str]:
    """A line where more people are annotated in a frame than a detector of `num_queries` object queries can detect."""
    most = 0, "", 0
    for name, video in videos.items():
        frames, counts = np.unique(annotated_boxes(video)[0], return_counts=True)
        if len(frames) and counts.max() > most[0]:
            most = counts.max(), name, frames[counts.argmax()]
    people, name, frame = most
    if people > num_queries:
        yield f"{people} people in frame {frame} of {name!r}, but a detector of {num_queries} queries detects no more"


def several_actions(videos: Mapping[str, Video]) -> Iterator[str]:
    """A line where people do several actions in one frame, which a project without `multi_label` cannot tell."""
    several = []
    for name, video in videos.items():
        frames, _, persons, labels = box_columns([tube for tube in video.tubes if tube.label >= 0])
        actions = np.unique([persons, frames, labels], axis=1)
        same = (actions[:2, 1:] == actions[:2, :-1]).all(0)
        several += [(name, person) for person in np.unique(actions[0, 1:][same]).tolist()]
    if several:
        (name, person), n = several[0], "1 person does" if len(several) == 1 else f"{len(several)} people do"
        yield f"{n} several actions at once; one counts without multi_label: true (first: {person} in {name!r})"


def main() -> None:
    """The command line."""
    parser = Parser("Check a data set: read every annotation and frame, count, and name each fault.")
    parser.flag("data", "dataset", required=True, help="built-in data set, or path of a project file")
    parser.flag("data", "data_root", default="data", help="folder of the built-in data sets")
    parser.flag("data", "subset", nargs="+", help="subsets to check (default: all of the project file)")
    parser.flag("data", "annotations_only", action="store_true", help="do not decode the videos")
    parser.flag("data", "num_queries", type=positive_int, default=100,
                help="object queries of the detector: the most people it can detect in a frame")  # fmt: skip
    parser.flag("output", "sheet", help="contact sheet to write (default: check-<dataset>.png)")
    parser.flag("output", "workers", type=positive_int, default=available_cores(), help="videos decoded at a time")
    args = parser.parse_args()
    if args.sheet and Path(args.sheet).is_dir():
        raise InputError(f"--sheet {args.sheet}: a folder; name a PNG file")
    project = load_project(args.dataset, args.data_root)
    subsets = {subset: project.split(subset) for subset in args.subset or project.splits}
    for subset, listed in subsets.items():
        print(f"{subset}: {counted(len(listed), 'video')}")
    names = list(dict.fromkeys(name for listed in subsets.values() for name in listed))
    videos, lines = annotation_faults(project, names)
    for line in summary(project, videos):
        print(line)
    n_frames = {}
    if not args.annotations_only:
        sizes, cells = Counter(), []
        with ThreadPoolExecutor(args.workers) as pool:
            decoded = pool.map(partial(decode, project), videos.values())
            decoded = progress(decoded, total=len(videos), desc="videos", unit="video")
            for name, (faults, size, length, cell) in zip(videos, decoded, strict=True):
                lines += faults
                sizes.update([size] if size else [])
                n_frames |= {name: length} if length else {}
                cells += [] if cell is None else [cell]
        print("sizes: " + (", ".join("{} x {} ({})".format(*size, n) for size, n in sizes.most_common(5)) or "none"))
        print(f"frames a video: {_spread(list(n_frames.values()))}")
        if cells:
            sheet = Path(args.sheet or f"check-{project.name}.png")
            contact_sheet(cells, sheet)
            print(f"contact sheet: {sheet}")
    file, annotated = project.annotation_file, {}
    for name in names:
        with suppress(KeyError, InputError):
            annotated[name] = file.videos[name]
    decoded_frames = n_frames if project.sampling.all_frames else {}  # else they are not the annotation's
    hints = [*file.notes, *likely_mistakes(annotated, decoded_frames), *shared_videos(subsets)]
    hints += [*crowd(videos, args.num_queries), *([] if project.multi_label else several_actions(videos))]
    for line in sorted(lines) + [f"warning: {hint}" for hint in hints]:
        print(line)
    errors = sum(line.startswith("error") for line in lines)
    print(f"{counted(errors, 'error')}, {counted(len(lines) - errors + len(hints), 'warning')}")
    if errors:
        raise InputError(f"{args.dataset}: {counted(errors, 'fault')}, listed above, to mend before the other stages")


if __name__ == "__main__":
    run(main)
