"""The figures of a run's results folder and the stages' times as tables.

printf 'query matching\t30\n' | python -m scripts.report checkpoint/synthetic/demo/results
"""

import sys
from pathlib import Path

from utils.cli import run
from utils.files import read_json
from utils.misc import InputError
from utils.results import print_table

SHOWN = ("recall@", "precision@", "IDF1", "HOTA", "v-mAP@", "frame-mAP@")


def main() -> None:
    """The command line: a folder of results as its argument, lines `stage<tab>seconds` on standard input."""
    if len(sys.argv) != 2:
        raise InputError("usage: python -m scripts.report RESULTS < TIMES")
    rows = []
    for path in sorted(Path(sys.argv[1]).glob("eval_*.json")):
        held = read_json(path, "results")
        subset = held["args"]["subset"]
        rows += [[f"{name}, {subset}", value] for name, value in held["metrics"].items() if name.startswith(SHOWN)]
    print_table(["figure", "value"], rows)
    print()
    times = [line.rstrip("\n").split("\t") for line in sys.stdin]
    print_table(["stage", "seconds"], times)
    print(f"\nresults: {sys.argv[1]}/*.json")


if __name__ == "__main__":
    run(main)
