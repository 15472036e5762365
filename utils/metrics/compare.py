"""Compare two results of the same videos: is the difference of a metric more than chance?

    python -m utils.metrics.compare A.json B.json [--plot differences.png]

Both are results files of `eval_map.py --bootstrap N` with the same N and seed, so that resample i drew the same videos
for both: the differences are paired, and what makes a video hard or easy for both does not widen their interval.
"""

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
PLOTS = (".png", ".pdf", ".svg")
DIGITS = 12  # of differences: what is left of equal values after rounding is on neither side of zero
COMPARED = ("bootstrap", "seed", "protocol", "count_duplicates", "ground_truth", "metric")  # of a results file's `args`


def write_resamples(folder: Path, values: Mapping[str, np.ndarray]) -> None:
    """Keep the values of metrics in every resample, float64 (B,) by name, in the folder beside a results file."""
    with atomic(folder / FILE) as part, part.open("wb") as file:
        np.savez_compressed(file, names=np.array(list(values)), values=np.array(list(values.values())))


def resamples_checksum(values: Mapping[str, np.ndarray]) -> str:
    """A checksum of what `write_resamples` keeps, which stands in the results file."""
    return checksum(*values, *values.values())


def compare(a: Path, b: Path) -> dict[str, dict[str, float]]:
    """The difference A - B of every metric that two results share, in their tables' order.

    Returns:
        Metric (`v-mAP@0.5`, `AP@0.5/walk`, `motion-AP@0.5/small`) -> "a", "b", "difference", the ends "low" and "high"
        of its 95 % interval, and "wins", the share of resamples in which A is better (a tie counts half).

    Raises:
        InputError: a file is missing or damaged, or resamples, protocols or ground truth are not the same.
    """
    (values_a, args_a, of_a), (values_b, args_b, of_b) = _read(a), _read(b)
    if any(args_a[flag] != args_b[flag] for flag in ("bootstrap", "seed")):
        raise InputError(f"{a} and {b}: not the same videos, --bootstrap and --seed; evaluate both alike")
    for flag in ("protocol", "count_duplicates"):  # metrics of one name differ by them
        if args_a[flag] != args_b[flag]:
            raise InputError(f"{a} and {b}: --{flag} is {args_a[flag]} and {args_b[flag]}; evaluate both alike")
    if args_a["ground_truth"] != args_b["ground_truth"]:
        raise InputError(f"{a} and {b}: not the same ground truth; evaluate both on the same annotation")
    rows, alike = {}, args_a["metric"] == args_b["metric"]
    for name in of_a:
        if name not in of_b or (name.startswith("AP@") and not alike):  # AP of tubes and of boxes have one name
            continue
        difference = (of_a[name] - of_b[name]).round(DIGITS)
        known = difference[~np.isnan(difference)]
        if len(known) and None not in (values_a.get(name), values_b.get(name)):
            point = round(values_a[name] - values_b[name], DIGITS)
            most = max(1.0, abs(point))  # AP lies between 0 and 1, but for duplicates that count
            low, high = (np.clip(interval(known, point), -most, most).round(DIGITS) + 0.0).tolist()  # no -0
            wins = float((known > 0).mean() + (known == 0).mean() / 2)
            rows[name] = {"a": values_a[name], "b": values_b[name], "difference": point}
            rows[name] |= {"low": low, "high": high, "wins": wins}
    if not rows:
        raise InputError(f"{a} and {b}: no metric is in both; evaluate both with the same --metric and --tiou_th")
    return rows


def _read(path: Path) -> tuple[dict[str, float | None], dict, dict[str, np.ndarray]]:
    """The metrics of a results file, those by class or motion as `AP@0.5/walk`, its `args`, and the metrics' values in
    every resample, which lie beside it."""
    results = read_results(path, "eval_map", "protocol")
    if missing := {*COMPARED} - results["args"].keys():
        raise InputError(f"{path}: its args lack {min(missing)}; evaluate again with eval_map.py --bootstrap 1000")
    if "intervals" not in results["metrics"]:  # the resamples beside it are those of an earlier run
        raise InputError(f"{path}: has no intervals; evaluate again with eval_map.py --bootstrap 1000")
    beside = path.with_suffix("") / FILE
    try:
        with np.load(beside, allow_pickle=False) as file:
            resamples = dict(zip(file["names"].tolist(), file["values"], strict=True))
    except FileNotFoundError:
        raise InputError(f"{beside}: missing; evaluate again with eval_map.py --bootstrap 1000") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{beside}: not the resamples of a results file ({error})") from None
    if results["args"].get("resamples") != resamples_checksum(resamples):
        raise InputError(f"{path}: its resamples are of another run, since the last one was stopped; evaluate again")
    return dict(flat(results["metrics"])), results["args"], resamples


def main() -> None:
    """The command line."""
    parser = Parser("Compare two results of eval_map.py --bootstrap on the same videos.")
    parser.add_argument("a", help="results file A")
    parser.add_argument("b", help="results file B")
    parser.flag("output", "plot", metavar="FILE", help="plot of differences and intervals: .png, .pdf or .svg")
    args = parser.parse_args()
    if args.plot and Path(args.plot).suffix not in PLOTS:
        raise InputError(f"--plot {args.plot}: name a {', '.join(PLOTS[:-1])} or {PLOTS[-1]} file")
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
