"""Losses that make a detector trained from scratch distinguish people and actions by its queries.

DETR's queries carry appearance and action when it was trained on COCO's 80 classes and millions of boxes. A detector
trained from scratch on boxes of people alone has no reason to keep them, and learns detection itself slowly. These
losses give it one, and its backbone a gradient that does not wait for the decoder to attend to the right cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detr import DETR
from models.person_encoder import NPairLoss, joined, joined_loss
from utils.distributed import rank_mean, world_size

IDENTITY_D = 64  # width of the identity layer


class QueryLosses(nn.Module):
    """A DETR with linear layers for identity and action on its queries and on the cells of its feature map.

    For training alone. Calling it gives DETR's outputs and, of queries, `identity` (B, N, 64) and `action`
    (B, N, n_actions + 1); of cells, `cells` (B, n_actions + 2, h, w), whose last channel is the presence of a person;
    `image_share` (B, 2), the share of the feature map's width and height that is image, not padding.

    Args:
        n_actions: actions without "no action".
        tau, same_clip: of the identity loss, as in `NPairLoss`.
    """

    def __init__(self, detr: DETR, n_actions: int, tau: float = 0.1, same_clip: float = 0.0) -> None:
        super().__init__()
        self.detr, self.n_actions = detr, n_actions
        d = detr.query_embed.embedding_dim
        self.identity, self.action = nn.Linear(d, IDENTITY_D), nn.Linear(d, n_actions + 1)
        self.place = nn.Conv2d(detr.backbone[0].num_channels, n_actions + 2, 1)
        self.contrast = NPairLoss(tau, same_clip)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict:
        """`images` and `mask` as in `DETR.forward`."""
        out = self.detr(images, mask)
        image_share = images.new_ones(len(images), 2)
        if mask is not None:
            image_share = torch.stack([(~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)], 1)
        identity, action = self.identity(out["queries"]), self.action(out["queries"])
        cells = self.place(out["features"])
        return {**out, "identity": identity, "action": action, "cells": cells, "image_share": image_share}

    def losses(self, out: dict, targets: list[dict], matches: Tensor, clips: Tensor) -> dict[str, Tensor]:
        """The three losses of a batch; each divided so that the processes together have the joined batch's gradient.

        Args:
            targets: per image, `boxes` (n, 4) cxcywh normalised, `person_ids` int64 (n,) distinct between clips,
                `actions` int64 (n,), -1 for none, or sets of them, float32 (n, n_actions).
            matches: int64 (3, M), those of `SetCriterion.match` of the last decoder layer.
            clips: int64 (N,), the clip of each image.

        Returns:
            `loss_id`, the N-pair loss of the matched queries; `loss_action`, the cross-entropy of their actions;
            `loss_place`, see `_cell_loss`.
        """
        image, query, target = matches
        ids, actions = (torch.cat([t[name] for t in targets])[target] for name in ("person_ids", "actions"))
        of_all = joined(out["identity"][image, query], ids, clips.to(image.device)[image])
        return {
            "loss_id": joined_loss(self.contrast, *of_all),
            "loss_action": self._action_loss(out["action"][image, query].float(), actions),
            "loss_place": self._cell_loss(out, targets),
        }

    def _action_loss(self, logits: Tensor, actions: Tensor) -> Tensor:
        """The mean cross-entropy of actions (n,), or the binary one of sets (n, C) with any action; 0 of none."""
        if actions.dim() == 2:
            known = actions.any(1).float()
            losses = F.binary_cross_entropy_with_logits(logits[:, :-1], actions, reduction="none").mean(1) * known
        else:
            known = torch.ones(len(actions), device=logits.device)
            labels = torch.where(actions < 0, self.n_actions, actions)
            losses = F.cross_entropy(logits, labels, reduction="none")
        return losses.sum() / rank_mean(known.sum()).clamp(min=1 / world_size())

    def _cell_loss(self, out: dict, targets: list[dict]) -> Tensor:
        """The binary cross-entropy of a person's presence over all cells, plus the cross-entropy of each person's
        action by the mean logits of the cells within the box."""
        cells, image_share = out["cells"].float(), out["image_share"]
        high, wide = cells.shape[2:]
        x = ((torch.arange(wide, device=cells.device) + 0.5) / wide)[None, None]
        y = ((torch.arange(high, device=cells.device) + 0.5) / high)[None, :, None]
        image = torch.repeat_interleave(torch.tensor([len(t["boxes"]) for t in targets]))
        image = image.to(cells.device, non_blocking=True)
        boxes = torch.cat([t["boxes"] for t in targets]).float() * image_share.repeat(1, 2)[image]
        cx, cy, w, h = boxes[:, :, None, None].unbind(1)
        # a box smaller than a cell still has the one it lies in
        inside = ((x - cx).abs() <= (w / 2).clamp(min=0.5 / wide)) & ((y - cy).abs() <= (h / 2).clamp(min=0.5 / high))
        inside = inside.float()
        present = torch.zeros_like(cells[:, -1]).index_add_(0, image, inside).clamp(max=1)
        is_image = ((x < image_share[:, 0, None, None]) & (y < image_share[:, 1, None, None])).float()
        losses = F.binary_cross_entropy_with_logits(cells[:, -1], present, is_image, reduction="none")
        person = losses.sum() / rank_mean(is_image.sum())
        mean = torch.einsum("nchw,nhw->nc", cells[image, :-1], inside) / inside.sum((1, 2))[:, None].clamp(min=1)
        return person + self._action_loss(mean, torch.cat([t["actions"] for t in targets]))
