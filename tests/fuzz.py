"""Files of every kind that is read, damaged at random, and what reading them may give.

    python -m tests.fuzz --count 2000

A reader gives one line that names the file, or what the whole file holds; where a format carries no checksum, it may
also give other values of the right form. Never anything else: no traceback, no crash, no hang, no memory beyond bounds.
"""

import hashlib
import json
import os
import resource
import shutil
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import scipy.io
import torch

from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.dataset import VideoFrames
from datasets.make_shards import make_shards
from datasets.use_shards import ClipDataset
from tests.fill import SMALL, load_detr
from tests.pickles import pickled
from tests.processes import fork
from tests.tars import as_bytes, write_samples
from tests.test_annotations import own_project, tube
from utils.cli import Parser, positive_int, run
from utils.misc import InputError, rng
from utils.results import motion_recall_by_cue
from utils.run_log import METRICS, RunLog
from utils.storage.files import load_torch, save_torch, write_json
from utils.storage.tars import TarStore
from utils.storage.tracks import TrackStore

MAX_MEMORY = 3 * 2**20  # KiB, with all libraries loaded
FORMAT_CASES = Path(__file__).parent / "fixtures" / "formats"
HANG = 600  # seconds for all damages of a kind, which take one or a few


class Kind(NamedTuple):
    """A kind of file: `make(folder)` writes one and gives the file to damage, `read(file)` reads it. `sealed`: it
    carries checksums of what it holds."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    sealed: bool


def damage(data: bytes, draw: np.random.Generator) -> bytes:
    """`data` cut off, or with a few bits flipped, bytes changed, or a stretch removed or doubled; half of the time near
    its ends, where headers and indices are."""
    way = draw.random()
    if way < 0.25:
        return data[: draw.integers(len(data))]
    held = bytearray(data)

    def place() -> int:
        near = int(draw.integers(min(len(held), 1024)))
        return (int(draw.integers(len(held))), near, len(held) - 1 - near)[draw.choice(3, p=[0.5, 0.25, 0.25])]

    if way < 0.7:
        for _ in range(draw.choice([1, 1, 1, 2, 4])):
            held[place()] ^= 1 << int(draw.integers(8))
    elif way < 0.85:
        at = place()
        held[at : at + 16] = draw.integers(0, 256, len(held[at : at + 16]), np.uint8).tobytes()
    else:
        at, n = place(), int(draw.integers(1, 600))
        held[at : at + n] = held[at : at + n] * int(draw.choice([0, 2]))
    return bytes(held)


def digest(value: object) -> str:
    """A checksum of arrays, tensors and plain containers."""
    held = hashlib.sha256()

    def add(item: object) -> None:
        if torch.is_tensor(item):
            item = item.numpy()
        if isinstance(item, np.ndarray):
            held.update(f"{item.dtype}{item.shape}".encode() + np.ascontiguousarray(item).tobytes())
        elif isinstance(item, dict):
            add([[str(key), value] for key, value in item.items()])
        elif isinstance(item, list | tuple):
            held.update(f"[{len(item)}".encode())
            for each in item:
                add(each)
        else:
            held.update(repr(item).encode())

    add(value)
    return held.hexdigest()


# --- what is damaged ---


def frames(length: int = 6) -> list[np.ndarray]:
    y, x = np.mgrid[:48, :64]
    return [np.stack([x * 3, y * 4, (x + y + 9 * i) % 256], 2).astype(np.uint8) for i in range(length)]


def image_folder(folder: Path, suffix: str = ".jpg") -> Path:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames()):
        cv2.imwrite(str(folder / f"{i}{suffix}"), frame)
    return folder / f"2{suffix}"


def movie(folder: Path, code: str, suffix: str) -> Path:
    writer = cv2.VideoWriter(str(folder / f"v{suffix}"), cv2.VideoWriter_fourcc(*code), 25, (64, 48))
    for frame in frames(12):
        writer.write(frame)
    writer.release()
    return folder / f"v{suffix}"


def annotated(folder: Path) -> Path:
    for name in ("a", "b"):
        image_folder(folder / "videos" / name)
    boxes = [[4 + i, 6, 30 + i, 40] for i in range(6)]
    held = {"width": 64, "height": 48, "n_frames": 6, "tubes": [tube(range(6), boxes, person_id=1)]}
    own_project(folder, {"a": held, "b": held})
    return folder / "annotations.json"


def shards(folder: Path, name: str) -> Path:
    annotated(folder)
    make_shards(load_project(folder / "own.yml"), "val", folder / "shards", per_shard=1)
    return folder / "shards" / name


def tar(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    samples = []
    for name in ("a", "b c", "d"):
        rows = {
            "frames": np.array([0, 1, 0, 1, 2]),
            "boxes": draw.random((5, 4)).astype(np.float32),
            "scores": np.ones(5, np.float32),
        }
        rows |= {"queries": draw.random((5, 8)).astype(np.float32), "labels": np.zeros(5, np.int64)}
        meta = {"name": name, "n_frames": 9, "width": 64, "height": 48, "fps": 25.0, "lengths": [2, 3]}
        samples.append(({**meta, "settings": {"detector": {}}}, as_bytes(rows)))
    write_samples(folder / "x.tar", samples)
    return folder / "x.tar"


def checkpoint(folder: Path) -> Path:
    from models.detr import build_model

    torch.manual_seed(0)
    config = SMALL | {"stages": 1}
    save_torch(folder / "x.pth", {"model": build_model(config)[0].state_dict(), "config": config, "epoch": 1})
    return folder / "x.pth"


def state(folder: Path) -> Path:
    held = {"model": {"a": torch.arange(9.0)}, "ranks": [{"random": (3, tuple(range(50)), None)}], "args": {"lr": "1"}}
    save_torch(folder / "x.pth", held)
    return folder / "x.pth"


def yaml_file(folder: Path) -> Path:
    return annotated(folder).with_name("own.yml")


def ucf(folder: Path, suffix: str) -> Path:
    boxes = np.array([[5, 6, 20, 30]] * 4, np.uint16)
    path = folder / f"annotations{suffix}"
    if suffix == ".pkl":
        tubes = [{"label": 0, "sf": 1, "ef": 5, "boxes": boxes}]
        path.write_bytes(pickled({name: {"numf": 9, "label": 0, "annotations": tubes} for name in "ab"}))
    else:
        tubes = np.array([(1, 5, 2, boxes)], [("class", "O"), ("ef", "O"), ("sf", "O"), ("boxes", "O")])
        fields = [("name", "O"), ("num_imgs", "O"), ("tubes", "O")]
        held = np.array([(name, 9, tubes) for name in "ab"], fields)
        scipy.io.savemat(path, {"annot": held}, do_compression=True)
    own_project(folder, {}, format="ucf101-24", annotations=path.name, labels=["x"], splits={"val": "val.txt"})
    (folder / "val.txt").write_text("a\nb\n")
    return path


def jhmdb(folder: Path) -> Path:
    rows = np.array([[1 + i, 5, 6, 20, 30] for i in range(4)], np.float32)
    held = {
        "labels": ["x"], "gttubes": {"a": {0: [rows]}}, "nframes": {"a": 9}, "resolution": {"a": (48, 64)},
        "train_videos": [["a"]], "test_videos": [["a"]],
    }  # fmt: skip
    (folder / "annotations.pkl").write_bytes(pickled(held))
    splits = {"val": {"list": "test_videos", "number": 1}}
    own_project(folder, {}, format="jhmdb21", annotations="annotations.pkl", labels=["x"], splits=splits)
    return folder / "annotations.pkl"


def of_tool(folder: Path, case: str) -> Path:
    """An annotation of another tool: a case of `tests/fixtures/formats`, with a project file."""
    about = json.loads((FORMAT_CASES / case / "case.json").read_text())
    shutil.copytree(FORMAT_CASES / case, folder, dirs_exist_ok=True)
    names = json.loads((FORMAT_CASES / case / "expected.json").read_text())["videos"]
    (folder / "val.txt").write_text("".join(f"{name}\n" for name in names))
    project = {"name": "own", "format": about["format"], "annotations": about["input"], "frames": "videos/{name}"}
    write_json(folder / "own.yml", {"splits": {"val": "val.txt"}, **project, **about["options"]})
    return folder / about["input"]


def lines(folder: Path) -> Path:
    text = [json.dumps({"stage": "s", "epoch": i, "loss": 1 / i, "map": None}) for i in range(1, 6)]
    (folder / METRICS).write_text("\n".join(text) + "\n")
    return folder / METRICS


def results(folder: Path) -> Path:
    recall = {"small": 0.5, "medium": None, "large": 1.0}
    write_json(folder / "r.json", {"args": {"link_cues": "iou"}, "metrics": {"motion_recall@0.5": recall}})
    return folder / "r.json"


# --- how it is read ---


def read_frames(path: Path) -> list:
    held = list(VideoFrames(path))
    assert held and all(f.shape == held[0].shape and f.dtype == np.uint8 for f in held)
    return held


def read_clips(path: Path) -> list:
    data = ClipDataset(path.parent, 6, train=False)
    return [{k: v for k, v in data.pack([(0, i)]).items() if v is not None} for i in range(len(data))]


def read_tar(path: Path) -> list:
    store = TarStore(path)
    columns = ("frames", "boxes", "scores", "queries", "labels")
    return [(name, store.json(name), [store.read(name, column) for column in columns]) for name in store.names]


def read_tracks(path: Path) -> list:
    store = TrackStore(path)
    return [(t.video, t.frames, t.boxes, t.labels, store.queries(t)) for t in store]


def read_project(path: Path) -> list:
    project = load_project(next(p / "own.yml" for p in path.parents if (p / "own.yml").is_file()))
    held = read_annotations(project, project.split("val"))
    for found in held.values():
        assert all(len(t) and np.isfinite(t.boxes).all() and -1 <= t.label < len(project.labels) for t in found.tubes)
        assert all((t.boxes[:, 2:] > t.boxes[:, :2]).all() and (t.frames >= 0).all() for t in found.tubes)
    return [(name, v.width, v.n_frames, [(t.frames, t.boxes, t.label) for t in v.tubes]) for name, v in held.items()]


def read_metrics(path: Path) -> str:
    with RunLog("s", path.parent, {}, "disabled", resume_epoch=4) as log:
        log.metrics({"loss": 1.0}, 4)
    last = json.loads(path.read_text().splitlines()[-1])
    assert last == {"stage": "s", "epoch": 4, "loss": 1.0}
    return path.read_text()


KINDS = {
    "shard": Kind(partial(shards, name="shard-000000.tar"), read_clips, True),
    "index": Kind(partial(shards, name="index.json"), read_clips, True),
    "tar": Kind(tar, read_tar, True),
    "tracks": Kind(tar, read_tracks, True),
    "checkpoint": Kind(checkpoint, lambda path: load_detr(path)[0].state_dict(), True),
    "state": Kind(state, load_torch, True),
    "mat": Kind(partial(ucf, suffix=".mat"), read_project, True),
    "avi": Kind(partial(movie, code="MJPG", suffix=".avi"), read_frames, False),
    "mp4": Kind(partial(movie, code="mp4v", suffix=".mp4"), read_frames, False),
    "jpeg": Kind(lambda folder: image_folder(folder / "v"), lambda path: read_frames(path.parent), False),
    "png": Kind(lambda folder: image_folder(folder / "v", ".png"), lambda path: read_frames(path.parent), False),
    "bmp": Kind(lambda folder: image_folder(folder / "v", ".bmp"), lambda path: read_frames(path.parent), False),
    "webp": Kind(lambda folder: image_folder(folder / "v", ".webp"), lambda path: read_frames(path.parent), False),
    "yaml": Kind(yaml_file, read_project, False),
    "json": Kind(annotated, read_project, False),
    "pickle": Kind(partial(ucf, suffix=".pkl"), read_project, False),
    "jhmdb": Kind(jhmdb, read_project, False),
    "cvat": Kind(partial(of_tool, case="cvat_video/3"), read_project, False),
    "mot": Kind(partial(of_tool, case="mot/2"), read_project, False),
    "coco": Kind(partial(of_tool, case="coco_video/2"), read_project, False),
    "label_studio": Kind(partial(of_tool, case="label_studio/5"), read_project, False),
    "via3": Kind(partial(of_tool, case="via3/1"), read_project, False),
    "metrics": Kind(lines, read_metrics, False),
    "results": Kind(results, lambda path: motion_recall_by_cue(path, 0.5), False),
}


def fuzz(name: str, folder: Path, seed: int, count: int) -> None:
    """Damage a file of the kind `count` times; `folder/told.json` gets how often it was refused, and the faults.

    `folder/at` holds the number of the damage that is being read, for a crash.
    """
    torch.set_num_threads(1)
    with (folder / "stderr.txt").open("w") as file:  # libraries comment on what they read
        os.dup2(file.fileno(), 2)
    kind, work = KINDS[name], folder / "work"
    work.mkdir()
    path = kind.make(work)
    whole = path.read_bytes()
    pristine, refused, faults = digest(kind.read(path)), 0, []
    for i in range(count):
        (folder / "at").write_text(str(i))
        path.write_bytes(damage(whole, rng(seed, i)))
        try:
            value = kind.read(path)
            if kind.sealed and digest(value) != pristine:
                faults.append(f"{i}: other values, unseen")
        except InputError as error:
            refused += 1
            if str(work) not in str(error) or "\n" in str(error) or len(str(error)) > 1000:
                faults.append(f"{i}: said {str(error)[:300]!r}")
        except BaseException:
            faults.append(f"{i}: {traceback.format_exc()}")
        path.write_bytes(whole)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if memory > MAX_MEMORY:
        faults.append(f"{memory} KiB of memory")
    write_json(folder / "told.json", {"refused": refused, "faults": faults[:5], "n_faults": len(faults)})


def in_child(name: str, folder: Path, seed: int, count: int) -> dict:
    """`fuzz` in a process of its own, since what is damaged may bring an interpreter down."""
    folder.mkdir(parents=True, exist_ok=True)
    process = fork(fuzz, name, folder, seed, count)
    process.join(HANG)
    if process.exitcode != 0:
        process.kill()
        at = (folder / "at").read_text() if (folder / "at").is_file() else "the start"
        return {"refused": 0, "faults": [f"{at}: the interpreter ended with {process.exitcode}"], "n_faults": 1}
    return json.loads((folder / "told.json").read_text())


def main() -> None:
    """The command line."""
    parser = Parser("Damage files of every kind at random and read them.")
    parser.flag("fuzz", "count", type=positive_int, default=1000, help="damages of each kind")
    parser.flag("fuzz", "seed", type=int, default=1, help="seed of the damages")
    parser.flag("fuzz", "kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds of file")
    args = parser.parse_args()
    failed = 0
    for name in args.kinds:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        told = in_child(name, folder, args.seed, args.count)
        failed += told["n_faults"]
        print(f"{name}: {told['refused']} of {args.count} refused, {told['n_faults']} faults", flush=True)
        for fault in told["faults"]:
            print(fault)
        shutil.rmtree(folder)
    if failed:
        raise InputError(f"{failed} faults")


if __name__ == "__main__":
    run(main)
