"""Kill every stage hundreds of times, resume it, and compare its files with those of a run that was never killed.

    python -m tests.kill_many --kills 300

As tests/test_reliability_kill.py, more often: at random moments; just before each file of each stage is renamed; one of
two processes, where a stage runs in several. About two seconds a kill.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

from tests.killing import NEEDS, TOGETHER, Killing
from utils.cli import Parser, positive_int, run


def main() -> None:
    """The command line."""
    parser = Parser("Kill every stage many times at random moments and at each of its files.")
    parser.flag("kills", "kills", type=positive_int, default=300, help="random kills in all")
    parser.flag("kills", "seed", type=int, default=7, help="seed of the moments")
    parser.flag("kills", "stages", nargs="+", choices=list(NEEDS), default=list(NEEDS), help="stages to kill")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill_many-") as folder:
        killing = Killing(Path(folder), args.seed)
        for script in args.stages:
            kills = -(-args.kills // len(args.stages))
            killing.at_random(script, kills)
            renames = killing.at_renames(script, itertools.count(1))
            pairs = kills // 4 if script in TOGETHER else 0
            if pairs:
                killing.pairs_at_random(script, pairs)
            counts = f"{kills} random kills, {renames} before files, {pairs} of one of two processes"
            print(f"{script}: {counts}, all resumed to the same end", flush=True)
    print(f"{time.monotonic() - began:.0f} seconds", file=sys.stderr)


if __name__ == "__main__":
    run(main)
