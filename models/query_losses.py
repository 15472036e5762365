"""Losses that make a detector trained from nothing tell people and actions apart by their queries.

DETR's queries carry what somebody looks like and does when it was trained on COCO's 80 classes and millions of boxes.
One trained from nothing on boxes of people alone has no reason to keep that. These two losses give it one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detr import DETR
from models.person_encoder import NPairLoss

IDENTITY_D, IDENTITY_TAU = 64, 0.1


class QueryLosses(nn.Module):
    """A DETR with a linear layer for identities and one for actions on its queries, for training alone.

    `n_actions` without "no action". Calling it gives DETR's outputs with `identity` (B, N, 64) and `action`
    (B, N, n_actions + 1) beside them.
    """

    def __init__(self, detr: DETR, n_actions: int) -> None:
        super().__init__()
        self.detr, self.n_actions = detr, n_actions
        d = detr.query_embed.embedding_dim
        self.identity, self.action = nn.Linear(d, IDENTITY_D), nn.Linear(d, n_actions + 1)
        self.contrast = NPairLoss(IDENTITY_TAU)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> dict:
        out = self.detr(images, mask)
        return {**out, "identity": self.identity(out["queries"]), "action": self.action(out["queries"])}

    def losses(self, out: dict, targets: list[dict], matches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The N-pair loss of the matched queries by `person_ids` (int64 (n,), distinct between clips), and the
        cross-entropy of their `actions` (int64 (n,), -1 for none); `matches` as `models.matcher.HungarianMatcher`."""
        device = out["action"].device
        picture = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(matches)]).to(device)
        query = torch.cat([query for query, _ in matches]).to(device)
        ids, actions = (
            torch.cat([t[name][m.to(device)] for t, (_, m) in zip(targets, matches, strict=True)])
            for name in ("person_ids", "actions")
        )
        if not len(query):
            return out["identity"].sum() * 0, out["action"].sum() * 0
        actions = torch.where(actions < 0, self.n_actions, actions)
        action = F.cross_entropy(out["action"][picture, query].float(), actions)
        return self.contrast(out["identity"][picture, query], ids), action
