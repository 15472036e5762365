"""Hungarian matching of predictions and targets (DETR, section 3.1)."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from utils.box_ops import box_cxcywh_to_xyxy, box_iou, generalized_box_iou


def pairwise_overlap(a: Tensor, b: Tensor, box_overlap: str = "giou") -> Tensor:
    """GIoU ("giou", official DETR) or IoU ("iou", as in the published runs) of every pair of boxes cxcywh,
    (n, 4) and (m, 4) -> (n, m)."""
    a, b = box_cxcywh_to_xyxy(a), box_cxcywh_to_xyxy(b)
    return generalized_box_iou(a, b) if box_overlap == "giou" else box_iou(a, b)[0]


def matching_cost(
    prob: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    class_weight: float = 1.0,
    bbox_weight: float = 5.0,
    giou_weight: float = 2.0,
    box_overlap: str = "giou",
) -> Tensor:
    """Cost of every (prediction, target) pair: weighted sum of -prob of the class, L1 distance and -GIoU of boxes.

    Args:
        prob: class probabilities (N, C).
        boxes: (N, 4), cxcywh, normalised.
        target_labels: int64 (n,).
        target_boxes: (n, 4), as `boxes`.
        box_overlap: see `pairwise_overlap`.

    Returns:
        float32 (N, n).
    """
    boxes, target_boxes = boxes.float(), target_boxes.float()
    giou = pairwise_overlap(boxes, target_boxes, box_overlap)
    l1 = torch.cdist(boxes, target_boxes, p=1)
    return bbox_weight * l1 - class_weight * prob.float()[:, target_labels] - giou_weight * giou


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (prediction, target) of the one-to-one assignment of minimum cost, in order of predictions.

    Pairs whose cost is not finite are assigned last; the loss then reports them.
    """
    return linear_sum_assignment(np.nan_to_num(cost, nan=1e9, posinf=1e9, neginf=-1e9))


Matches = list[tuple[Tensor, Tensor]]
"""An image's matched predictions and their targets, int64 (n,) each on the CPU; one pair an image."""


class HungarianMatcher(nn.Module):
    """Matches of a batch, see `Matches`.

    `outputs`: `pred_logits` (B, N, C + 1), `pred_boxes` (B, N, 4); `targets`: B dicts of `labels` (n,), `boxes` (n, 4).
    """

    def __init__(
        self, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0, box_overlap: str = "giou"
    ) -> None:
        super().__init__()
        self.settings = (cost_class, cost_bbox, cost_giou, box_overlap)

    def forward(self, outputs: dict, targets: list[dict]) -> Matches:
        return self.of_layers([outputs], targets)[0]

    @torch.no_grad()
    def of_layers(self, layers: list[dict], targets: list[dict]) -> list[Matches]:
        """Matches of several decoder layers, from the `outputs` of each."""
        logits, boxes = (torch.stack([layer[name] for layer in layers]) for name in ("pred_logits", "pred_boxes"))
        prob = logits.float().softmax(-1)
        labels, wanted = (torch.cat([t[name] for t in targets]) for name in ("labels", "boxes"))
        # all predictions with all targets of the batch: more pairs than needed, but few calls and one transfer
        costs = matching_cost(prob.flatten(0, 2), boxes.flatten(0, 2), labels, wanted, *self.settings)
        ends = np.cumsum([len(t["labels"]) for t in targets])[:-1]
        parts = np.split(costs.unflatten(0, boxes.shape[:3]).cpu().numpy(), ends, axis=3)
        return [
            [tuple(map(torch.from_numpy, assign(part[layer, i]))) for i, part in enumerate(parts)]
            for layer in range(len(layers))
        ]


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
