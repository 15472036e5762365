"""The synthetic data set, rendered from a seed: `python -m datasets.synthetic`.

Written to `<data_root>/synthetic/`: `videos/<name>.avi` (Motion JPEG), `annotations.json` (the project's own format),
`train.txt` and `val.txt`. In a video one to four people act, pause and act again in front of a moving camera. Every
third video is "fast", as if recorded at a low frame rate: people dash and leap by about a body's width a frame, in most
of these videos one behind another, so that a person lands where the next one stood in the frame before. Boxes of
one person in consecutive frames then hardly overlap, and those of different people do.

Annotation: one tube an action instance; the tubes of a person follow one another and share a `person_id`. Pauses are
tubes with `"label": null` (`Tube.label` -1): they train the detector and the person encoder and count as people in
tracking, but are not ground truth of any action. A box is the visible extent within the image; in frames where less
than `MIN_VISIBLE` of a person is visible, the person is not annotated.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml

from datasets.synthetic.layouts import LAYOUTS
from datasets.synthetic.people import (
    ACTIONS,
    AT_ONCE,
    IDLE,
    LIFT,
    POSE_SIZE,
    RIGHT_ARM,
    TURN,
    Look,
    mirrored,
    paint,
    person_blobs,
    random_looks,
)
from datasets.synthetic.scenery import MARGIN, background
from utils.misc import InputError, progress, rng
from utils.storage.files import atomic, remove_parts, write_json, write_text

FPS = 25.0
MIN_VISIBLE = 0.2  # of a person's area, to be annotated
FAST_EVERY = 3  # one video in so many
QUALITY = 95  # of the JPEGs
# relative frequency of actions, 1 by default: fast videos show those that travel
FAST_ODDS = {"run": 40.0, "jump": 15.0}
SLOW_ODDS = {"run": 0.4, "jump": 0.6}
IN_LINE = 0.9  # share of the fast videos whose people move one behind another
# kernels that smooth poses and directions, by `fast`
_BLEND = {False: np.array([1, 2, 3, 2, 1]) / 9, True: np.array([1, 2, 1]) / 4}


class Stretch(NamedTuple):
    """A person's action in frames [first, end); label -1 is a pause, `period` and `speed` scale the action's own;
    `second` is another action at the same time, or -1."""

    label: int
    first: int
    end: int
    period: float
    speed: float
    second: int = -1


@dataclass(frozen=True)
class Scene:
    """A video before rendering: T frames, P people; lengths in image heights.

    poses: (T, P, POSE_SIZE). feet: (T, P, 2), on the floor. labels: int (T, P), -1 without action;
    `second_labels` likewise. stature: (P,). camera: (T, 3), shift right, shift down, zoom.
    """

    width: int
    height: int
    background: np.ndarray
    looks: list[Look]
    poses: np.ndarray
    feet: np.ndarray
    labels: np.ndarray
    stature: np.ndarray
    camera: np.ndarray
    second_labels: np.ndarray


def _script(random: np.random.Generator, n_frames: int, fast: bool) -> list[Stretch]:
    """Stretches that cover the video: pause, action, pause, another action, ... No action is repeated before all have
    been chosen, since an action tube holds all frames of a person's action."""
    pace = min(1.0, n_frames / 48)
    pauses, acts, odds = ((2, 6), (20, 36), FAST_ODDS) if fast else ((6, 14), (16, 30), SLOW_ODDS)
    chances = np.array([odds.get(name, 1.0) for name in ACTIONS])
    stretches: list[Stretch] = []
    left: list[int] = []
    start, acting = 0, random.random() < 0.2
    while start < n_frames:
        long = max(2, round(pace * random.integers(*(acts if acting else pauses), endpoint=True)))
        label = -1
        if acting and n_frames - start >= 12 * pace:
            left = left or list(range(len(chances)))
            label = int(random.choice(left, p=chances[left] / chances[left].sum()))
            left.remove(label)
        end = start + long if n_frames - start - long >= 3 else n_frames
        stretches.append(Stretch(label, start, end, *random.uniform(0.87, 1.15, 2)))
        start, acting = end, not acting
    return stretches


def _with_second_actions(script: list[Stretch], share: float, random: np.random.Generator) -> list[Stretch]:
    """The script where a share of the actions that allow it (`AT_ONCE`) come with a second one."""
    names = list(ACTIONS)
    allowed = {names.index(first): names.index(second) for first, second in AT_ONCE.items()}
    return [
        s._replace(second=allowed[s.label]) if s.label in allowed and random.random() < share else s for s in script
    ]


def _smooth(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution along the last axis, the ends repeated."""
    wide = len(kernel) // 2
    padded = np.pad(values.astype(np.float64), [(0, 0)] * (values.ndim - 1) + [(wide, wide)], mode="edge")
    return np.apply_along_axis(np.convolve, -1, padded, kernel, "valid")


def _perform(
    script: list[Stretch], start: float, way: float, bounds: tuple[float, float], stature: float, dash: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One person's poses (T, POSE_SIZE), horizontal positions (T,), labels (T,) and those of second actions (T,).

    The path begins at `start`, to the right (`way` 1) or left (-1), and turns back at `bounds`. `dash` (T,) is the
    distance of a dash in each frame, 0 in videos that are not fast.
    """
    fast, n_frames, names = bool(dash.any()), script[-1].end, list(ACTIONS)
    frames, labels, second = np.arange(n_frames), np.full(n_frames, -1), np.full(n_frames, -1)
    shares, speeds = np.zeros((2, len(script), n_frames))
    poses = np.zeros((len(script), n_frames, POSE_SIZE))
    for i, (label, first, end, period, speed, second_label) in enumerate(script):
        action = IDLE if label < 0 else ACTIONS[names[label]]
        labels[first:end], shares[i, first:end] = label, 1
        poses[i] = [action.pose(c) for c in (frames - first) / (action.period * period)]
        if second_label >= 0:
            other, second[first:end] = ACTIONS[names[second_label]], second_label
            at_once = np.array([other.pose(c) for c in (frames - first) / (other.period * period)])
            poses[i, :, RIGHT_ARM] = at_once[:, RIGHT_ARM]
        speeds[i] = action.speed * stature * speed
        if fast and action is ACTIONS["run"]:
            speeds[i] = dash
        elif fast and action is ACTIONS["jump"]:  # a leap carries its person only while the feet are off the floor
            speeds[i] = dash * (poses[i, :, LIFT] > 0.02)
    speed = (speeds * (shares if fast else _smooth(shares, _BLEND[False]))).sum(0)
    pose = np.einsum("kt,ktd->td", _smooth(shares, _BLEND[fast]), poses)
    low, span = bounds[0], bounds[1] - bounds[0]
    turns = (start - low + way * np.concatenate([[0], np.cumsum(speed)[:-1]])) / span
    back = np.floor(turns) % 2 == 1
    x = low + span * np.where(back, 1 - turns % 1, turns % 1)
    pose[:, TURN] *= _smooth(way * np.where(back, -1.0, 1.0), _BLEND[True])
    return pose, x, labels, second


def plan(
    random: np.random.Generator,
    n_frames: int,
    width: int,
    height: int,
    max_people: int = 4,
    fast: bool = False,
    two_at_once: float = 0.0,
) -> Scene:
    """A random scene: people, their actions and positions, the background and the camera's motion."""
    if fast:
        n = int(random.integers(min(2, max_people), min(3, max_people), endpoint=True))
    else:
        odds = 1 / np.arange(2, max_people + 2)  # the more people, the rarer
        n = 1 + int(random.choice(max_people, p=odds / odds.sum()))
    aspect = width / height
    bounds = (0.12, aspect - 0.12)
    span = bounds[1] - bounds[0]
    spread = random.permutation((np.arange(n) + random.uniform(0.2, 0.8, n)) / n)
    near = 0.1 + 0.4 * spread if fast else spread
    stature = (0.4 + 0.26 * near) * random.uniform(0.9, 1.1, n)
    order = random.permutation(n)
    ways = random.choice([-1.0, 1.0], n)
    in_line = fast and random.random() < IN_LINE
    step = stature.mean() * random.uniform(0.75, 0.95)
    dash = np.repeat(step * random.uniform(0.8, 1.2, (n_frames, 1)), n, 1)
    limits = [bounds] * n
    if in_line:  # each has bounds of its own, so that all turn back together
        gap = min(step, 0.8 * span / n)
        limits = [(bounds[0] + gap * i, bounds[1] - gap * (n - 1 - i)) for i in order]
        starts = np.array([low for low, _ in limits]) + random.uniform(0, span - gap * (n - 1))
        scripts, ways[:] = [_script(random, n_frames, fast)] * n, ways[0]
    else:
        dash *= random.uniform(0.8, 1.2, dash.shape)
        starts = bounds[0] + span * (order + random.uniform(0.2, 0.8, n)) / n
        scripts = [_script(random, n_frames, fast) for _ in range(n)]
    if two_at_once:  # draws of its own, so that all else stays the same
        spare = rng(int(1e9 * spread.sum()), n_frames)
        scripts = [_with_second_actions(script, two_at_once, spare) for script in scripts]
    acts = [_perform(scripts[i], starts[i], ways[i], limits[i], stature[i], dash[:, i] * fast) for i in range(n)]
    poses, x, labels, second_labels = (np.stack(parts, 1) for parts in zip(*acts, strict=True))
    for p in np.flatnonzero(random.random(n) < 0.5):
        poses[:, p] = mirrored(poses[:, p])
    feet = np.stack([x, np.broadcast_to(0.74 + 0.22 * near, x.shape)], -1)
    time = np.arange(n_frames)[:, None]
    swing = np.sin(2 * np.pi * (time / random.uniform(35, 110, 3) + random.random(3)))
    shake = _smooth(random.standard_normal((3, n_frames)), np.ones(5) / 5).T
    camera = swing * random.uniform(0, [0.1, 0.025, 0.06]) + shake * random.choice([0.0, 1.0]) * [0.012, 0.012, 0.004]
    camera[:, 2] += 1
    scenery = background(random, width, height)
    looks = random_looks(random, n)
    return Scene(width, height, scenery, looks, poses, feet, labels, stature, camera, second_labels)


def render(scene: Scene, t: int, shown: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render frame `t` with the people `shown` (default: all) and the shadows of all.

    Returns:
        frame: uint8 BGR (H, W, 3).
        boxes: float64 (P, 4), xyxy in pixels, the visible extent; zeros for people who are not visible.
        seen: float64 (P,), the visible share of each person's area.
    """
    width, height, (right, down, zoom) = scene.width, scene.height, scene.camera[t]
    fine = max(2, round(480 / height))
    middle = np.array([width / height, 1]) / 2
    feet = ((scene.feet[t] - middle - [right, down]) * zoom + middle) * height
    stature = scene.stature * zoom * height

    scale = scene.background.shape[0] / (1 + 2 * MARGIN)
    corner = (middle * (1 - 1 / zoom) + [right, down] + MARGIN) * scale
    grid = np.array([[scale / zoom / height, 0, corner[0]], [0, scale / zoom / height, corner[1]]])
    frame = cv2.warpAffine(scene.background, grid, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    shade = np.zeros((height, width), np.uint8)
    for (x, y), tall in zip(feet, stature, strict=True):
        cv2.ellipse(shade, ((x, y - 0.01 * tall), (0.34 * tall, 0.08 * tall), 0), 255, -1, cv2.LINE_AA)
    frame = frame * (1 - shade[..., None] * np.float32(0.4 / 255))

    canvas = np.zeros((height * fine, width * fine, 4), np.uint8)
    area = np.zeros(len(feet))
    for p in sorted(range(len(feet)) if shown is None else shown, key=lambda i: feet[i, 1]):
        blobs = person_blobs(scene.poses[t, p], scene.looks[p], feet[p] * fine, stature[p] * fine)
        points = np.concatenate([outline for outline, _ in blobs])
        low, high = np.floor(points.min(0)).astype(int) - 1, np.ceil(points.max(0)).astype(int) + 2
        alone = np.zeros((high - low)[::-1], np.uint8)
        paint(alone, blobs, 1, tuple(low))
        area[p] = np.count_nonzero(alone)
        paint(canvas, blobs, p + 1)
    boxes, seen = np.zeros((len(feet), 4)), np.zeros(len(feet))
    person = np.ascontiguousarray(canvas[..., 3])  # from 1; 0 where nobody is
    for p in np.flatnonzero(area):
        mask = (person == p + 1).view(np.uint8)
        if n_visible := cv2.countNonZero(mask):
            x, y, wide, high = cv2.boundingRect(mask)
            boxes[p] = np.array([x, y, x + wide, y + high]) / fine
            seen[p] = n_visible / area[p]
    canvas[..., 3] = 255 * (person > 0)
    people = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    frame = frame * (1 - people[..., 3:] / 255) + people[..., :3]
    return np.clip(np.round(frame), 0, 255).astype(np.uint8), boxes, seen


def _tubes(scene: Scene, boxes: np.ndarray, seen: np.ndarray) -> list[dict]:
    """Annotated tubes of the boxes (T, P, 4) and visible shares (T, P) of all frames."""
    tubes = []
    for p, both in enumerate(zip(scene.labels.T, scene.second_labels.T, strict=True)):
        for labels, min_label in zip(both, (-1, 0), strict=True):  # a pause is a tube, no second action is none
            for span in np.split(np.arange(len(labels)), np.flatnonzero(np.diff(labels)) + 1):
                frames, label = span[seen[span, p] >= MIN_VISIBLE], int(labels[span[0]])
                if len(frames) and label >= min_label:
                    corners = np.round(boxes[frames, p], 2).tolist()
                    label = None if label < 0 else label
                    tubes.append({"label": label, "person_id": p, "frames": frames.tolist(), "boxes": corners})
    return tubes


def _make_video(
    plan_scene: Callable[..., Scene], length: Sequence[int], job: tuple[Path, tuple[int, ...], bool]
) -> dict:
    """Render and write one video, whose path, seed and `fast` are the job; its entry in the annotation."""
    path, seed, fast = job
    random = rng(*seed)
    scene = plan_scene(random, int(random.integers(*length, endpoint=True)), fast=fast)
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    extents = []
    with atomic(path) as part:
        writer = cv2.VideoWriter(str(part), cv2.CAP_OPENCV_MJPEG, codec, FPS, (scene.width, scene.height))
        writer.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
        for t in range(len(scene.poses)):
            frame, boxes, seen = render(scene, t)
            writer.write(frame)
            extents.append((boxes, seen))
        writer.release()
        with part.open("rb") as file:
            head = file.read(8)
        if len(head) < 8 or int.from_bytes(head[4:], "little") + 8 != part.stat().st_size:
            raise InputError(f"{path}: the video could not be written whole; is the disk full?")
    boxes, seen = (np.stack(parts) for parts in zip(*extents, strict=True))
    size = {"width": scene.width, "height": scene.height, "n_frames": len(scene.poses)}
    return {**size, "tubes": _tubes(scene, boxes, seen)}


def make_synthetic(
    root: str | Path,
    n_train: int = 120,
    n_val: int = 30,
    width: int = 160,
    height: int = 120,
    length: Sequence[int] = (40, 72),
    seed: int = 0,
    max_people: int = 4,
    workers: int = 1,
    two_at_once: float = 0.0,
    layout: str = "json",
) -> None:
    """Write the data set to `root`, byte for byte a function of all arguments but `workers`.

    Args:
        n_train, n_val: videos of each subset; a video does not depend on how many others are rendered.
        length: shortest and longest video in frames.
        workers: processes that render.
        two_at_once: the share of walks and runs in which people wave too; each action is a tube of its own.
        layout: "json", the project's own, or one of `datasets.synthetic.layouts`, written beside it.

    Raises:
        InputError: a size is invalid.
    """
    root, (shortest, longest) = Path(root), length
    if not 1 <= shortest <= longest:
        text = "the shortest video has at least 1 frame and the longest no fewer"
        raise InputError(f"--length {shortest} {longest}: {text}")
    if min(width, height) < 32 or not 0.5 <= width / height <= 4:
        text = "at least 32 pixels, and half to four times as wide as high"
        raise InputError(f"--width {width} --height {height}: {text}")
    if layout == "ucf101-24" and (width, height) != (320, 240):
        raise InputError(f"--layout {layout}: its videos are 320 x 240; give --width 320 --height 240")
    (root / "videos").mkdir(parents=True, exist_ok=True)
    remove_parts(root / "videos")
    names = {s: [f"{s}_{i:04d}" for i in range(n)] for s, n in (("train", n_train), ("val", n_val))}
    jobs = {
        name: (root / "videos" / f"{name}.avi", (seed, which, i), i % FAST_EVERY == 1)
        for which, subset in enumerate(names.values())
        for i, name in enumerate(subset)
    }
    plan_scene = partial(plan, width=width, height=height, max_people=max_people, two_at_once=two_at_once)
    make = partial(_make_video, plan_scene, length)
    bar = {"total": len(jobs), "desc": "rendering", "unit": "video"}
    if workers > 1:
        context = multiprocessing.get_context("forkserver")  # a fork of this process may hang in OpenCV's threads
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            entries = list(progress(pool.map(make, jobs.values()), **bar))
    else:
        entries = list(progress(map(make, jobs.values()), **bar))
    content = {"labels": list(ACTIONS), "videos": dict(zip(jobs, entries, strict=True))}
    write_json(root / "annotations.json", content)
    for subset, members in names.items():
        write_text(root / f"{subset}.txt", "".join(f"{name}\n" for name in members))
    if layout != "json":
        fields = LAYOUTS[layout](root, content, names, FPS)
        project = {"name": f"synthetic-{layout}", **fields, "frames": "videos/{name}.avi"}
        write_text(root / "project.yml", yaml.safe_dump(project, sort_keys=False))
