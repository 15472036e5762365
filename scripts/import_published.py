"""Weights of the method's public code -> checkpoints, with which all stages and predict.py go on.

    python -m scripts.import_published --dataset jhmdb21 --preset published --qmm_name public --encoder f_p.pth \
        --no-is_skip --head head.pth

Writes checkpoint/<dataset>/<qmm_name>/encoder/epoch_<n>.pth and head/<type>/epoch_<n>.pth. What the weights do not say
is taken from the flags: the detector, its frames and the layer of its queries, the thresholds, the labels of the data
set, and whether the encoder has a skip connection.
"""

from argparse import BooleanOptionalAction
from pathlib import Path

from datasets.presets import parse_with_preset
from models.head_types import add_head_flags, head_folder
from models.link_settings import add_linking_flags, link_settings, tracks_made_with
from utils.cli import Parser, run, run_name
from utils.flags import add_data_flags, add_detector_flags, add_frame_flags, add_run_flags
from utils.misc import InputError, pick_device, start, tell
from utils.storage.files import save_torch


def make_parser() -> Parser:
    parser = Parser("Make checkpoints of the weights of the method's public code.")
    add_data_flags(parser)
    parser.flag("weights", "qmm_name", type=run_name, default="qmm", help="name of the run that they become")
    parser.flag("weights", "encoder", required=True, help="state dict of the person encoder")
    parser.flag("weights", "is_skip", action=BooleanOptionalAction, help="the encoder has a skip connection, or none")
    parser.flag("weights", "head", help="state dict of an action head (default: none)")
    add_head_flags(parser, default=None)
    add_linking_flags(parser)
    add_frame_flags(parser)
    add_detector_flags(parser, detr=None)
    add_run_flags(parser)
    return parser


def main() -> None:
    """The command line."""
    args = parse_with_preset(make_parser(), "import_published")
    if args.is_skip is None:
        raise InputError(f"{args.encoder}: whether it has a skip connection? say --is_skip or --no-is_skip")
    if args.detr is None:
        raise InputError(f"{args.encoder}: on which detector was it trained? name it with --detr")

    from datasets.config import load_project
    from models.frame_features import frame_extractor
    from models.person_queries import detector_of
    from models.published_weights import published_encoder, published_head
    from models.weights import weights_hash

    start(args)
    device = pick_device(args.device)
    project = load_project(args.dataset, args.data_root)
    root = Path(args.checkpoint_root) / project.name / args.qmm_name
    encoder, settings = published_encoder(args.encoder, args.is_skip)
    head = published_head(args.head, args.head_type) if args.head else None
    if head and head.config["n_classes"] != len(project.labels):
        n = head.config["n_classes"]
        raise InputError(f"{args.head}: has {n} classes, {project.path} {len(project.labels)} labels")
    detector = detector_of(args, device)
    widths = {args.encoder: settings["in_d"]} | ({args.head: head.config["in_d"]} if head else {})
    for path, width in widths.items():
        if width != detector.d:
            raise InputError(f"{path}: takes queries of {width} numbers; those of {args.detr} have {detector.d}")

    epoch = args.load_epoch = args.load_epoch or 20
    config = {"encoder": settings, "detector": detector.config()}
    paths = {root / "encoder" / f"epoch_{epoch}.pth": (encoder, config)}
    if head:
        args.head_type = head.config["head_type"]
        if head.needs_frames:
            note = "was trained on other frame features than it is given here; docs/protocol.md says which (row 5)"
            tell(f"note: {args.head}: {note}")
        linked = tracks_made_with(link_settings(args, project, root), project, weights_hash(encoder.state_dict()))
        linked["detector"] = detector.config()
        frames = frame_extractor(head.needs_frames, args, device, detector.config()).key if head.needs_frames else None
        config = {"head": head.config, "labels": project.labels, "settings": linked, "frames": frames}
        config["min_tube_length"] = project.default("min_tube_length")
        paths[head_folder(args, root) / f"epoch_{epoch}.pth"] = head, config
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: is there already; name another --qmm_name, --head_name or --load_epoch")
    for path, (model, config) in paths.items():
        save_torch(path, {"model": model.state_dict(), "config": config, "epoch": epoch})
        print(path)


if __name__ == "__main__":
    run(main)
