"""Losses that make a detector trained from nothing tell people and actions apart by their queries.

DETR's queries carry what somebody looks like and does when it was trained on COCO's 80 classes and millions of boxes.
One trained from nothing on boxes of people alone has no reason to keep that, and is slow to find people at all. These
losses give it one, and its backbone a gradient that does not wait for the decoder to look at the right places.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detr import DETR
from models.matcher import Matches, match_indices
from models.person_encoder import NPairLoss

IDENTITY_D, IDENTITY_TAU = 64, 0.1  # width, and temperature by default


class QueryLosses(nn.Module):
    """A DETR with linear layers for identities and actions on its queries and on the places of its backbone's map, for
    training alone.

    `n_actions` without "no action"; `tau` is the temperature of identities. Calling it gives DETR's outputs and beside
    them, of queries, `identity` (B, N, 64) and `action` (B, N, n_actions + 1) and, of places,
    `place` (B, n_actions + 2, h, w), whose last channel says whether somebody is there; `shown` (B, 2) is the share of
    the map's width and height that is picture, not padding.
    """

    def __init__(self, detr: DETR, n_actions: int, tau: float = IDENTITY_TAU) -> None:
        super().__init__()
        self.detr, self.n_actions = detr, n_actions
        d = detr.query_embed.embedding_dim
        self.identity, self.action = nn.Linear(d, IDENTITY_D), nn.Linear(d, n_actions + 1)
        self.place = nn.Conv2d(detr.backbone[0].num_channels, n_actions + 2, 1)
        self.contrast = NPairLoss(tau)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict:
        out = self.detr(images, mask)
        shown = images.new_ones(len(images), 2)
        if mask is not None:
            shown = torch.stack([(~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)], 1)
        of_queries = {"identity": self.identity(out["queries"]), "action": self.action(out["queries"])}
        return {**out, **of_queries, "place": self.place(out["features"]), "shown": shown}

    def losses(self, out: dict, targets: list[dict], matches: Matches) -> dict[str, Tensor]:
        """`loss_id`, the N-pair loss of the matched queries by `person_ids` (int64 (n,), distinct between clips);
        `loss_action`, the cross-entropy of their `actions` (int64 (n,), -1 for none); `loss_place`, see `_of_places`.
        `matches` are those of the last decoder layer."""
        ((picture, query, target),) = match_indices([matches], targets, out["action"].device)
        ids, actions = (torch.cat([t[name] for t in targets])[target] for name in ("person_ids", "actions"))
        place = self._of_places(out, targets)
        if not len(query):
            return {"loss_id": out["identity"].sum() * 0, "loss_action": out["action"].sum() * 0, "loss_place": place}
        return {
            "loss_id": self.contrast(out["identity"][picture, query], ids),
            "loss_action": self._of_actions(out["action"][picture, query].float(), actions),
            "loss_place": place,
        }

    def _of_actions(self, logits: Tensor, actions: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.where(actions < 0, self.n_actions, actions))

    def _of_places(self, out: dict, targets: list[dict]) -> Tensor:
        """The binary cross-entropy of whether somebody is at a place, over all places, and the cross-entropy of each
        person's action by the mean over the places within the box."""
        places, shown = out["place"].float(), out["shown"]
        high, wide = places.shape[2:]
        x = ((torch.arange(wide, device=places.device) + 0.5) / wide)[None, None]
        y = ((torch.arange(high, device=places.device) + 0.5) / high)[None, :, None]
        picture = torch.repeat_interleave(torch.tensor([len(t["boxes"]) for t in targets]))
        picture = picture.to(places.device, non_blocking=True)
        boxes = torch.cat([t["boxes"] for t in targets]).float() * shown.repeat(1, 2)[picture]
        cx, cy, w, h = boxes[:, :, None, None].unbind(1)
        # a box smaller than a place still has the one it lies in
        inside = ((x - cx).abs() <= (w / 2).clamp(min=0.5 / wide)) & ((y - cy).abs() <= (h / 2).clamp(min=0.5 / high))
        inside = inside.float()
        taken = torch.zeros_like(places[:, -1]).index_add_(0, picture, inside).clamp(max=1)
        real = ((x < shown[:, 0, None, None]) & (y < shown[:, 1, None, None])).float()
        person = F.binary_cross_entropy_with_logits(places[:, -1], taken, real, reduction="sum") / real.sum()
        if not len(boxes):
            return person
        mean = torch.einsum("nchw,nhw->nc", places[picture, :-1], inside) / inside.sum((1, 2))[:, None].clamp(min=1)
        return person + self._of_actions(mean, torch.cat([t["actions"] for t in targets]))
