"""Compare two results of the same videos: is the difference of a metric more than chance?

    python -m utils.metrics.compare A.json B.json [--plot differences.png]

Both are results files of `eval_map.py --bootstrap N` with the same N and seed, so that resample i drew the same videos
for both: the differences are paired, and what makes a video hard or easy for both does not widen their interval.
"""

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.cli import Parser, run
from utils.metrics.bootstrap import LEVEL, interval
from utils.misc import InputError, checksum
from utils.results import flat, print_table, read_results
from utils.storage.files import atomic

FILE = "resamples.npz"  # in the folder beside a results file
COUNTING = ("protocol", "count_duplicates")  # flags by which metrics of one name differ


def write_resamples(folder: Path, values: Mapping[str, np.ndarray], videos: list[str], seed: int) -> Path:
    """Keep the values of metrics in every resample, float64 (B,) by name, beside a results file."""
    path = folder / FILE
    drawn = checksum(*sorted(videos), str(seed))
    with atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, names=np.array(list(values)), values=np.array(list(values.values())), drawn=drawn)
    return path


def resamples_checksum(values: Mapping[str, np.ndarray]) -> str:
    """A checksum of what `write_resamples` keeps, which stands in the results file."""
    return checksum(*values, *values.values())


def read_resamples(results: Path) -> tuple[dict[str, np.ndarray], str]:
    """What `write_resamples` kept beside a results file, and a checksum of the draws' videos and seed."""
    path = results.with_suffix("") / FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            names, values, drawn = file["names"].tolist(), file["values"], str(file["drawn"])
    except FileNotFoundError:
        raise InputError(f"{path}: missing; evaluate again with eval_map.py --bootstrap 1000") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not the resamples of a results file ({error})") from None
    return dict(zip(names, values, strict=True)), drawn


def compare(a: Path, b: Path) -> dict[str, dict[str, float]]:
    """The difference A - B of every metric that two results share, in their tables' order.

    Returns:
        Metric (`v-mAP@0.5`, `AP@0.5/walk`, `motion-AP@0.5/small`) -> "a", "b", "difference", the ends "low" and "high"
        of its 95 % interval, and "wins", the share of resamples in which A is better (a tie counts half).

    Raises:
        InputError: a file is missing or damaged, or resamples, protocols or ground truth are not the same.
    """
    (of_a, drawn_a), (of_b, drawn_b) = read_resamples(a), read_resamples(b)
    if drawn_a != drawn_b or len(next(iter(of_a.values()))) != len(next(iter(of_b.values()))):
        raise InputError(f"{a} and {b}: not the same videos, --bootstrap and --seed; evaluate both alike")
    (values_a, how_a), (values_b, how_b) = _flat_metrics(a), _flat_metrics(b)
    for path, how, values in ((a, how_a, of_a), (b, how_b, of_b)):
        if how.get("resamples") not in (None, resamples_checksum(values)):
            raise InputError(
                f"{path}: its resamples are of another run, since the last one was stopped; evaluate again"
            )
    for flag in COUNTING:
        if how_a.get(flag) != how_b.get(flag):
            raise InputError(f"{a} and {b}: --{flag} is {how_a.get(flag)} and {how_b.get(flag)}; evaluate both alike")
    if (n := values_a.get("gt_tubes")) != (m := values_b.get("gt_tubes")):
        raise InputError(f"{a} and {b}: {n} and {m} tubes of ground truth; evaluate both on the same annotation")
    gt_a, gt_b = how_a.get("ground_truth"), how_b.get("ground_truth")
    if None in (gt_a, gt_b):
        text = "older than the record of the ground truth, which may not be the same; evaluate both again to be sure"
        print(f"warning: {a if gt_a is None else b}: {text}", file=sys.stderr)
    elif gt_a != gt_b:
        raise InputError(f"{a} and {b}: not the same ground truth; evaluate both on the same annotation")
    rows, alike = {}, how_a.get("metric") == how_b.get("metric")
    for name in of_a:
        if name not in of_b or (name.startswith("AP@") and not alike):  # AP of tubes and of boxes have one name
            continue
        difference = of_a[name] - of_b[name]
        known = difference[~np.isnan(difference)]
        if len(known) and None not in (values_a.get(name), values_b.get(name)):
            point = values_a[name] - values_b[name]
            low, high = interval(known, point)
            wins = float((known > 0).mean() + (known == 0).mean() / 2)
            rows[name] = {"a": values_a[name], "b": values_b[name], "difference": point}
            rows[name] |= {"low": low, "high": high, "wins": wins}
    if not rows:
        raise InputError(f"{a} and {b}: no metric is in both; evaluate both with the same --metric and --tiou_th")
    return rows


def _flat_metrics(path: Path) -> tuple[dict[str, float | None], dict]:
    """The metrics of a results file, those by class or motion as `AP@0.5/walk`, and its `args`."""
    content = read_results(path, "eval_map", "protocol")
    if "intervals" not in content["metrics"]:  # the resamples beside it are those of an earlier run
        raise InputError(f"{path}: has no intervals; evaluate again with eval_map.py --bootstrap 1000")
    return dict(flat(content["metrics"])), content["args"]


def main() -> None:
    """The command line."""
    parser = Parser("Compare two results of eval_map.py --bootstrap on the same videos.")
    parser.add_argument("a", help="results file A")
    parser.add_argument("b", help="results file B")
    parser.flag("output", "plot", metavar="FILE", help="plot the differences and their intervals as this PNG file")
    args = parser.parse_args()
    rows = compare(Path(args.a), Path(args.b))
    print(f"A: {args.a}\nB: {args.b}")
    head = ["", "A", "B", "A - B", f"{LEVEL:.0%} from", "to", "A better"]
    table = [[name, *(row[k] for k in ("a", "b", "difference", "low", "high")), f"{row['wins']:.1%}"]
             for name, row in rows.items()]  # fmt: skip
    print_table(head, table)
    if args.plot:
        from utils.drawing.error_plots import plot_intervals

        values = {name: (row["difference"], row["low"], row["high"]) for name, row in rows.items()}
        plot_intervals(
            args.plot, values, "A - B, with 95 % intervals", f"A: {Path(args.a).stem}\nB: {Path(args.b).stem}"
        )
        print(f"plot: {args.plot}")


if __name__ == "__main__":
    run(main)
