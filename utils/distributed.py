"""What the stages need of torch.distributed; every function also works in a single process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from utils.misc import InputError, pick_device

PATIENCE = timedelta(hours=24)  # the others wait while rank 0 validates, merges or downloads


def rank() -> int:
    """This process's number among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: str | None) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started (if it did) and yield this process's device.

    With several processes each takes the GPU of its local rank, or the CPU under `--device cpu` or where
    there is none.

    Raises:
        InputError: another process of the run has exited.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield pick_device(device)
        return
    on_gpu = torch.cuda.is_available() and device != "cpu"
    chosen = pick_device(os.environ["LOCAL_RANK"] if on_gpu else "cpu")
    completed = False
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
        yield chosen
        completed = True
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # Gloo has no exception of its own
            raise
        raise InputError(
            "another process of this run has ended, its message says why; start all again, trainers with --resume"
        ) from None
    finally:
        # NCCL's end would wait for the other processes, which wait for what this one cannot do
        if dist.is_initialized() and (completed or not on_gpu):
            dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def per_rank(value: object) -> list:
    """`value` of every process, in rank order."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def rank_mean(value: Tensor) -> Tensor:
    """The mean of `value` over the processes, without gradient.

    DistributedDataParallel averages gradients, so a loss that is summed here and divided by the mean
    normaliser gives the gradient of the joined batch.
    """
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def gather_rows(rows: Tensor) -> list[Tensor]:
    """`rows` (n_r, ...) of every process, in rank order, without gradient; n_r may differ."""
    if world_size() == 1:
        return [rows.detach()]
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    lengths = torch.cat(sizes).tolist()
    padded = rows.detach().new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
