"""Steps of training: gradients over groups of batches and processes, exact about what is not finite."""

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import per_rank, rank, world_size
from utils.misc import BAR_IN_FILE, InputError, amp_type, progress, set_seed
from utils.run_log import append_json
from utils.training.resume import NONFINITE, STATE, Progress, StopFlag, load_state, save_state

SAVE_SECONDS = 600  # between saves of the training state, unless --save_steps
Losses = Callable[[nn.Module, Sequence], Generator[tuple[Tensor, dict[str, float | Tensor]], None, None]]


def rate_factor(args: argparse.Namespace, epoch: float, step: int) -> float:
    """What the learning rate is multiplied by at `epoch` (from 0, with its fraction) and global `step` (from 0)."""
    factor = min(1.0, (step + 1) / args.warmup_steps) if args.warmup_steps else 1.0
    if args.lr_schedule == "step":
        return factor * (0.1 if epoch >= args.lr_drop else 1.0)
    if args.lr_schedule == "cosine":
        return factor * 0.5 * (1 + math.cos(math.pi * min(epoch / args.epochs, 1.0)))
    return factor


class TrainSteps:
    """The model, the optimizer and where the run stands: what a step changes."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        parameters: Iterable,
        args: argparse.Namespace,
        device: torch.device,
        iter_update: int,
    ) -> None:
        self.folder, self.args, self.device, self.iter_update = folder, args, device, iter_update
        self.bare = model.to(device)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=args.weight_decay, fused=True)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
        self.amp = torch.autocast(device.type, amp_type(args.amp), enabled=args.amp != "off")
        self.progress = Progress()
        self.saved_at = time.monotonic()
        self.parallel = None
        if world_size() > 1:
            self.parallel = DistributedDataParallel(model, device_ids=[device] if on_gpu else None)
        if rank():
            set_seed(args.seed + rank())  # each process has a dropout of its own
        self.model = self.parallel or model
        if args.compile:
            self.model = torch.compile(self.model)

    def save_state(self) -> None:
        path = self.folder / STATE
        save_state(path, self.bare, self.optimizer, self.scaler, self.progress, self.args, self.device)
        self.saved_at = time.monotonic()

    def load_state(self) -> None:
        path = self.folder / STATE
        load_state(path, self.bare, self.optimizer, self.scaler, self.progress, self.args, self.device)

    def train_epoch(self, total: int, batches: Iterable, losses: Losses, keys: Callable, stop: StopFlag) -> None:
        """Train on what is left of an epoch of `total` batches. Raises Stopped with the state saved."""
        args, done = self.args, self.progress
        self.model.train()
        bar = progress(
            total=total,
            initial=done.batch,
            desc=f"epoch {done.epoch + 1}/{args.epochs}",
            unit="batch",
            disable=rank() != 0,
            delay=0 if sys.stderr.isatty() else BAR_IN_FILE,
            leave=False,
        )
        with bar:
            for group in _groups(batches, self.iter_update):
                factor = rate_factor(args, done.epoch + done.batch / max(total, 1), done.step)
                for rates, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                    rates["lr"] = base * factor
                due = rank() == 0 and time.monotonic() - self.saved_at > SAVE_SECONDS
                loss, fine, stopping, due = self.step(group, losses, stop, due)
                done.step += 1
                done.batch += len(group)
                if not fine:
                    done.skipped += 1
                    self.report_nonfinite(loss, [key for batch in group for key in keys(batch)])
                bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                bar.update(len(group))
                if stopping:
                    self.save_state()
                    raise stop.stopped(f"in epoch {done.epoch + 1}")
                if done.step % args.save_steps == 0 if args.save_steps else due:
                    self.save_state()
        if done.skipped and not done.means():
            raise InputError(f"{self.folder / NONFINITE}: no step of epoch {done.epoch + 1} was finite; lower --lr")

    def step(self, group: list, losses: Losses, stop: StopFlag, due: bool) -> tuple[float, bool, bool, bool]:
        """One update: the loss, and whether it was finite (else nothing is changed), any process was asked to
        stop, and a save is due. The device is read once."""
        self.optimizer.zero_grad(set_to_none=True)
        buffers = [b.clone() for b in self.bare.buffers()] if self.args.skip_nonfinite else []
        several = self.parallel is not None and self.iter_update > 1
        with self.parallel.no_sync() if several else contextlib.nullcontext():
            loss, figures = self.backward(group, losses)
        if several:
            _average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, self.args.clip_max_norm or math.inf)
        flags = torch.tensor([0.0, stop.raised, due], device=self.device)
        flags[0] = ~loss.isfinite()
        if world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        bad, stopping, due, loss, norm = torch.cat([flags, torch.stack([loss, norm.to(loss)]).float()]).tolist()
        # With fp16, a gradient beyond its range is no fault until the scale is 1: the scaler lowers it and goes on.
        overflow = not math.isfinite(norm)
        fine = not bad and not (overflow and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1))
        if fine:
            self.scaler.step(self.optimizer)
            self.progress.add(figures if overflow else {**figures, "grad_norm": norm})
        else:
            for buffer, before in zip(self.bare.buffers(), buffers, strict=False):
                buffer.copy_(before)
        self.scaler.update()
        return loss, fine, bool(stopping), bool(due)

    def backward(self, group: list, losses: Losses) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Gradients of a group: its loss, and its figures, the loss among them, summed over the parts."""
        loss = torch.zeros((), device=self.device)
        figures: dict[str, Tensor | float] = {}
        parts = losses(self.model, group)
        while True:
            with self.amp:
                part = next(parts, None)
            if part is None:
                break
            self.scaler.scale(part[0]).backward()
            loss = loss + part[0].detach()
            for name, value in part[1].items():
                figures[name] = figures.get(name, 0.0) + (value.detach() if torch.is_tensor(value) else value)
        return loss, {"loss": loss, **figures}

    def report_nonfinite(self, loss: float, keys: list) -> None:
        done, path = self.progress, self.folder / NONFINITE
        held = per_rank({"loss": str(loss), "batch": keys})
        if rank() == 0:
            append_json(path, {"epoch": done.epoch + 1, "step": done.step, "processes": held})
        if not self.args.skip_nonfinite:
            raise InputError(
                f"the loss or its gradient is not finite in epoch {done.epoch + 1}, step {done.step}; the batch is in "
                f"{path}; lower --lr, or go on from the last saved state with --resume --skip_nonfinite"
            )


def _average_gradients(parameters: list[Tensor]) -> None:
    """Mean of the gradients over the processes, once a step where DistributedDataParallel would once a part."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    flat /= world_size()
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = torch.empty_like(p).copy_(grad.view_as(p))  # in the order of memory that fused AdamW reads it in


def _groups(batches: Iterable, size: int) -> Iterator[list]:
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
