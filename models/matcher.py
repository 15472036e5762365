"""Hungarian matching of predictions and targets (DETR, section 3.1)."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from utils.box_ops import box_cxcywh_to_xyxy, box_iou, generalized_box_iou


def pairwise_overlap(a: Tensor, b: Tensor, box_overlap: str = "giou") -> Tensor:
    """GIoU ("giou", official DETR) or IoU ("iou", as in the published runs) of every pair of boxes cxcywh,
    (n, 4) and (m, 4) -> (n, m)."""
    a, b = box_cxcywh_to_xyxy(a), box_cxcywh_to_xyxy(b)
    return generalized_box_iou(a, b) if box_overlap == "giou" else box_iou(a, b)[0]


Matches = list[tuple[Tensor, Tensor]]
"""An image's matched predictions and their targets, int64 (n,) each on the CPU; one pair an image."""


@torch.no_grad()
def match_layers(layers: list[dict], targets: list[dict], costs: dict[str, float], box_overlap: str) -> list[Matches]:
    """The one-to-one matches of predictions and targets of the lowest cost, in each image of each decoder layer.

    Args:
        layers: outputs of each layer, `pred_logits` (B, N, C + 1), `pred_boxes` (B, N, 4) cxcywh normalised.
        targets: B dicts of `labels` int64 (n,), `boxes` (n, 4).
        costs: weights in a pair's cost of the class's negative probability (`class`), the boxes' L1 distance (`bbox`)
            and their negative overlap (`giou`).
        box_overlap: as in `pairwise_overlap`.
    """
    logits, boxes = (torch.stack([layer[name] for layer in layers]) for name in ("pred_logits", "pred_boxes"))
    labels, gt_boxes = (torch.cat([t[name] for t in targets]) for name in ("labels", "boxes"))
    # all predictions with all targets of the batch: more pairs than needed, but few calls and one transfer
    prob, predicted = logits.float().softmax(-1).flatten(0, 2), boxes.float().flatten(0, 2)
    overlap = pairwise_overlap(predicted, gt_boxes.float(), box_overlap)
    distance = torch.cdist(predicted, gt_boxes.float(), p=1)
    cost = costs["bbox"] * distance - costs["class"] * prob[:, labels] - costs["giou"] * overlap
    cost = cost.unflatten(0, boxes.shape[:3]).cpu().numpy()
    parts = np.split(cost, np.cumsum([len(t["labels"]) for t in targets])[:-1], axis=3)
    return [[_assign(part[i]) for i, part in enumerate(of_layer)] for of_layer in zip(*parts, strict=True)]


def _assign(cost: np.ndarray) -> tuple[Tensor, Tensor]:
    """The assignment of minimum cost (N, n); pairs without a finite cost come last, which the loss then reports."""
    cost = np.nan_to_num(cost, nan=1e9, posinf=1e9, neginf=-1e9)
    return tuple(map(torch.from_numpy, linear_sum_assignment(cost)))


def match_indices(layers: list[Matches], targets: list[dict], device: torch.device) -> Tensor:
    """Matches of L layers as indices int64 (L, 3, M) on `device`: image, query, and target in the concatenation of all
    images' targets. One transfer, which the host does not wait for."""
    starts = np.cumsum([0, *(len(t["labels"]) for t in targets)]).tolist()
    rows = []
    for matches in layers:
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(matches)])
        target = torch.cat([start + target for start, (_, target) in zip(starts, matches, strict=False)])
        rows.append(torch.stack([image, torch.cat([query for query, _ in matches]), target]))
    return torch.stack(rows).to(device, non_blocking=True)
