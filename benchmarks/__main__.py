"""All benchmarks as one table: `python -m benchmarks [name ...]`."""

import importlib
import sys
import time

from benchmarks.rows import Row, print_rows
from utils.cli import Parser, run

NAMES = (
    "start_up",
    "query_cache",
    "detr_inference",
    "around_detr",
    "loader",
    "video_map",
    "ava_map",
    "predictions",
    "npair",
    "query_layers",
    "linking",
    "memory",
    "head_batches",
    "predict",
    "report_page",
)


def main() -> None:
    """Measure one after another, say on stderr how long each took, and print the table."""
    parser = Parser("Measure each cost beside its yardstick, and print all as one table.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which (default: all): {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(NAMES)}")
    rows: list[Row] = []
    try:
        for name in names:
            start = time.perf_counter()
            rows += importlib.import_module(f"benchmarks.{name}").measure()
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    finally:  # what was measured is not lost
        print_rows(rows)


if __name__ == "__main__":
    run(main)
