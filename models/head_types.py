"""The kinds of action head, their flags and folders; without PyTorch, so that `--help` answers at once."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.cli import Parser, positive_int, run_name, share
from utils.misc import InputError, counted


class HeadType(NamedTuple):
    """One kind of action head. A new combination is one more entry of `HEAD_TYPES`; a new `time` also needs
    `action_head._widths` and `ActionHead._with_time`, a new `frames` `frame_features.frame_extractor`.

    Args:
        time: how a frame's time joins its query: "add", "append", or None (the queries have no order).
        frames: frame features that cross-attend to the queries: "x3d" (X3D-XS), "res" (DETR's backbone), or None
            (self-attention among the queries).
    """

    time: str | None
    frames: str | None


HEAD_TYPES = {
    "vanilla": HeadType(time=None, frames=None),
    "time_ecd:add": HeadType(time="add", frames=None),
    "time_ecd:cat": HeadType(time="append", frames=None),
    "x3d": HeadType(time="append", frames="x3d"),
    "res": HeadType(time="append", frames="res"),
}
"""Values of `--head_type`."""
TIME_ENCODINGS = ("periodic", "published")


def add_head_flags(parser: Parser, default: str | None = "vanilla") -> None:
    """Flags of the stages that train or run an action head."""
    parser.flag("model", "head_type", choices=tuple(HEAD_TYPES), default=default,
                help="vanilla: self-attention over a track's queries; time_ecd:add, :cat: with time encoding added, "
                "appended; x3d, res: frame features (X3D-XS, DETR's backbone) attend to the queries")  # fmt: skip
    help_text = "name of the head's folder (default: its type, with -iou where IoU links)"
    parser.flag("model", "head_name", type=run_name, help=help_text)


def add_action_flags(parser: Parser) -> None:
    """Flags of the stages that make action tubes."""
    help_text = "number of a frame's most probable classes, 'no action' among them, that form tubes "
    help_text += "(default: 1; eval_map.py, multi_label: all)"
    parser.flag("action tubes", "topk", type=positive_int, help=help_text)
    help_text = "minimum probability of a class, in place of --topk (default: none; predict.py, multi_label: 0.5)"
    parser.flag("action tubes", "action_th", type=share, help=help_text)


def check_topk(topk: int | None, labels: Sequence[str]) -> None:
    """InputError where `--topk` is more than the classes there are: `labels`, and "no action"."""
    if (topk or 0) > len(labels) + 1:
        text = f"there are {counted(len(labels), 'action')}, and no action counts as one more"
        raise InputError(f"--topk {topk}: {text}")


def head_folder(args: Namespace, root: Path) -> Path:
    """The folder of an action head's checkpoints; `args` of `add_head_flags` and `add_linking_flags`."""
    name = args.head_name or args.head_type + ("" if args.link_cues == "feature" else f"-{args.link_cues}")
    return root / "head" / name
