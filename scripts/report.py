"""The metrics in a run's results folder and the stages' times, as tables.

printf 'query matching\t30\n' | python -m scripts.report checkpoint/synthetic/demo/results
"""

import sys
from pathlib import Path

from utils.cli import Parser, run
from utils.results import print_table
from utils.storage.files import read_json

SHOWN = ("recall@", "precision@", "IDF1", "HOTA", "v-mAP@", "frame-mAP@")


def main() -> None:
    """The command line: a folder of results as its argument, lines `stage<tab>seconds` on standard input."""
    parser = Parser("Print the metrics of a run and the times of its stages as tables.")
    parser.add_argument(
        "results", help="folder of results; the times are read from standard input, lines of stage<tab>seconds"
    )
    folder = parser.parse_args().results
    rows = []
    for path in sorted(Path(folder).glob("eval_*.json")):
        results = read_json(path, "results")
        subset = results["args"]["subset"]
        rows += [[f"{name}, {subset}", value] for name, value in results["metrics"].items() if name.startswith(SHOWN)]
    print_table(["metric", "value"], rows)
    print()
    times = [line.rstrip("\n").split("\t") for line in sys.stdin]
    print_table(["stage", "seconds"], times)
    print(f"\nresults: {folder}/*.json")


if __name__ == "__main__":
    run(main)
