"""DETR's loss (Carion et al., ECCV 2020): Hungarian matching, then class and box losses in every decoder layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.matcher import match_layers, pairwise_overlap
from utils.distributed import rank_mean


class SetCriterion(nn.Module):
    """Cross-entropy over all queries and L1 + GIoU over the matched ones (`box_overlap` "iou": L1 + IoU).

    Calling it gives a dict of scalars: `loss_ce`, `loss_bbox`, `loss_giou` (with a suffix `_i` for earlier
    decoder layers), weighted by `weight_dict`, and the metrics `class_error` (%) and `cardinality_error`.
    Normalisers are averaged over the processes, so that ranks together give the joined batch's gradient.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.num_classes = config["num_classes"]
        self.box_overlap = config["box_overlap"]
        self.costs = {name: config[f"set_cost_{name}"] for name in ("class", "bbox", "giou")}
        weights = {f"loss_{name}": config[f"{name}_loss_coef"] for name in ("ce", "bbox", "giou")}
        earlier = range(config["dec_layers"] - 1) if config["aux_loss"] else ()
        self.weight_dict = weights | {f"{name}_{i}": weight for i in earlier for name, weight in weights.items()}
        class_weight = torch.ones(self.num_classes + 1)
        class_weight[-1] = config["eos_coef"]
        self.register_buffer("class_weight", class_weight)

    def match(self, outputs: dict, targets: list[dict]) -> Tensor:
        """`match_layers` of all decoder layers: the last one first, then the earlier ones in order."""
        return match_layers([outputs, *outputs.get("aux_outputs", [])], targets, self.costs, self.box_overlap)

    def forward(self, outputs: dict, targets: list[dict], matches: Tensor | None = None) -> dict[str, Tensor]:
        """The losses and metrics of a batch.

        Args:
            targets: one dict an image, `labels` int64 (n,) and `boxes` (n, 4) cxcywh normalised; n may be 0.
            matches: those of `match`, where they are known already.
        """
        device = outputs["pred_logits"].device
        labels, boxes = (torch.cat([t[name] for t in targets]) for name in ("labels", "boxes"))
        n_boxes = rank_mean(torch.full((), float(len(labels)), device=device)).clamp(min=1)
        matches = self.match(outputs, targets) if matches is None else matches
        losses = self._layer(outputs, labels, boxes, n_boxes, matches[0])
        losses |= self._metrics(outputs, targets, labels, matches[0])
        for i, earlier in enumerate(outputs.get("aux_outputs", [])):
            layer = self._layer(earlier, labels, boxes, n_boxes, matches[i + 1])
            losses |= {f"{name}_{i}": value for name, value in layer.items()}
        return losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses, the scalar that is minimised."""
        return sum(losses[name] * weight for name, weight in self.weight_dict.items() if name in losses)

    def _layer(
        self, outputs: dict, labels: Tensor, target_boxes: Tensor, n_boxes: Tensor, matches: Tensor
    ) -> dict[str, Tensor]:
        logits, boxes = outputs["pred_logits"].float(), outputs["pred_boxes"].float()
        image, query, target = matches
        classes = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        classes[image, query] = labels[target]
        weights = self.class_weight[classes]
        ce = F.cross_entropy(logits.transpose(1, 2), classes, reduction="none")
        boxes, target_boxes = boxes[image, query], target_boxes[target]
        giou = pairwise_overlap(boxes, target_boxes.float(), self.box_overlap).diagonal()
        return {
            "loss_ce": (ce * weights).sum() / rank_mean(weights.sum()),
            "loss_bbox": (boxes - target_boxes).abs().sum() / n_boxes,
            "loss_giou": (1 - giou).sum() / n_boxes,
        }

    @torch.no_grad()
    def _metrics(self, outputs: dict, targets: list[dict], labels: Tensor, matches: Tensor) -> dict[str, Tensor]:
        logits = outputs["pred_logits"].float()
        image, query, target = matches
        correct = logits[image, query].argmax(-1) == labels[target]
        n_predicted = (logits.argmax(-1) != self.num_classes).sum(1).float()
        n_targets = torch.tensor([float(len(t["labels"])) for t in targets]).to(logits.device, non_blocking=True)
        return {
            "class_error": 100 - 100 * correct.float().sum() / max(len(target), 1),
            "cardinality_error": (n_predicted - n_targets).abs().mean(),
        }
