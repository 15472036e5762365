"""Which decoder layer's queries tell people apart: each layer's beside the last one's, on held-out synthetic videos.

The small detector that comes with the code has three layers; the published runs took the first of six. Measured as they
are, and after a person encoder was trained on them (`train_qmm.py`'s loss, 300 steps).
"""

import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.rows import Row, one_thread, show
from datasets.annotations import read_annotations
from datasets.config import load_project
from datasets.frame_batches import SubsetVideos
from datasets.query_clips import QueryClips
from datasets.synthetic.videos import make_synthetic
from models.held_out import held_out_metrics
from models.person_encoder import NPairLoss, PersonEncoder
from models.person_queries import CachedDetections, Detector, cache_queries, match_people

DETR, STEPS, CLIPS = "synthetic", 300, 8
SHOWN = ("val_rank1@1", "val_rank1@16", "val_rank1@64")


def clips(root: Path, subset: str, detector: Detector) -> QueryClips:
    """Clips of the queries of a subset of the synthetic data under `root`."""
    project = load_project("synthetic", root)
    store = cache_queries(root / "queries", SubsetVideos(project, subset), detector)
    annotations = read_annotations(project, project.split(subset))

    def match(detections, frames, boxes):
        return match_people(detections.frames, detections.boxes, frames, boxes, 0.3)

    return QueryClips(annotations, partial(CachedDetections, store, psn_score_th=0.5), match, 8, 4, seed=0)


def train(encoder: PersonEncoder, data: QueryClips) -> None:
    """`STEPS` steps of N-pair loss."""
    criterion, optimizer = NPairLoss(0.1), torch.optim.AdamW(encoder.parameters(), 5e-4, weight_decay=0.05)
    for step in range(STEPS):
        queries, ids = data.pack([(step, (CLIPS * step + i) % len(data)) for i in range(CLIPS)])
        optimizer.zero_grad()
        criterion(encoder(torch.from_numpy(queries)), torch.from_numpy(ids)).backward()
        optimizer.step()


def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit) of every earlier layer, the last one's being the yardstick."""
    found: dict[int, dict[str, float]] = {}
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_synthetic(root / "synthetic", n_train=24, n_val=16, seed=11)
        last = Detector(DETR, torch.device("cpu")).n_layers
        for layer in range(1, last + 1):
            detector = Detector(DETR, torch.device("cpu"), query_layer=layer)
            data, held_out = (clips(root, subset, detector) for subset in ("train", "val"))
            torch.manual_seed(0)
            encoder = PersonEncoder(detector.d, detector.d, skip=True)
            with torch.no_grad():
                encoder.layers[-1].weight.zero_()  # so that the encoder gives the queries themselves
            for state in ("as they are", "trained"):
                if state == "trained":
                    train(encoder.train(), data)
                metrics = held_out_metrics(encoder.eval(), NPairLoss(0.1), held_out, CLIPS)
                found.setdefault(layer, {}).update({f"{state}: {name}": metrics[name] for name in SHOWN})
    return [
        Row(f"queries of layer {layer} / of layer {last}, {name}", value, found[last][name], "share")
        for layer in range(1, last)
        for name, value in found[layer].items()
    ]


if __name__ == "__main__":
    show(__doc__, measure)
