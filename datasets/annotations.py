"""Every annotation format -> the same videos and tubes."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from datasets.project import Project
from utils.box_ops import Tube
from utils.files import read_json
from utils.misc import InputError
from utils.safe_pickle import load_pickle


@dataclass(frozen=True)
class Video:
    """An annotated video. `width`, `height` (pixels) and `n_frames` are 0 where the annotation does not say."""

    name: str
    width: int
    height: int
    n_frames: int
    tubes: list[Tube]


def load_videos(project: Project, subset: str) -> tuple[list[Video], tuple[str, ...]]:
    """The subset's videos in the order of its list, checked, and the labels.

    A tube with label -1 is a person without an annotated action: it trains the detector and identities
    and is left out of action metrics. InputError names file, video and frame of what cannot be.
    """
    videos, labels, listed = read_annotations(project)
    names = _subset_names(project, subset, videos, listed)
    for name in names:
        project.frames_path(name)
        check_video(videos[name], len(labels), project.annotations)
    return [videos[name] for name in names], labels


def read_annotations(project: Project) -> tuple[dict[str, Video], tuple[str, ...], dict[str, list[str]]]:
    """Every annotated video by name, the labels, and the subsets that the annotation file itself lists.

    Formats: `ucf101-24` (`pyannot.pkl`, or `finalAnnots.mat` by its suffix), `jhmdb21`, `json`.
    """
    path = project.annotations
    if not path.is_file():
        raise InputError(f"{path}: no such annotation file; put the data set there or change --data_root")
    readers = {"json": _read_own, "jhmdb21": _read_jhmdb}
    readers["ucf101-24"] = _read_ucf_mat if path.suffix == ".mat" else _read_ucf_pickle
    try:
        videos, labels, listed = readers[project.format](path, project.labels)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: does not fit the format {project.format} ({error!r:.120})") from None
    if not labels:
        raise InputError(f"{project.path}: neither it nor {path.name} names labels")
    return {video.name: video for video in videos}, tuple(labels), listed


def _subset_names(project: Project, subset: str, videos: dict, listed: dict[str, list[str]]) -> list[str]:
    if subset not in project.splits:
        raise InputError(f"--subset {subset}: {project.path} has only {', '.join(project.splits)}")
    source = project.splits[subset]
    if source == "annotations":
        names = listed.get(subset, [])
    elif source == "rest":
        others = [s for s, value in project.splits.items() if value not in ("rest", "annotations")]
        taken = {name for other in others for name in _read_list(project.root / project.splits[other])}
        names = [name for name in videos if name not in taken]
    else:
        names = _read_list(project.root / source)
        if missing := [name for name in names if name not in videos]:
            raise InputError(
                f"{project.root / source}: video {missing[0]!r} (and {len(missing) - 1} more) "
                f"is not in {project.annotations.name}"
            )
    if not names:
        raise InputError(f"{project.path}: subset {subset!r} has no videos")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{project.path}: subset {subset!r} names video {twice!r} twice")
    return names


def _read_list(path: Path) -> list[str]:
    """One video name a line; the class number and `.avi` that UCF101's own lists add are dropped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such split list") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file of video names") from None
    names = [line.strip() for line in lines if line.strip()]
    return [name.split(".avi")[0] if ".avi" in name else name for name in names]


def check_video(video: Video, n_labels: int, where: Path) -> None:
    """InputError for what no video can have: a frame or a label out of range, a box that is not finite or is reversed."""
    for i, tube in enumerate(video.tubes):
        at = f"{where}: video {video.name!r}, tube {i}"
        if not -1 <= tube.label < n_labels:
            raise InputError(f"{at}: label {tube.label}, but there are {n_labels} labels")
        if len(tube) and (tube.frames[0] < 0 or (video.n_frames and tube.frames[-1] >= video.n_frames)):
            raise InputError(f"{at}: frame {tube.frames[-1]}, but the video has {video.n_frames} frames")
        wrong = ~np.isfinite(tube.boxes).all(1) | (tube.boxes[:, 2:] < tube.boxes[:, :2]).any(1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(f"{at}, frame {tube.frames[row]}: impossible box {tube.boxes[row].tolist()}")


def _xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Corners of boxes stored as `x, y, w, h`; widened first, since uint8 sums overflow."""
    boxes = np.asarray(boxes).astype(np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _consecutive(first: int, boxes: np.ndarray, label: int, person_id: int) -> Tube:
    return Tube(np.arange(first, first + len(boxes)), boxes, label, person_id=person_id)


def _read_ucf_pickle(path: Path, labels: tuple[str, ...]) -> tuple[Iterable[Video], tuple, dict]:
    """`pyannot.pkl`: frames `sf` (from 0) up to, not including, `ef`; labels from 0."""
    videos = []
    for name, held in load_pickle(path).items():
        tubes = [
            _consecutive(int(t["sf"]), _xywh_to_xyxy(t["boxes"]), int(t["label"]), i)
            for i, t in enumerate(held["annotations"])
        ]
        videos.append(Video(name, 0, 0, int(held["numf"]), tubes))
    return videos, labels, {}


def _read_ucf_mat(path: Path, labels: tuple[str, ...]) -> tuple[Iterable[Video], tuple, dict]:
    """`finalAnnots.mat`: frames `sf` to `ef` from 1, both included; classes from 1."""
    try:
        held = loadmat(str(path))["annot"][0]
    except Exception as error:
        raise InputError(f"{path}: not a readable MATLAB file ({str(error)[:100]})") from None
    videos = []
    for row in held:
        tubes = [
            _consecutive(int(t["sf"].item()) - 1, _xywh_to_xyxy(t["boxes"]), int(t["class"].item()) - 1, i)
            for i, t in enumerate(row["tubes"].ravel())
        ]
        videos.append(Video(str(row["name"].item()), 0, 0, int(row["num_imgs"].item()), tubes))
    return videos, labels, {}


def _read_jhmdb(path: Path, labels: tuple[str, ...]) -> tuple[Iterable[Video], tuple, dict]:
    """`JHMDB-GT.pkl` of the ACT detector, split 1: rows of frame (from 1), x1, y1, x2, y2."""
    held = load_pickle(path)
    if labels and list(labels) != list(held["labels"]):
        raise InputError(f"{path}: its labels are not those of the project file, or in another order")
    listed = {"train": list(held["train_videos"][0]), "val": list(held["test_videos"][0])}
    videos = []
    for name, by_label in held["gttubes"].items():
        rows = [(label, np.asarray(tube, np.float32)) for label, tubes in by_label.items() for tube in tubes]
        tubes = [
            Tube(np.rint(tube[:, 0]).astype(np.int64) - 1, tube[:, 1:5], int(label), person_id=i)
            for i, (label, tube) in enumerate(rows)
        ]
        height, width = held["resolution"][name]
        videos.append(Video(name, int(width), int(height), int(held["nframes"][name]), tubes))
    return videos, tuple(held["labels"]), listed


def _read_own(path: Path, labels: tuple[str, ...]) -> tuple[Iterable[Video], tuple, dict]:
    """The project's own JSON, described in docs/own_data.md; a label is an index, a name or null."""
    held = read_json(path, "annotation file")
    named = tuple(str(label) for label in held.get("labels", ()))
    if labels and named and labels != named:
        raise InputError(f"{path}: its labels are not those of the project file, or in another order")
    labels = labels or named
    videos = []
    for name, video in held["videos"].items():
        tubes = []
        for i, tube in enumerate(video["tubes"]):
            label = tube.get("label")
            if isinstance(label, str):
                if label not in labels:
                    raise InputError(f"{path}: video {name!r}, tube {i}: no label {label!r} in the project")
                label = labels.index(label)
            try:
                person = int(tube.get("person_id", i))
                tubes.append(Tube(tube["frames"], tube["boxes"], -1 if label is None else int(label), person_id=person))
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path}: video {name!r}, tube {i}: {error}") from None
        videos.append(Video(name, int(video["width"]), int(video["height"]), int(video["n_frames"]), tubes))
    return videos, labels, {}


def fitted(video: Video, width: int, height: int, n_frames: int, where: Path) -> Video:
    """`video` with the size and length that its frames really have; InputError where the annotation contradicts them.

    Decoders give some UCF101 videos a few frames fewer than annotated: up to 3 boxes beyond the end are dropped.
    """
    if video.width and (video.width, video.height) != (width, height):
        raise InputError(
            f"{where}: video {video.name!r} is annotated as {video.width}x{video.height} but has {width}x{height} pixels"
        )
    tubes = []
    for i, tube in enumerate(video.tubes):
        beyond = int((tube.frames >= n_frames).sum())
        if beyond > 3:
            raise InputError(
                f"{where}: video {video.name!r}, tube {i}: frame {tube.frames[-1]}, but the video has {n_frames} frames"
            )
        kept = len(tube) - beyond
        if kept:
            tubes.append(replace(tube, frames=tube.frames[:kept], boxes=tube.boxes[:kept]))
    return Video(video.name, width, height, n_frames, tubes)
