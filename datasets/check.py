"""Read everything of a data set, count it, and name each fault with its video and frame.

python -m datasets.check --dataset path/to/own.yml
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from datasets.annotations import RULES, Video, read_video
from datasets.config import Project, load_project
from datasets.dataset import VideoFrames
from datasets.formats.readers import read_source
from datasets.make_shards import fit_to_video
from datasets.transforms import resize
from utils.box_ops import motion_category
from utils.cli import Parser, positive_int, run
from utils.misc import InputError, counted, progress
from utils.storage.files import atomic

CELL, COLUMNS, ROWS = 160, 6, 6  # of the contact sheet; pixels, pictures
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (86, 180, 233))
WORST = {"refused": "error", "dropped": "warning", "kept": "warning"}


def annotation_faults(project: Project, names: list[str]) -> tuple[dict[str, Video], list[str]]:
    """The videos whose annotations can be used, and one line for each fault of any."""
    source, lines, videos = read_source(project), [], {}
    for name in names:
        try:
            project.frames_path(name)
            video, faults = read_video(name, source.videos, project.labels)
        except InputError as error:
            lines.append(f"error: {error}")
            continue
        lines += [f"{WORST[RULES[f.kind]]}: video {name!r}, {f} ({f.count} boxes)" for f in faults]
        if all(RULES[fault.kind] != "refused" for fault in faults):
            videos[name] = video
    return videos, lines


def check_video(project: Project, video: Video) -> tuple[str | None, tuple[int, int], int, np.ndarray | None]:
    """What is wrong with a video's frames (None: nothing), its size, its number of frames and a small picture.

    Every frame is decoded. The picture is the middle frame of the longest tube, with its boxes.
    """
    path = project.frames_path(video.name)
    longest = max(video.tubes, key=len, default=None)
    wanted = int(longest.frames[len(longest) // 2]) if longest else 0
    picture, count = None, 0
    try:
        frames = VideoFrames(path)
        for count, frame in enumerate(frames, 1):
            if count - 1 == wanted:
                picture = _with_boxes(frame, video, wanted)
        if video.width and frames.size != (video.width, video.height):
            text = f"{frames.size[0]} x {frames.size[1]} pixels, annotated as {video.width} x {video.height}"
            return f"error: {path}: {text}", frames.size, count, picture
        _, dropped = fit_to_video(video.tubes, count, str(path))
    except InputError as error:
        return f"error: {error}", (0, 0), count, picture
    fault = f"warning: {path}: {dropped} boxes lie after the last frame, {count - 1}" if dropped else None
    return fault, frames.size, count, picture


def _with_boxes(frame: np.ndarray, video: Video, number: int) -> np.ndarray:
    """A cell of the contact sheet, uint8 RGB (CELL, CELL, 3)."""
    small = resize(frame, CELL).copy()
    scale = CELL / max(frame.shape[:2])
    for tube in video.tubes:
        at = np.searchsorted(tube.frames, number)
        if at < len(tube) and tube.frames[at] == number:
            x0, y0, x1, y1 = (tube.boxes[at] * scale).round().astype(int).tolist()
            cv2.rectangle(small, (x0, y0), (x1, y1), COLOURS[tube.person_id % len(COLOURS)], 2)
    cell = np.zeros((CELL, CELL, 3), np.uint8)
    cell[: small.shape[0], : small.shape[1]] = small
    return cell


def contact_sheet(pictures: list[np.ndarray], path: Path) -> None:
    """Write up to ROWS x COLUMNS cells, spread over the list, as one PNG."""
    chosen = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, ROWS * COLUMNS).astype(int))]
    chosen += [np.zeros_like(chosen[0])] * (-len(chosen) % COLUMNS)
    rows = [np.hstack(chosen[i : i + COLUMNS]) for i in range(0, len(chosen), COLUMNS)]
    ok, data = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    if not ok:
        raise InputError(f"{path}: the contact sheet cannot be encoded")
    with atomic(path) as part:
        part.write_bytes(data.tobytes())


def _spread(values: list[float]) -> str:
    if not values:
        return "none"
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{low:g} to {high:g}, median {middle:g}"


def summary(project: Project, videos: dict[str, Video]) -> Iterator[str]:
    """Lines about the annotation: counts, lengths, sizes, motion, labels."""
    tubes = [tube for video in videos.values() for tube in video.tubes]
    people = sum(len({t.person_id for t in video.tubes}) for video in videos.values())
    empty = sum(not video.tubes for video in videos.values())
    yield f"videos {len(videos)} ({empty} without tubes), people {people}"
    yield f"tubes {len(tubes)}, boxes {sum(map(len, tubes))}"
    yield f"frames a tube: {_spread([len(tube) for tube in tubes])}"
    sides = [float(np.sqrt(np.prod(t.boxes[:, 2:] - t.boxes[:, :2], axis=1)).mean()) for t in tubes]
    yield f"box side (root of the area) in pixels: {_spread([round(side, 1) for side in sides])}"
    motion = Counter(motion_category(tube) for tube in tubes)
    yield "motion: " + ", ".join(f"{kind} {motion[kind]}" for kind in ("small", "medium", "large"))
    labels = Counter(tube.label for tube in tubes)
    names = [f"{label} {labels[i]}" for i, label in enumerate(project.labels)]
    yield "tubes by label: " + ", ".join([*names, *([f"no action {labels[-1]}"] if labels[-1] else [])])


def main() -> None:
    """The command line."""
    parser = Parser("Check a data set: read every annotation and frame, count, and name each fault.")
    parser.flag("data", "dataset", required=True, help="built-in data set, or path of a project file")
    parser.flag("data", "data_root", default="data", help="folder of the built-in data sets")
    parser.flag("data", "subset", nargs="+", help="subsets to check (default: all of the project file)")
    parser.flag("data", "annotations_only", action="store_true", help="do not decode the videos")
    parser.flag("output", "sheet", help="contact sheet to draw (default: check-<dataset>.png)")
    parser.flag("output", "workers", type=positive_int, default=2, help="videos decoded at a time")
    args = parser.parse_args()
    if args.sheet and Path(args.sheet).is_dir():
        raise InputError(f"--sheet {args.sheet}: a folder; name a PNG file")
    project = load_project(args.dataset, args.data_root)
    names: list[str] = []
    for subset in args.subset or project.splits:
        listed = project.split(subset)
        print(f"{subset}: {counted(len(listed), 'video')}")
        names += listed
    videos, lines = annotation_faults(project, list(dict.fromkeys(names)))
    for line in summary(project, videos):
        print(line)
    if not args.annotations_only:
        with ThreadPoolExecutor(args.workers) as pool:
            checks = pool.map(lambda video: check_video(project, video), videos.values())
            found = list(progress(checks, total=len(videos), desc="videos", unit="video"))
        lines += [fault for fault, _, _, _ in found if fault]
        sizes = Counter(f"{w} x {h}" for _, (w, h), _, _ in found if w)
        print("sizes: " + (", ".join(f"{size} ({n})" for size, n in sizes.most_common(5)) or "none"))
        print(f"frames a video: {_spread([count for _, _, count, _ in found if count])}")
        if pictures := [picture for _, _, _, picture in found if picture is not None]:
            sheet = Path(args.sheet or f"check-{project.name}.png")
            contact_sheet(pictures, sheet)
            print(f"contact sheet: {sheet}")
    for line in sorted(lines):
        print(line)
    errors = sum(line.startswith("error") for line in lines)
    print(f"{counted(errors, 'error')}, {counted(len(lines) - errors, 'warning')}")
    if errors:
        raise InputError(f"{args.dataset}: {counted(errors, 'fault')}, listed above, to mend before the other stages")


if __name__ == "__main__":
    run(main)
