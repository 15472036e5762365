"""Command lines of the stage scripts: flags with one dash or two, one-line errors, exit statuses."""

import argparse
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import PurePath

from utils.misc import InputError, counted, did_you_mean, tell
from utils.storage.files import DISK_FULL

USER_ERROR = 2
INTERRUPTED = "interrupted; what is finished is kept: go on with the same command (of training, with --resume)"
LESS_MEMORY = "try a smaller --batch_size, --detr_batch (of eval_qmm.py --n_frames) or --image_size, or --amp"


class Stopped(KeyboardInterrupt):
    """The run was asked to stop by the signal `number`; the text says what is kept and how to go on."""

    def __init__(self, text: str, number: int = signal.SIGTERM) -> None:
        super().__init__(text)
        self.status = 128 + number


def _terminate(*_: object) -> None:
    """SIGTERM, where no training loop handles it, ends the script like an interrupt from the keyboard."""
    raise Stopped(INTERRUPTED)


class _Help(argparse.HelpFormatter):
    """Shows a flag's default where that says something and the help text does not give it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default == () or any(action.default is value for value in (None, False, argparse.SUPPRESS))
        if silent or "(default:" in action.help:
            return action.help
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list) else "%(default)s"
        return f"{action.help} (default: {shown})"


class Parser(argparse.ArgumentParser):
    """An argument parser whose long flags are also accepted with one dash (`-epochs 20`).

    `flag` adds to a named section of `--help`. Invalid input prints one line and exits with status 2.
    """

    def __init__(self, description: str) -> None:
        module = getattr(sys.modules["__main__"], "__spec__", None)  # of what `python -m` runs, as Python 3.14 shows it
        prog = f"python -m {module.name.removesuffix('.__main__')}" if module else None
        more = "One dash will do too: -epochs 20."
        super().__init__(prog, description=description, epilog=more, formatter_class=_Help, allow_abbrev=False)
        self._sections: dict[str, argparse._ArgumentGroup] = {}

    def flag(self, section: str, name: str, **options) -> None:
        """Add `--name` to the help's `section`, which is made on first use; options are those of `add_argument`."""
        if section not in self._sections:
            self._sections[section] = self.add_argument_group(section)
        if "action" not in options and "choices" not in options:
            options.setdefault("metavar", getattr(options.get("type"), "metavar", name.upper()))
        self._sections[section].add_argument(f"--{name}", **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:
        """The flags in `args` (default: the command line's)."""
        words = [str(word) for word in (sys.argv[1:] if args is None else args)]
        known = self._option_string_actions
        words = [f"-{word}" if word[:1] == "-" and f"-{word.partition('=')[0]}" in known else word for word in words]
        return super().parse_args(words, namespace)

    def action_of(self, dest: str) -> argparse.Action | None:
        """What parses the flag whose value is named `dest`; None where there is no such flag."""
        return next((action for action in self._actions if action.dest == dest), None)

    def format_help(self) -> str:
        """The usage names what must be given; all else stands in its section."""
        required = []
        for action in self._actions:
            if action.required and action.option_strings:
                required.append(f"{action.option_strings[0]} {action.metavar}")
            elif action.required and action.nargs not in ("*", "?"):
                required.append(f"{action.dest}{' [...]' * (action.nargs == '+')}")
        self.usage = " ".join(["%(prog)s", *required, "[flags]"])
        return super().format_help()

    def error(self, message: str) -> None:
        """Print one line and exit with status 2, as for every mistake of the user."""
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            message += did_you_mean(unknown[1], self._option_string_actions)
        tell(f"{self.prog}: error: {message} (see --help)")
        raise SystemExit(USER_ERROR)


def number_or_name(text: str | int | None) -> int | str | None:
    """The value of a flag that takes a whole number or a name."""
    return int(text) if str(text).isdecimal() else text


def _number(
    kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf, above: bool = False
) -> Callable[[str], float]:
    """A type of argument: a finite int or float from `low` (or `above` it) to `high`."""
    bounds = f"{'above' if above else 'at least'} {low:g}" if high == math.inf else f"between {low:g} and {high:g}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' * (kind is int)}number") from None
        if not low <= value <= high or value == math.inf or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is not {bounds}{' and finite' * (value == high)}")
        return value

    parse.metavar = "N" if kind is int else "X"  # what `--help` shows for a value
    return parse


positive_int = _number(int, 1)
count = _number(int, 0)
percent = _number(int, 1, 100)
positive = _number(float, 0, above=True)
not_negative = _number(float, 0)
share = _number(float, 0, 1)
cosine = _number(float, -1, 1)


def run_name(text: str) -> str:
    """A run's name, which is that of its folder, for `type=`; it does not lead out of the folder of runs."""
    path = PurePath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name for a folder")
    return text


def thresholds(texts: list[str]) -> list[float]:
    """Threshold values and inclusive ranges in steps of 0.05: ["0.2", "0.5:0.95"] -> [0.2, 0.5, ..., 0.95].

    A range may give its own step, "0.1:0.5:0.1". Raises InputError for anything else.
    """
    values: list[float] = []
    for text in texts:
        try:
            parts = [float(part) for part in text.split(":")]
        except ValueError:
            raise InputError(f"--tiou_th {text}: not a number or a range such as 0.5:0.95") from None
        low, high, step = parts if len(parts) == 3 else (parts[0], parts[-1], 0.05)
        if len(parts) > 3 or not (0 < low <= high <= 1 and step > 0):
            raise InputError(f"--tiou_th {text}: thresholds lie above 0 and up to 1, ranges go upwards")
        values += [round(low + i * step, 6) for i in range(int((high - low) / step + 1e-9) + 1)]
    return list(dict.fromkeys(values))


def tell_left_out(bad: dict[str, str]) -> None:
    """List and count the videos that `--skip_bad` has left out (name -> why)."""
    for why in bad.values():
        tell(f"left out: {why}")
    if bad:
        print(f"{counted(len(bad), 'video')} left out: unusable")


def run(main: Callable[[], None], if_memory_is_full: str = LESS_MEMORY) -> None:
    """Run a script's `main`; the user's mistakes and stops become one line on stderr and an exit status.

    2 a mistake of the user or no memory left, 130 interrupted by SIGINT, 143 by SIGTERM; bugs keep their traceback.
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
    except KeyboardInterrupt:
        status, line = 128 + signal.SIGINT, INTERRUPTED
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        status, line = USER_ERROR, f"error: {where}{error.strerror}"
        if isinstance(error, FileExistsError | NotADirectoryError):
            line += "; a file lies where a folder is needed: name another one"
        if error.errno in DISK_FULL:
            line += "; what was there is unchanged: make room, then go on with the same command"
    except Exception as error:
        memory = _memory_that_is_full(error)
        if memory is None:
            raise
        status, line = USER_ERROR, f"error: {memory} is full; {if_memory_is_full}"
    else:
        return
    tell(f"{program}: {line}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(status)


def _memory_that_is_full(error: Exception) -> str | None:
    """Which memory an error of Python, NumPy, OpenCV or PyTorch says is full; None for any other error."""
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, of a GPU
        return "the GPU's memory"
    texts = ("DefaultCPUAllocator", "Insufficient memory")  # a RuntimeError of PyTorch, cv2.error
    if isinstance(error, MemoryError) or any(text in str(error) for text in texts):
        return "this machine's memory"
    return None
