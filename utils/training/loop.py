"""The loop that the three trainers share: their flags, and epochs with checkpoints."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from utils.distributed import any_rank, barrier, rank
from utils.run_log import METRICS, RunLog
from utils.storage.files import lock, remove_parts, save_torch
from utils.training.resume import StopFlag, set_aside, something_to_resume
from utils.training.steps import Losses, TrainSteps


def fit(
    stage: str,
    folder: Path,
    model: nn.Module,
    parameters: Iterable,
    config: dict,
    args: argparse.Namespace,
    device: torch.device,
    n_batches: Callable[[int], int],
    batches: Callable[[int, int], Iterable],
    losses: Losses,
    keys: Callable[[object], list],
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    iter_update: int = 1,
    exported: nn.Module | None = None,
) -> None:
    """Train `model` and leave `<folder>/epoch_<n>.pth` (n counts from 1), `metrics.jsonl` and the state to resume.

    `parameters`: AdamW's parameter groups (a group's own `lr` stands). `n_batches(epoch)` and
    `batches(epoch, first)`: an epoch's batches, from the `first` on, a function of the epoch alone; every
    process has as many. `losses(model, group)` is a generator of the (loss, figures) parts of one step over
    a group of `iter_update` batches, already divided so that their sum is the step's loss; figures are
    numbers or tensors of one element. With several processes gradients are averaged: a loss divided by
    `rank_mean` of its normaliser has the gradient of the joined batch (BatchNorm's statistics alone are each
    process's own). `keys(batch)` names the batch's samples, for the record of a loss that is not finite.
    `evaluate(model, epoch)` gives further figures of the epochs that leave a checkpoint, on rank 0. `exported` is the
    part of `model` that checkpoints hold, where that is not the whole.

    With `args.plot` the curves are drawn at the end, as `<folder>/training.png`.

    With `args.resume` the run goes on from where it was stopped, bit for bit on a CPU; without, what a
    former run left is moved to `<folder>/previous`. Raises Stopped after SIGINT or SIGTERM, with the state
    saved; InputError when another run is writing to `folder`, when the state is of other arguments, and when
    a loss or gradient is not finite and not `args.skip_nonfinite`.
    """
    folder, exported = Path(folder), model if exported is None else exported
    with contextlib.ExitStack() as stack:
        if rank() == 0:
            stack.enter_context(lock(folder, "training run"))
            remove_parts(folder)
        loop = TrainSteps(folder, model, parameters, args, device, iter_update)
        resumed = args.resume and something_to_resume(folder)
        barrier()  # nobody looks after rank 0 has begun to move files
        if resumed:
            loop.load_state()
        elif rank() == 0:
            set_aside(folder)
            if args.resume:
                _say(f"nothing to resume in {folder}: starting at the beginning")
        done = loop.progress
        if done.epoch >= args.epochs:
            _say(f"nothing to do: {folder} has {done.epoch} epochs (--epochs {args.epochs})")
            if args.plot and rank() == 0:
                _draw(folder)
            return
        kept = {k: v for k, v in vars(args).items() if isinstance(v, int | float | str | bool | type(None))}
        at = done.epoch + 1 if resumed else None
        stop = stack.enter_context(StopFlag())
        log = stack.enter_context(RunLog(stage, folder, kept, args.comet, at, active=rank() == 0))
        while done.epoch < args.epochs:
            epoch, began = done.epoch, time.monotonic()
            loop.train_epoch(n_batches(epoch), batches(epoch, done.batch), losses, keys, stop)
            figures = done.means()
            if done.skipped:
                figures["skipped_steps"] = done.skipped
            figures["lr"] = loop.optimizer.param_groups[0]["lr"]
            figures["seconds"] = time.monotonic() - began
            last = epoch + 1 == args.epochs
            kept_epoch = last or (epoch + 1) % args.save_epochs == 0
            if evaluate is not None and kept_epoch:
                loop.save_state()  # a long evaluation that is cut off costs no training
                if rank() == 0:
                    figures |= evaluate(model.eval(), epoch + 1)
            log.metrics(figures, epoch + 1)
            if rank() == 0:
                if kept_epoch:
                    path = folder / f"epoch_{epoch + 1}.pth"
                    weights = {name: value.cpu() for name, value in exported.state_dict().items()}
                    save_torch(path, {"model": weights, "config": config, "epoch": epoch + 1})
                    log.checkpoint(path)
                shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                tqdm.write(f"epoch {epoch + 1}/{args.epochs}: {shown}")
            done.next_epoch()
            loop.save_state()
            if any_rank(stop.raised, device) and not last:
                raise stop.stopped(f"after epoch {epoch + 1}")
        if args.plot and rank() == 0:
            log.figure("training", _draw(folder))
    barrier()


def _draw(folder: Path) -> Path:
    """The curves of every epoch in `metrics.jsonl`, as `<folder>/training.png`."""
    from utils.plot_utils import plot_training, read_metrics  # Matplotlib only where something is drawn

    path = folder / "training.png"
    plot_training(path, read_metrics(folder / METRICS))
    _say(f"training curves: {path}")
    return path


def _say(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr)
