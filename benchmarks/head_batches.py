"""Training steps of the action head on padded batches of tubes, against one tube after another."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rows import Row, one_thread, seconds, show
from models.action_head import ActionHead, build_action_head

TUBES, PADDED, CLASSES, D = 64, 16, 24, 256  # a step of the published runs, and how many of it are padded together
LENGTHS = {"JHMDB's lengths, 15 to 40 frames": (15, 40), "UCF101-24's lengths, 20 to 200 frames": (20, 200)}
ATOL = 1e-5


def gradients(head: ActionHead, tubes: list[Tensor], labels: list[Tensor], padded: int) -> Tensor:
    """The gradient of the mean over tubes of their frames' mean cross-entropy, `padded` tubes at a time; one vector."""
    head.zero_grad()
    order = sorted(range(len(tubes)), key=lambda i: len(tubes[i]))
    for start in range(0, len(order), padded):
        some = order[start : start + padded]
        lengths = torch.tensor([len(tubes[i]) for i in some])
        queries = torch.nn.utils.rnn.pad_sequence([tubes[i] for i in some], batch_first=True)
        wanted = torch.nn.utils.rnn.pad_sequence([labels[i] for i in some], batch_first=True)
        times = torch.arange(queries.shape[1]).expand(len(some), -1)
        padding = times >= lengths[:, None]
        logits = head(queries, times, padding if padding.any() else None)
        ce = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").masked_fill(padding, 0)
        ((ce.sum(1) / lengths).sum() / len(tubes)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in head.parameters()])


@one_thread()
def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    rows = []
    for name, (shortest, longest) in LENGTHS.items():
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        head = build_action_head("time_ecd:cat", CLASSES, D, dropout=0.0)
        lengths = random.integers(shortest, longest, TUBES, endpoint=True).tolist()
        tubes = [torch.randn(n, D) for n in lengths]
        labels = [torch.randint(CLASSES + 1, (n,)) for n in lengths]
        apart = (gradients(head, tubes, labels, PADDED) - gradients(head, tubes, labels, 1)).abs().max()
        if apart > ATOL:
            raise AssertionError(f"padded batches change the gradient by {apart:.2g}")
        fast, slow = (
            TUBES / seconds(lambda h=head, t=tubes, n=labels, p=p: gradients(h, t, n, p), 1) for p in (PADDED, 1)
        )
        rows.append(Row(f"action head, {name}: {PADDED} padded together / one by one", fast, slow, "tubes/s"))
    return rows


if __name__ == "__main__":
    show(__doc__, measure)
