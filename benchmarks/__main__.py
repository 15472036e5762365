"""All benchmarks as one table: `python -m benchmarks [name ...]`."""

import importlib
import sys
import time

from benchmarks.rows import Row, print_rows

NAMES = ("query_cache", "detr_inference", "loader", "video_map", "npair", "linking", "memory", "head_batches")


def main() -> None:
    """Measure one after another, say on stderr how long each took, and print the table."""
    rows: list[Row] = []
    for name in sys.argv[1:] or NAMES:
        start = time.perf_counter()
        rows += importlib.import_module(f"benchmarks.{name}").measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print_rows(rows)


if __name__ == "__main__":
    main()
