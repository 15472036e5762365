"""Command lines of the stage scripts: flags with one dash or two, one-line errors, exit statuses."""

import argparse
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import PurePath

import torch

from utils.misc import InputError, counted, did_you_mean
from utils.storage.files import FULL

USER_ERROR = 2


class Stopped(Exception):
    """The run was asked to stop by `number` (SIGINT, SIGTERM) and has saved its state; the text says how to go on."""

    def __init__(self, text: str, number: int = signal.SIGTERM) -> None:
        super().__init__(text)
        self.status = 128 + number


class _Terminated(KeyboardInterrupt):
    """SIGTERM where nothing else is made of it: finishes like an interrupt from the keyboard."""


def _terminate(*_: object) -> None:
    raise _Terminated


class _Help(argparse.HelpFormatter):
    """Each flag once, with its default where that says something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return action.help
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list) else "%(default)s"
        return f"{action.help} (default: {shown})"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if name.startswith("--") or len(name) == 2]
        if not names or action.nargs == 0:
            return ", ".join(names) or super()._format_action_invocation(action)
        return f"{', '.join(names)} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class Parser(argparse.ArgumentParser):
    """An argument parser whose long flags are also taken with one dash (`-epochs 20`).

    `flag` adds to a named group, which is made on first use, so that `--help` reads in sections.
    """

    def __init__(self, description: str) -> None:
        module = getattr(sys.modules["__main__"], "__spec__", None)  # of what `python -m` runs, as Python 3.14 shows it
        prog = f"python -m {module.name.removesuffix('.__main__')}" if module else None
        more = "One dash will do too: -epochs 20."
        super().__init__(prog, description=description, epilog=more, formatter_class=_Help, allow_abbrev=False)
        self._sections: dict[str, argparse._ArgumentGroup] = {}

    def flag(self, section: str, name: str, **options) -> None:
        """Add `--name` (and `-name`) to the help's `section`; options are those of `add_argument`."""
        if section not in self._sections:
            self._sections[section] = self.add_argument_group(section)
        if options.get("action") == "store_true" and name.startswith("no_"):
            options.setdefault("dest", name)
        if "action" not in options and "choices" not in options:
            options.setdefault("metavar", _SHOWN.get(options.get("type"), name.upper()))
        self._sections[section].add_argument(f"--{name}", f"-{name}", **options)

    def format_help(self) -> str:
        """The usage names what must be given; all else stands in its section."""
        needed = [
            f"{action.option_strings[0]} {action.metavar}"
            if action.option_strings
            else f"{action.dest}{' [...]' * (action.nargs == '+')}"
            for action in self._actions
            if action.required and action.nargs not in ("*", "?")
        ]
        self.usage = " ".join(["%(prog)s", *needed, "[flags]"])
        return super().format_help()

    def error(self, message: str) -> None:
        """One line and exit status 2, as for every mistake of the user."""
        message = re.sub(r"(--[\w-]+)/-\w+", r"\1", message)  # a flag's other spelling
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            message += did_you_mean(unknown[1], self._option_string_actions)
        print(f"{self.prog}: error: {message} (see --help)", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def positive_int(text: str) -> int:
    """An integer of at least 1, for `type=`."""
    return _whole_number(1, text)


def count(text: str) -> int:
    """An integer of at least 0, for `type=`."""
    return _whole_number(0, text)


def _whole_number(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return value


def positive(text: str) -> float:
    """A finite number above 0, for `type=`."""
    value = _number_between(0, math.inf, text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and finite")
    return value


def not_negative(text: str) -> float:
    """A finite number of at least 0, for `type=`."""
    value = _number_between(0, math.inf, text)
    if value == math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def run_name(text: str) -> str:
    """A run's name, which is that of its folder, for `type=`; it does not lead out of the folder of runs."""
    path = PurePath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name for a folder")
    return text


def share(text: str) -> float:
    """A number from 0 to 1, for `type=`."""
    return _number_between(0, 1, text)


def cosine(text: str) -> float:
    """A number from -1 to 1, for `type=`."""
    return _number_between(-1, 1, text)


def _number_between(least: float, most: float, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None
    if not least <= value <= most:
        bounds = f"between {least:g} and {most:g}" if most < math.inf else f"at least {least:g}"
        raise argparse.ArgumentTypeError(f"{text} is not {bounds}")
    return value


def thresholds(texts: list[str]) -> list[float]:
    """Threshold values and inclusive ranges in steps of 0.05: ["0.2", "0.5:0.95"] -> [0.2, 0.5, ..., 0.95].

    A range may give its own step, "0.1:0.5:0.1". Raises InputError for anything else.
    """
    values: list[float] = []
    for text in texts:
        try:
            low, high, step = ([float(part) for part in text.split(":")] + [None, None])[:3]
        except ValueError:
            raise InputError(f"--tiou_th {text}: not a number or a range such as 0.5:0.95") from None
        high, step = (low if high is None else high), step or 0.05
        if not (0 < low <= high <= 1 and step > 0):
            raise InputError(f"--tiou_th {text}: thresholds lie above 0 and up to 1, ranges go upwards")
        values += [round(low + i * step, 6) for i in range(int((high - low) / step + 1e-9) + 1)]
    return list(dict.fromkeys(values))


_SHOWN = dict.fromkeys((int, positive_int, count), "N") | dict.fromkeys(
    (float, share, cosine, positive, not_negative), "X"
)
"""What `--help` shows for a value by its type."""


def add_data_flags(parser: Parser, needs_videos: bool = True) -> None:
    """Flags of every stage: which data set, and where data and checkpoints lie."""
    parser.flag("data", "dataset", required=True, help="built-in data set, or path of a project file")
    parser.flag("data", "data_root", default="data", help="folder of the built-in data sets")
    if needs_videos:
        parser.flag("data", "skip_bad", action="store_true", help="leave out videos that cannot be used, and list them")
    parser.flag("data", "checkpoint_root", default="checkpoint", help="folder of checkpoints, caches and results")


def tell_left_out(bad: dict[str, str]) -> None:
    """List and count the videos that `--skip_bad` has left out (name -> why)."""
    for why in bad.values():
        print(f"left out: {why}", file=sys.stderr)
    if bad:
        print(f"{counted(len(bad), 'video')} left out: unusable")


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; the user's mistakes and stops become one line on stderr and an exit status.

    2 a mistake of the user, 130 interrupted by SIGINT, 143 by SIGTERM; bugs keep their traceback.
    """
    warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator.*")
    program = os.path.basename(sys.argv[0])  # noqa: PTH119 (argv[0] may be "-c")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except InputError as error:
        status, line = USER_ERROR, f"error: {error}"
    except Stopped as stop:
        status, line = stop.status, str(stop)
    except KeyboardInterrupt as stop:
        status = 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
        line = "interrupted; what is finished is kept: go on with the same command (of training, with --resume)"
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        status, line = USER_ERROR, f"error: {where}{error.strerror}"
        if isinstance(error, FileExistsError | NotADirectoryError):
            line += "; a file lies where a folder is needed: name another one"
        if error.errno in FULL:
            line += "; what was there is unchanged: make room, then go on with the same command"
    except torch.cuda.OutOfMemoryError:
        status, line = USER_ERROR, "error: the GPU's memory is full; try a smaller --batch_size or --amp"
    else:
        return
    print(f"{program}: {line}", file=sys.stderr)
    sys.stderr.flush()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(status)
