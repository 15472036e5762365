"""The losses that help a detector trained from scratch, against a slower obvious version."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.auxiliary_losses import QueryLosses
from models.detr import build_model
from models.person_encoder import NPairLoss
from tests.fill import SMALL

N_ACTIONS = 3


@pytest.fixture(scope="module")
def model() -> QueryLosses:
    torch.manual_seed(0)
    return QueryLosses(build_model(SMALL)[0], N_ACTIONS).train()


def people(*boxes: list[float], first_id: int, actions: list[int]) -> dict[str, Tensor]:
    n = len(boxes)
    return {
        "boxes": torch.tensor(boxes).reshape(n, 4),
        "labels": torch.ones(n, dtype=torch.int64),
        "person_ids": torch.arange(n) + first_id,
        "actions": torch.tensor(actions, dtype=torch.int64),
    }


TARGETS = [
    people([0.3, 0.4, 0.4, 0.6], [0.55, 0.5, 0.4, 0.9], first_id=0, actions=[1, -1]),
    people(first_id=2, actions=[]),
    people([0.31, 0.4, 0.4, 0.6], [0.8, 0.9, 0.01, 0.01], first_id=0, actions=[2, 0]),  # one smaller than a cell
]
CLIPS = torch.tensor([0, 1, 0])


def obvious_cell_loss(place: Tensor, shown: Tensor) -> Tensor:
    """Cell by cell, box by box."""
    presence, logits, actions = [], [], []
    high, wide = place.shape[2:]
    for i, target in enumerate(TARGETS):
        taken = torch.zeros(high, wide)
        for box, action in zip(target["boxes"], target["actions"], strict=True):
            cx, cy, w, h = (box * shown[i].repeat(2)).tolist()
            logits_inside = []
            for r in range(high):
                for c in range(wide):
                    apart = abs((c + 0.5) / wide - cx), abs((r + 0.5) / high - cy)
                    if apart[0] <= max(w / 2, 0.5 / wide) and apart[1] <= max(h / 2, 0.5 / high):
                        taken[r, c] = 1
                        logits_inside.append(place[i, :, r, c])
            logits.append(torch.stack(logits_inside).mean(0)[:-1])
            actions.append(action if action >= 0 else torch.tensor(N_ACTIONS))
        for r in range(high):
            for c in range(wide):
                if (c + 0.5) / wide < shown[i, 0] and (r + 0.5) / high < shown[i, 1]:
                    presence.append(F.binary_cross_entropy_with_logits(place[i, -1, r, c], taken[r, c]))
    return torch.stack(presence).mean() + F.cross_entropy(torch.stack(logits), torch.stack(actions))


@pytest.mark.parametrize("padded", [False, True])
def test_losses_are_those_of_loops_over_cells_and_people(model: QueryLosses, padded: bool) -> None:
    images, mask = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1)), None
    if padded:
        mask = torch.zeros(3, 64, 96, dtype=torch.bool)
        mask[0, 40:], mask[2, :, 70:] = True, True
    out = model(images, mask)
    expected = [[1, 0.625], [1, 1], [pytest.approx(70 / 96), 1]] if padded else [[1, 1]] * 3
    assert out["image_share"].tolist() == expected
    matches = torch.tensor([[0, 0, 2, 2], [4, 2, 0, 3], [1, 0, 2, 3]])  # image, query, target
    losses = model.losses(out, TARGETS, matches, CLIPS)
    torch.testing.assert_close(losses["loss_place"], obvious_cell_loss(out["cells"], out["image_share"]))
    rows = torch.stack([out["action"][0, 4], out["action"][0, 2], out["action"][2, 0], out["action"][2, 3]])
    torch.testing.assert_close(losses["loss_action"], F.cross_entropy(rows, torch.tensor([N_ACTIONS, 1, 2, 0])))
    rows = torch.stack([out["identity"][0, 4], out["identity"][0, 2], out["identity"][2, 0], out["identity"][2, 3]])
    contrast = NPairLoss(0.1)(rows, torch.tensor([1, 0, 0, 1]))
    torch.testing.assert_close(losses["loss_id"], contrast)
    sum(losses.values()).backward()
    assert model.detr.backbone[0].body.conv1.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_same_clip_negatives_weigh_more_in_the_identity_loss() -> None:
    torch.manual_seed(0)
    identities, weight = QueryLosses(build_model(SMALL)[0], N_ACTIONS, same_clip=3.0), math.exp(3)
    assert identities.contrast.same_clip == 3
    labels, clips = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([0, 0, 0, 1, 1, 1])
    embs = F.normalize(torch.randn(6, 8), dim=1)
    losses = []
    for i, positive in ((0, 1), (1, 0), (3, 4), (4, 3)):
        terms = torch.exp(embs @ embs[i] / 0.1)
        others = [terms[j] * (weight if clips[j] == clips[i] else 1) for j in range(6) if labels[j] != labels[i]]
        losses.append(-torch.log(terms[positive] / (terms[positive] + sum(others))))
    torch.testing.assert_close(identities.contrast(embs, labels, clips), torch.stack(losses).mean())


def test_images_without_people_have_finite_losses_and_gradients(model: QueryLosses) -> None:
    out = model(torch.randn(2, 3, 64, 64))
    nobody = torch.zeros(3, 0, dtype=torch.int64)
    losses = model.losses(out, [TARGETS[1]] * 2, nobody, CLIPS[:2])
    assert losses["loss_id"] == losses["loss_action"] == 0 and losses["loss_place"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
