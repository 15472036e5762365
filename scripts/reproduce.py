"""What `scripts/reproduce.sh` says before it starts, and the tables that it and `scripts/demo.sh` end with.

python -m scripts.reproduce cost --dataset jhmdb21 [--published] [--gpus 4] [--detr_rate 2778]
python -m scripts.reproduce table checkpoint/jhmdb21/reproduce
"""

import argparse
from dataclasses import fields
from pathlib import Path

from datasets.presets import preset_path
from models.link_settings import LinkSettings
from utils.box_ops import MOTION_CATEGORIES
from utils.cli import Parser, positive, positive_int, run
from utils.misc import InputError, counted, tell
from utils.results import print_table
from utils.storage.files import read_json

EPOCHS, CLIP = 20, 8  # of all trainings; frames of a clip of train_qmm.py
STEP = 3  # forward passes that a training step costs
PEOPLE, QUERY = 5, 1100  # detections of a frame, bytes of one
FRAME_FEATURES = 2 * 2048 * 4  # bytes of a frame, for x3d and res
JPEG = 0.27  # bytes a pixel at the default quality
FEATURES_SHARE = 0.75  # of a detector's time, that its backbone and X3D-XS take


def detector_rate(device: str | None) -> float:
    """Frames a second of R101-DC5 at 512 x 384 on one device in float32: the frames and weights of the benchmark
    `detr_inference`, a few seconds long."""
    import torch

    from benchmarks.detr_inference import draw_frames, random_detr
    from benchmarks.rows import seconds
    from models.detr import for_inference, normalize
    from utils.misc import pick_device

    picked = pick_device(device)
    frames, detr = draw_frames(32 if picked.type == "cuda" else 1, picked), for_inference(random_detr(picked))
    with torch.inference_mode():
        return len(frames) / seconds(lambda: detr(normalize(frames)), rounds=2)


def cost(dataset: str, data_root: str, tuned: bool, published: bool, rate: float) -> list[list]:
    """Rows (what, amount, unit) of the frames, bytes and hours that the chain will take.

    Args:
        tuned: whether the detector is fine-tuned first.
        published: whether DETR runs in every step of train_qmm.py, as by the preset.
        rate: frames a second that all devices together put through the detector.
    """
    from datasets.annotations import read_annotations
    from datasets.config import load_project

    project = load_project(dataset, data_root)
    frames, pixels, videos = {}, 0, {}
    for subset in ("train", "val"):
        annotations = read_annotations(project, project.split(subset))
        frames[subset], videos[subset] = 0, len(annotations)
        for name, video in annotations.items():
            n, size = video.n_frames, (video.width, video.height)
            if not (n and min(size)):
                opened = project.open_video(name)
                n, size = n or opened.announced, opened.size
            frames[subset] += n
            pixels += n * size[0] * size[1]
    total = sum(frames.values())
    passes = {"all frames": total, "frame features": total * FEATURES_SHARE}
    if tuned:
        passes["fine-tuning the detector"] = STEP * EPOCHS * videos["train"]
    if published:
        passes["train_qmm.py, which runs the detector in each step"] = EPOCHS * videos["train"] * CLIP
    rows = [[f"frames of {subset}", n, "frames"] for subset, n in frames.items()]
    if tuned or published:
        rows.append(["disk: shards", pixels * JPEG / 1e9, "GB"])
    rows.append(["disk: queries and features", total * (2 * PEOPLE * QUERY + FRAME_FEATURES) / 1e9, "GB"])
    rows += [[f"time: {name}", n / rate / 3600, "hours"] for name, n in passes.items()]
    return [*rows, ["time: all that a detector does", sum(passes.values()) / rate / 3600, "hours"]]


def table(folder: Path) -> None:
    """Print what is in the results of a run on `val`: the metrics of tracks by link cue, and those of action tubes by
    head and by what makes and counts tubes.

    Results of tracks that were made otherwise than the newest ones of their cue are left out, as are those of a head
    that was trained anew since; of several results of one cell the newest counts.
    """
    paths = sorted((folder / "results").glob("eval_*-val-*.json"), key=lambda path: path.stat().st_mtime_ns)
    results = [(result["args"], result["metrics"]) for result in (read_json(path, "results") for path in paths)]
    results = [(args, metrics) for args, metrics in results if not args.get("predictions")]  # which no run made
    if not results:
        raise InputError(f"{folder}: has no results of a run on val; run scripts/reproduce.sh first")
    newest = {args["link_cues"]: _tracks_of(args) for args, _ in results}
    current = [(args, metrics) for args, metrics in results if _tracks_of(args) == newest[args["link_cues"]]]
    newest_head = {_head_of(args): args.get("head_hash") for args, _ in current}
    current = [(args, metrics) for args, metrics in current if args.get("head_hash") == newest_head[_head_of(args)]]
    if older := len(results) - len(current):
        tell(f"note: {counted(older, 'result')} of other settings left out (models and ground truth among them)")
    recalls, heads = {}, {}
    for args, metrics in current:
        if "head_type" not in args:
            for name, value in metrics.items():
                if name.startswith("recall@"):
                    level = name.partition("@")[2]
                    parts = (metrics[f"motion_{name}"][category] for category in MOTION_CATEGORIES)
                    others = (metrics[other] for other in (f"precision@{level}", "IDF1", "HOTA"))
                    rule = _counting(args)
                    linked = args["link_cues"] if rule == "pairs" else f"{args['link_cues']} ({rule})"
                    recalls[linked, level] = [value, *parts, *others]
            continue
        carried = f"top {args['topk']}" if args.get("action_th") is None else f"from {args['action_th']:g}"
        key = *_head_of(args), carried, args["min_tube_length"], _counting(args)
        by_name = heads.setdefault(key, {})
        for name, value in metrics.items():
            if isinstance(value, dict) and name.startswith("motion-AP@"):
                by_name |= {f"{name}, {category}": value[category] for category in MOTION_CATEGORIES}
            elif name.startswith(("v-mAP@", "frame-mAP@", "mAP@")):
                by_name[name] = value
    rows = [[*key, *values] for key, values in sorted(recalls.items())]
    kinds = [f"{kind} motion" for kind in MOTION_CATEGORIES]
    print_table(["linked by", "3D IoU", "recall", *kinds, "precision", "IDF1", "HOTA"], rows)
    names = list(dict.fromkeys(name for values in heads.values() for name in values))
    rows = [[*key, *map(values.get, names)] for key, values in sorted(heads.items())]
    print()
    print_table(["linked by", "head", "epoch", "actions", "min. length", "counted by", *names], rows)


def _tracks_of(args: dict) -> dict:
    """What made the tracks of a result, and what they are compared with, among its `args`."""
    names = [field.name for field in fields(LinkSettings)]
    return {name: args.get(name) for name in (*names, "detector_key", "encoder_hash", "ground_truth")}


def _head_of(args: dict) -> tuple:
    """The link cue, head and epoch of a result, among its `args`; None where it has no head."""
    return args["link_cues"], args.get("head_name") or args.get("head_type"), args.get("load_epoch_head")


def _counting(args: dict) -> str:
    """The rules of a result's metrics, in words, from its `args`."""
    words = [args["protocol"]]
    if args.get("label_centric") is False:
        words.append("all frames")
    if args.get("frame_iou") is not None:
        words.append(f"frame IoU {args['frame_iou']:g}")
    if args.get("count_duplicates"):
        words.append("duplicates")
    return ", ".join(words)


def main() -> None:
    """The command line."""
    parser = Parser("Estimate what scripts/reproduce.sh costs, or print the tables of a finished run.")
    parser.add_argument("what", choices=("cost", "table"), help="cost, or table with the run's folder")
    parser.add_argument("folder", nargs="?", help="of a finished run")
    parser.flag("data", "dataset", help="built-in data set, or path of a project file")
    parser.flag("data", "data_root", default="data", help="folder of the built-in data sets")
    parser.flag("chain", "published", action="store_true", help="the chain of --preset published")
    parser.flag("chain", "tuned", action="store_true", help="the detector is fine-tuned first")
    parser.flag("machine", "device", help="a GPU's number, cuda:N or cpu (default: the first GPU if there is one)")
    parser.flag("machine", "gpus", type=positive_int, default=1, help="devices that share the work")
    parser.flag("machine", "detr_rate", type=positive, help="frames/s of one device by benchmarks (default: measured)")
    args: argparse.Namespace = parser.parse_args()
    if args.what == "table":
        table(Path(args.folder or "."))
        return
    if not args.dataset:
        raise InputError("cost: name a data set with --dataset")
    if args.published and not preset_path(args.dataset, "published").is_file():
        raise InputError(f"--published: {args.dataset} has no such preset")
    rate = args.detr_rate or detector_rate(args.device)
    tell(f"one device puts {rate:.3g} frames/s through R101-DC5; {args.gpus} of them:")
    print_table(
        ["cost", "amount", "unit"], cost(args.dataset, args.data_root, args.tuned, args.published, rate * args.gpus)
    )


if __name__ == "__main__":
    run(main)
