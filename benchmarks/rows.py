"""What a benchmark measured, as rows of a table."""

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from utils.cli import Parser, run
from utils.misc import available_cores
from utils.results import print_table

Result = TypeVar("Result")


class Row(NamedTuple):
    """A value beside its yardstick, measured in the same run; value / yardstick should be within the bounds."""

    what: str
    value: float
    yardstick: float
    unit: str
    at_least: float = 0.0
    at_most: float = math.inf

    def cells(self) -> list[str]:
        """The row's cells, as `HEAD` names them."""
        ratio = self.value / self.yardstick
        asked = f">= {self.at_least:g}" if self.at_least else f"<= {self.at_most:g}" if self.at_most < math.inf else ""
        met = ("yes" if self.at_least <= ratio <= self.at_most else "NO") if asked else ""
        return [self.what, _number(self.value), _number(self.yardstick), self.unit, _number(ratio), asked, met]


HEAD = ("", "value", "yardstick", "unit", "ratio", "asked", "met")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def processor() -> str:
    """What computes here: cores and their vector instructions, and the first GPU; with PyTorch's version."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    names = {"avx2": "AVX2", "avx512f": "AVX512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
    vectors = [name for flag, name in names.items() if flag in words]
    parts = [f"{available_cores()} cores", f"with {vectors[-1]}" if vectors else platform.machine()]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{' '.join(parts)}{gpu}, PyTorch {torch.__version__}"


def print_rows(rows: Iterable[Row]) -> None:
    """The rows as a table, under what computed them."""
    print(f"{processor()}\n")
    print_table(HEAD, [row.cells() for row in rows])


def show(description: str, measure: Callable[[], Iterable[Row]]) -> None:
    """The command line of a benchmark without flags: print what it measures. `description`: the module's docstring."""

    def main() -> None:
        Parser(description.partition("\n")[0]).parse_args()
        print_rows(measure())

    run(main)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: small tensors gain nothing from a second, which only waits where others work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """What a call returns, and its seconds; a GPU's work is waited for."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def seconds(function: Callable[[], object], rounds: int = 3, warm_up: int = 1) -> float:
    """The least time of a call, after `warm_up` others."""
    return min([timed(function)[1] for _ in range(warm_up + rounds)][warm_up:])
