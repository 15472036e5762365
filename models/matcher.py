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


@torch.no_grad()
def match_layers(layers: list[dict], targets: list[dict], costs: dict[str, float], box_overlap: str) -> Tensor:
    """The one-to-one matches of predictions and targets of the lowest cost, in each image of each decoder layer.

    Pairs without a finite cost come last, which the loss then reports.

    Args:
        layers: outputs of each layer, `pred_logits` (B, N, C + 1), `pred_boxes` (B, N, 4) cxcywh normalised.
        targets: B dicts of `labels` int64 (n,), `boxes` (n, 4).
        costs: weights in a pair's cost of the class's negative probability (`class`), the boxes' L1 distance (`bbox`)
            and their negative overlap (`giou`).
        box_overlap: as in `pairwise_overlap`.

    Returns:
        int64 (L, 3, M) on the predictions' device, which the host does not wait for: image, query, and target in the
        concatenation of all images' targets.
    """
    logits, boxes = (torch.stack([layer[name] for layer in layers]) for name in ("pred_logits", "pred_boxes"))
    labels, gt_boxes = (torch.cat([t[name] for t in targets]) for name in ("labels", "boxes"))
    # all predictions with all targets of the batch: more pairs than needed, but few calls and one transfer
    prob, predicted = logits.float().softmax(-1).flatten(0, 2), boxes.float().flatten(0, 2)
    overlap = pairwise_overlap(predicted, gt_boxes.float(), box_overlap)
    distance = torch.cdist(predicted, gt_boxes.float(), p=1)
    cost = costs["bbox"] * distance - costs["class"] * prob[:, labels] - costs["giou"] * overlap
    cost = np.nan_to_num(cost.unflatten(0, boxes.shape[:3]).cpu().numpy(), nan=1e9, posinf=1e9, neginf=-1e9)
    starts = np.cumsum([0, *(len(t["labels"]) for t in targets)])
    matches = []
    for of_layer in cost:
        pairs = []
        for i, of_image in enumerate(of_layer):
            query, target = linear_sum_assignment(of_image[:, starts[i] : starts[i + 1]])
            pairs.append([np.full_like(query, i), query, target + starts[i]])
        matches.append(np.concatenate(pairs, 1))
    return torch.from_numpy(np.stack(matches)).to(logits.device, non_blocking=True)
