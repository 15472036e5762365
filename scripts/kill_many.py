"""Kill every stage hundreds of times, go on with it, and compare what it leaves with a run that was left alone.

    python -m scripts.kill_many --kills 300

The same as tests/test_reliability_kill.py, more often: at random moments, and then just before each file of each
stage takes its place, one after another; then one of two processes, where a stage can run in several. Takes about two
seconds a kill.
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
            each = -(-args.kills // len(args.stages))
            killing.at_random(script, each)
            renames = killing.at_renames(script, itertools.count(1))
            pairs = each // 4 if script in TOGETHER else 0
            if pairs:
                killing.pairs_at_random(script, pairs)
            what = f"{each} random kills, {renames} before files, {pairs} of one of two processes"
            print(f"{script}: {what}, each gone on with to the same end", flush=True)
    print(f"{time.monotonic() - began:.0f} seconds", file=sys.stderr)


if __name__ == "__main__":
    run(main)
