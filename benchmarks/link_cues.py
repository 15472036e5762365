"""Linking by person features against linking by IoU: recall by motion category, each cue at its best threshold.

    python -m benchmarks.link_cues --dataset synthetic --qmm_name demo

Needs the queries that `eval_qmm.py` kept and the encoder of `train_qmm.py`; runs no detector. The threshold of each cue
is the one with the highest recall of large motion (of all where there is none) on the measured subset itself.
"""

from pathlib import Path

import numpy as np

from datasets.config import load_project
from models.person_encoder import encode, load_encoder
from models.person_queries import CachedDetections
from models.tube import Linker
from utils.box_ops import MOTION_CATEGORIES, Tube, motion_categories
from utils.cli import Parser, positive_int, run, run_name, share
from utils.flags import add_data_flags
from utils.gt_tubes import make_gt_tubes
from utils.metrics.tube_recall import tube_precision_recall
from utils.misc import InputError
from utils.results import print_table
from utils.storage.files import epoch_path
from utils.storage.tars import TarStore

THRESHOLDS = {"feature": np.arange(-0.2, 0.91, 0.1), "iou": [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}


def query_tar(root: Path, subset: str, detector: dict) -> TarStore:
    """The query cache of a detector (`Detector.config()`); InputError when there is none."""
    path = root.parent / "queries" / f"{subset}-{detector['key']}.tar"
    if not path.is_file():
        raise InputError(f"{path}: no query cache; run eval_qmm.py --subset {subset} first")
    return TarStore(path, "query cache")


def linked(
    store: TarStore, encoder, cue: str, threshold: float, psn_score_th: float, length: int
) -> dict[str, list[Tube]]:
    """The people of every video, linked by a cue down to a threshold."""
    tubes = {}
    for name in store.names:
        linker = Linker(threshold, link_cues=cue)
        for frames, scores, boxes, queries in CachedDetections(store, name, psn_score_th).blocks():
            linker.extend(frames, boxes, scores, encode(encoder, queries) if linker.cue.needs_features else None)
        tubes[name] = [track.tube() for track in linker.finish() if len(track) >= length]
    return tubes


def main() -> None:
    """The command line."""
    parser = Parser("Compare linking by features and by IoU.")
    add_data_flags(parser)
    parser.flag("data", "subset", default="val", help="subset to measure on")
    parser.flag("data", "qmm_name", type=run_name, default="qmm", help="name of the run of train_qmm.py")
    parser.flag("data", "load_epoch", type=positive_int, help="epoch of the encoder (default: the last)")
    parser.flag("linking", "psn_score_th", type=share, help="person score (default: the data set's)")
    parser.flag("linking", "filter_length", type=positive_int, help="shortest tube (default: the data set's)")
    parser.flag("measuring", "tiou_th", type=share, default=0.5, help="3D IoU threshold")
    args = parser.parse_args()
    project = load_project(args.dataset, args.data_root)
    psn_score_th = project.default("psn_score_th") if args.psn_score_th is None else args.psn_score_th
    filter_length = args.filter_length or project.default("filter_length")
    root = Path(args.checkpoint_root) / project.name / args.qmm_name
    encoder, config, _ = load_encoder(epoch_path(root / "encoder", args.load_epoch, "person encoder", "train_qmm.py"))
    store, gt = query_tar(root, args.subset, config["detector"]), make_gt_tubes(project, args.subset)
    kinds = motion_categories([tube for tubes in gt.values() for tube in tubes])
    print(f"annotated tubes: {', '.join(f'{kind} {kinds.count(kind)}' for kind in MOTION_CATEGORIES)}")
    rows, best = [], {}
    for cue, levels in THRESHOLDS.items():
        measured = []
        for level in levels:
            pred = linked(store, encoder, cue, float(level), psn_score_th, filter_length)
            (found,) = tube_precision_recall(pred, gt, [args.tiou_th])
            by_kind = [found["motion_recall"][kind] for kind in MOTION_CATEGORIES]
            large = found["recall"] if np.isnan(by_kind[-1]) else by_kind[-1]
            measured.append(
                (large, found["recall"], [cue, f"{level:.2f}", found["recall"], found["precision"], *by_kind])
            )
        large, _, row = max(measured, key=lambda m: m[:2])
        best[cue] = large
        rows.append(row)
    columns = [f"recall, {kind}" for kind in MOTION_CATEGORIES]
    print_table(["cue", "threshold", f"recall@{args.tiou_th:g}", "precision", *columns], rows)
    print(f"large motion: by features {best['feature'] - best['iou']:+.3f} over IoU")


if __name__ == "__main__":
    run(main)
