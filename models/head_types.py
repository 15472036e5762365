"""The kinds of action head, their flags and folders; without PyTorch, so that `--help` answers at once."""

from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from utils.cli import Parser, positive_int, run_name, share
from utils.flags import OF_DATA


class HeadType(NamedTuple):
    """One kind of action head; a new one is one more entry of `HEAD_TYPES`.

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
    parser.flag("model", "head_type", choices=tuple(HEAD_TYPES), default=default, help="kind of head")
    what = "name of the head's folder (default: its type, with -iou where IoU links)"
    parser.flag("model", "head_name", type=run_name, help=what)


def add_action_flags(parser: Parser) -> None:
    """Flags of the stages that make action tubes."""
    what = "classes of a frame that form action tubes (default: 1; evaluating several actions at once: all)"
    parser.flag("action tubes", "topk", type=positive_int, help=what)
    what = "minimum probability of an action, in place of --topk (default: predicting several actions at once: 0.5)"
    parser.flag("action tubes", "action_th", type=share, help=what)


def add_time_flags(parser: Parser) -> None:
    """Flags of a head's time encoding."""
    what = "published: sinusoids of base --time_cycle, which never repeat; periodic: harmonics of --time_cycle"
    parser.flag("model", "time_encoding", choices=TIME_ENCODINGS, default="published", help=what)
    what = f"period (or base) of the time encoding in frames {OF_DATA}"
    parser.flag("model", "time_cycle", type=positive_int, help=what)
    parser.flag("model", "time_d", type=positive_int, default=32, help="width of the time where it is appended")


def head_folder(args: Namespace, root: Path) -> Path:
    """The folder of an action head's checkpoints; `args` of `add_head_flags` and `add_linking_flags`."""
    name = args.head_name or args.head_type + ("" if args.link_cues == "feature" else f"-{args.link_cues}")
    return root / "head" / name
