"""Which decoder layer's queries tell people apart: each layer's beside the last one's, on held-out synthetic videos.

The small detector that comes with the code has three layers; the published runs took the first of six. Measured as they
are, and after a person encoder was trained on them (as `benchmarks.query_identity` does).
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.query_identity import CLIPS, annotations_of, clips, train
from benchmarks.rows import Row, one_thread, show
from datasets.config import load_project
from datasets.frame_batches import SubsetVideos
from datasets.query_clips import QueryClips
from datasets.synthetic.videos import make_synthetic
from models.detectors import Detector, open_detector
from models.held_out import held_out_metrics
from models.person_encoder import NPairLoss, PersonEncoder
from models.person_queries import cache_queries

DETR, STEPS, LR = "synthetic", 300, 5e-4
SHOWN = ("val_rank1@1", "val_rank1@16", "val_rank1@64")


def subset_clips(root: Path, subset: str, detector: Detector) -> QueryClips:
    """Clips of the queries of a subset of the synthetic data under `root`."""
    project = load_project("synthetic", root)
    store = cache_queries(root / "queries", SubsetVideos(project, subset), detector)
    return clips(store, annotations_of(store, project), threshold=0.5)


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit) of every earlier layer, the last one's being the yardstick."""
    ranks: dict[int, dict[str, float]] = {}
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_synthetic(root / "synthetic", n_train=24, n_val=16, seed=11)
        last = open_detector(DETR, torch.device("cpu")).n_layers
        for layer in range(1, last + 1):
            detector, criterion = open_detector(DETR, torch.device("cpu"), query_layer=layer), NPairLoss(0.1)
            data, held_out = (subset_clips(root, subset, detector) for subset in ("train", "val"))
            torch.manual_seed(0)
            encoder = PersonEncoder(detector.d, detector.d, skip=True)
            with torch.no_grad():
                encoder.layers[-1].weight.zero_()  # so that the encoder gives the queries themselves
            before = held_out_metrics(encoder.eval(), criterion, held_out, CLIPS)
            train(encoder, criterion, data, STEPS, LR)
            after = held_out_metrics(encoder.eval(), criterion, held_out, CLIPS)
            ranks[layer] = {f"as they are: {name}": before[name] for name in SHOWN}
            ranks[layer] |= {f"trained: {name}": after[name] for name in SHOWN}
    return [
        Row(f"queries of layer {layer} / of layer {last}, {name}", value, ranks[last][name], "share")
        for layer in range(1, last)
        for name, value in ranks[layer].items()
    ]


if __name__ == "__main__":
    show(__doc__, measure)
