"""The chain in a loop in one process on a tiny data set: do memory, open files, threads and processes stay level?

    python -m tests.soak --minutes 60 --csv soak.csv

A line of the CSV for each round: seconds since the start, resident memory in MiB, open files, threads, child
processes, files in the work folder. The last line printed compares the middle round, with full caches, to the last.
"""

import contextlib
import csv
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.killing import make_data
from tests.stages import LOOSE, Stages
from utils.cli import Parser, run
from utils.storage.files import atomic

FIELDS = ("round", "seconds", "rss_mib", "open_files", "threads", "children", "work_files")


def sample(root: Path) -> list[float]:
    """This process's resident memory (MiB), open files, threads, children; files under `root`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    files = sum(1 for path in root.rglob("*") if path.is_file())
    rss = int(status["VmRSS"].split()[0]) / 1024
    return [round(rss, 1), len(os.listdir("/proc/self/fd")), int(status["Threads"]), len(children), files]  # noqa: PTH208


def one_round(root: Path) -> None:
    """Every stage in an empty folder of runs, with a head that uses frame features; then linking by IoU."""
    shutil.rmtree(root / "checkpoint", ignore_errors=True)
    stages = Stages(root / "data", root / "checkpoint")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        stages.chain("one", "--head_type", "res")
        for subset in ("train", "val"):
            stages.run("eval_qmm", "--qmm_name", "one", "--subset", subset, "--link_cues", "iou", *LOOSE)


def main() -> None:
    """The command line."""
    parser = Parser("Run the chain in a loop and watch memory, open files, threads and processes.")
    parser.flag("soak", "minutes", type=float, default=60.0, help="how long")
    parser.flag("soak", "csv", default="soak.csv", help="file of the curve")
    args = parser.parse_args()
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        root = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            make_data(root)
        while not rows or time.monotonic() - began < 60 * args.minutes:
            one_round(root)
            rows.append([len(rows) + 1, round(time.monotonic() - began, 1), *sample(root)])
            with atomic(args.csv) as part, part.open("w", newline="") as file:
                csv.writer(file).writerows([FIELDS, *rows])
            print(*rows[-1], file=sys.stderr)
    middle, last = rows[len(rows) // 2], rows[-1]
    print(f"{len(rows)} rounds in {last[1] / 60:.1f} minutes; from the middle one to the last: ", end="")
    print(", ".join(f"{name} {a:g} -> {b:g}" for name, a, b in zip(FIELDS[2:], middle[2:], last[2:], strict=True)))


if __name__ == "__main__":
    run(main)
