"""How well person features tell people apart on videos that the person encoder was not trained on."""

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from models.person_encoder import NPairLoss, PersonEncoder, encode

if TYPE_CHECKING:
    from datasets.query_clips import QueryClips

GAPS = (1, 4, 16, 64)  # frames between a detection and those that it is looked for in
TIMES = (0.125, 0.375, 0.625, 0.875)  # of a video from 0 to 1, at which detections are looked for


def _similarities(a: Tensor, b: Tensor) -> Tensor:
    a, b = (nn.functional.normalize(x.float(), dim=1) for x in (a, b))
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.T


def nearest_is_same(features: Tensor, ids: Tensor) -> Tensor | float:
    """Nearest-neighbour accuracy of person features (M, d) with person ids (M,).

    The share of the features of people who appear more than once whose most similar other feature (cosine) is the
    same person's.
    """
    if len(ids) < 2:
        return 0.0
    nearest = _similarities(features, features).fill_diagonal_(-2).argmax(1)
    repeated = (ids[:, None] == ids).sum(1) > 1
    return ((ids[nearest] == ids) & repeated).sum() / repeated.sum().clamp(min=1)


def mean_similarities(features: Tensor, ids: Tensor) -> tuple[float, float]:
    """The mean cosine of two features of the same person and of different people; NaN where there are none."""
    similarities, same = _similarities(features, features), ids[:, None] == ids
    others = ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    return float(similarities[same & others].mean()), float(similarities[~same].mean())


def rank1(features: Tensor, ids: Tensor, gallery: Tensor, gallery_ids: Tensor) -> tuple[int, int]:
    """Of the features (M, d) whose person is in a gallery (N, d): how many are most similar (cosine) to one of that
    person, and how many there are."""
    known = torch.isin(ids, gallery_ids)
    if not known.any():
        return 0, 0
    nearest = gallery_ids[_similarities(features[known], gallery).argmax(1)]
    return int((nearest == ids[known]).sum()), int(known.sum())


def held_out_metrics(
    encoder: PersonEncoder, criterion: NPairLoss, clips: "QueryClips", clips_a_batch: int
) -> dict[str, float]:
    """What training maximises, on clips that it does not see, in batches of the same form.

    Returns:
        `val_loss` (N-pair), `val_nearest_is_same`, `val_similarity_same` and `val_similarity_different` (mean cosines),
        means over batches; `val_rank1@G` for each of `GAPS`: the share of detections whose most similar one in the
        frames G later, of their own and of the batch's other videos, is the same person's. A metric that nothing can be
        measured for is left out.
    """
    values: dict[str, list[float]] = defaultdict(list)
    hits: dict[str, list[tuple[int, int]]] = defaultdict(list)
    device = next(encoder.parameters()).device

    def encoded(queries: np.ndarray, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(encode(encoder, queries)).to(device), torch.from_numpy(ids).to(device)

    for first in range(0, len(clips), clips_a_batch):
        indices = range(first, min(first + clips_a_batch, len(clips)))
        features, ids = encoded(*clips.pack([(0, index) for index in indices]))
        if len(ids.unique()) < len(ids):  # somebody appears twice
            values["val_loss"].append(float(criterion(features, ids)))
            values["val_nearest_is_same"].append(float(nearest_is_same(features, ids)))
        for name, value in zip(("same", "different"), mean_similarities(features, ids), strict=True):
            values[f"val_similarity_{name}"].append(value)
        for gap, time in itertools.product(GAPS, TIMES):
            detections, gallery = clips.across(indices, gap, time)
            hits[f"val_rank1@{gap}"].append(rank1(*encoded(*detections), *encoded(*gallery)))
    totals = {name: np.sum(counts, 0) for name, counts in hits.items()}
    metrics = {name: float(np.nanmean(batches)) for name, batches in values.items() if np.isfinite(batches).any()}
    return metrics | {name: float(right / total) for name, (right, total) in totals.items() if total}
