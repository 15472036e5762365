"""The kinds of action head, their flags and folders; without PyTorch, so that `--help` answers at once."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from utils.cli import Parser, positive_int, run_name, share
from utils.flags import OF_DATA


@dataclass(frozen=True)
class HeadType:
    """One kind of action head; a new one is one more entry of `HEAD_TYPES`.

    Args:
        name: value of `--head_type`.
        time: how a frame's time joins its query: "add", "append", or None (the queries have no order).
        frames: frame features that cross-attend to the queries: "x3d" (X3D-XS), "res" (DETR's backbone), or None
            (self-attention among the queries).
    """

    name: str
    time: str | None
    frames: str | None


_TYPES = (
    HeadType("vanilla", time=None, frames=None),
    HeadType("time_ecd:add", time="add", frames=None),
    HeadType("time_ecd:cat", time="append", frames=None),
    HeadType("x3d", time="append", frames="x3d"),
    HeadType("res", time="append", frames="res"),
)
HEAD_TYPES = {head_type.name: head_type for head_type in _TYPES}
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
