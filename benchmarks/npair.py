"""The N-pair loss and its gradient as two masked log-sum-exps, against a loop over anchors."""

import torch
from torch import Tensor

from benchmarks.rows import Row, one_thread, seconds, show
from models.person_encoder import NPairLoss

CLIPS, FRAMES, D = 8, 8, 256  # a batch of the published runs
PEOPLE = (2, 12)  # in each clip: as in UCF101-24, and a crowd


def npair_by_loop(embs: Tensor, labels: Tensor, tau: float = 1.0) -> Tensor:
    """The loss anchor by anchor, as it is usually written: `embs` (M, d), `labels` (M,) -> a scalar."""
    unit = torch.nn.functional.normalize(embs, dim=1)
    losses = []
    for i in range(len(unit)):
        exps = torch.exp(unit @ unit[i] / tau)
        others = torch.arange(len(unit)) != i
        same = (labels == labels[i]) & others
        if same.any():
            losses.append(-torch.log(exps[same].sum() / exps[others].sum()))
    return sum(losses) / max(len(losses), 1)


@one_thread()
def measure() -> list[Row]:
    """Rows (what, value, yardstick, unit, bounds)."""
    rows = []
    for people in PEOPLE:
        torch.manual_seed(0)
        labels = torch.arange(CLIPS * people).repeat_interleave(FRAMES)
        embs = torch.randn(len(labels), D, requires_grad=True)
        criterion = NPairLoss()
        fast, slow = criterion(embs, labels), npair_by_loop(embs, labels)
        torch.testing.assert_close(fast, slow)
        rate = 1 / seconds(lambda e=embs, n=labels, c=criterion: c(e, n).backward(), 10)
        loop = 1 / seconds(lambda e=embs, n=labels: npair_by_loop(e, n).backward(), 1)
        rows.append(Row(f"N-pair loss of {len(labels)} queries / a loop over anchors", rate, loop, "batches/s"))
    return rows


if __name__ == "__main__":
    show(__doc__, measure)
