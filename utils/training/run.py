"""What the loop of a trainer's script calls, so that a run can be stopped anywhere and continued exactly."""

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.distributed import barrier, per_rank, rank, world_size
from utils.misc import BAR_IN_FILE, InputError, amp_type, progress, set_seed, tell
from utils.run_log import METRICS, RunLog, append_json
from utils.storage.files import lock, remove_parts, save_torch
from utils.training.resume import NONFINITE, Progress, StopFlag, has_state, load_state, save_state, set_aside

SAVE_SECONDS = 600  # between saves of the training state, unless --save_steps
Batch = TypeVar("Batch")


def lr_factor(args: argparse.Namespace, epoch: float, step: int) -> float:
    """The learning rate's factor at `epoch` (from 0, with its fraction) and `step` of the whole run (from 0)."""
    factor = min(1.0, (step + 1) / args.warmup_steps) if args.warmup_steps else 1.0
    if args.lr_schedule == "step":
        return factor * (0.1 if epoch >= args.lr_drop else 1.0)
    if args.lr_schedule == "cosine":
        return factor * 0.5 * (1 + math.cos(math.pi * min(epoch / args.epochs, 1.0)))
    return factor


class TrainingRun:
    """One run of a trainer in `folder`: AdamW, mixed precision, several processes, checkpoints, metrics, resuming.

    A trainer enters it and loops over `epochs` and `batches`; each step ends with `backward` and `step`, each epoch
    with `end_epoch`. The end of `train_qmm.py` is an example.

    Leaves `<folder>/epoch_<n>.pth` (n counts from 1), `metrics.jsonl`, the training state and, with `--plot`,
    `training.png`. With `--resume` it continues where the last run was stopped, bit for bit on a CPU; without, what
    that run left moves to `<folder>/previous-<n>`. With several processes each trains on its own batches, as many as
    the others, and gradients are averaged: a loss divided by `rank_mean` of its normaliser has the gradient of the
    joined batch (BatchNorm's statistics alone are each process's own).

    Args:
        stage: the script's name, for the log.
        config: what rebuilds the model; part of every checkpoint.
        args: the script's flags, `add_run_flags` and `add_training_flags` among them.
        data: checksum of the training data, which must be the same in a resumed run.
        settings: values of flags that were left to the data set or a checkpoint, the same in a resumed run.
        parameters: AdamW's groups of parameters; a group's own `lr` comes before `--lr` (default: the model's).
        exported: the part of `model` that checkpoints hold, where that is not the whole.
        frozen: name -> key of the models whose outputs are trained on, which must be the same in a resumed run.

    Raises:
        InputError: another run is writing to `folder`, or the state to resume is of other flags or other data.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        model: nn.Module,
        config: dict,
        args: argparse.Namespace,
        device: torch.device,
        data: str = "",
        settings: dict | None = None,
        parameters: Iterable | None = None,
        exported: nn.Module | None = None,
        frozen: dict[str, str] | None = None,
    ) -> None:
        self.stage, self.folder, self.config, self.args, self.device = stage, Path(folder), config, args, device
        self.data, self.frozen, self.settings = data, frozen or {}, vars(args) | (settings or {})
        self.bare, self.exported = model.to(device), exported or model
        parameters = parameters or model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=args.weight_decay, fused=True)
        self.initial_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.scaler = torch.amp.GradScaler(device.type, enabled=args.amp == "fp16")
        self.autocast = torch.autocast(device.type, amp_type(args.amp), enabled=args.amp != "off")
        self.model = model
        if world_size() > 1:
            self.model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        if rank():
            set_seed(args.seed + rank())  # each process has a dropout of its own
        if args.compile:
            self.model = torch.compile(self.model)
        self.progress, self.loss = Progress(), torch.zeros((), device=device)
        self.log: RunLog | None = None

    def __enter__(self) -> "TrainingRun":
        with contextlib.ExitStack() as stack:
            if rank() == 0:
                stack.enter_context(lock(self.folder, "training run"))
                remove_parts(self.folder)
            resumed = self.args.resume and has_state(self.folder)
            barrier()  # nobody looks after rank 0 has begun to move files
            if resumed:
                load_state(self)
            elif rank() == 0:
                set_aside(self.folder)
                if self.args.resume:
                    tell(f"nothing to resume in {self.folder}: starting at the beginning")
            self.saved_at = time.monotonic()
            epoch = self.progress.epoch
            if epoch < self.args.epochs:
                self.stop = stack.enter_context(StopFlag())
                if rank() == 0:
                    shown = {k: v for k, v in self.settings.items() if isinstance(v, int | float | str | None)}
                    first = epoch + 1 if resumed else None
                    self.log = stack.enter_context(RunLog(self.stage, self.folder, shown, self.args.comet, first))
            elif rank() == 0:
                tell(f"nothing to do: {self.folder} has {epoch} epochs (--epochs {self.args.epochs})")
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._open:
            if kind is None and self.args.plot and rank() == 0:
                path = _plot(self.folder, self.args.plot_format)
                if self.log is not None:
                    self.log.comet("log_image", str(path), name="training", overwrite=True)
        if kind is None:
            barrier()

    def measure_untrained(self, validate: Callable[[], dict[str, float]] | None) -> None:
        """Log the metrics of `validate` as those of epoch 0, before the first step; nothing in a resumed run."""
        if validate is not None and rank() == 0 and not self.progress.step:
            self.bare.eval()
            self.log.metrics(validate(), 0)

    @property
    def batches_done(self) -> int:
        """How many batches of the epoch are done already: above 0 where a run was stopped in the middle of one."""
        return self.progress.batch

    def epochs(self) -> Iterator[int]:
        """The epochs that are left, from 0; the loop's body ends with `end_epoch`."""
        while self.progress.epoch < self.args.epochs:
            self._began = time.monotonic()
            yield self.progress.epoch

    def batches(self, batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        """The epoch's batches, `total` less those done already, with a progress bar; the loop's body ends with `step`.

        Raises:
            InputError: the epoch had no finite step.
        """
        args, done = self.args, self.progress
        self.model.train()
        for module in self.bare.modules():  # the statistics of a frozen layer are frozen too
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        self._total = total
        self._bar = progress(
            total=total,
            initial=done.batch,
            desc=f"epoch {done.epoch + 1}/{args.epochs}",
            unit="batch",
            disable=rank() != 0,
            delay=0 if sys.stderr.isatty() else BAR_IN_FILE,
            leave=False,
        )
        with self._bar:
            for batch in batches:
                self._buffers = [b.clone() for b in self.bare.buffers()] if args.skip_nonfinite else []
                yield batch
        if done.skipped and not done.means():
            raise InputError(f"{self.folder / NONFINITE}: no step of epoch {done.epoch + 1} was finite; lower --lr")

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`: the step's, or a part of it, divided so that parts add up to the step's."""
        self.scaler.scale(loss).backward()
        self.loss = self.loss + loss.detach()

    def step(self, samples: list[str], **metrics: float | Tensor) -> None:
        """Update the weights by the gradients since the last step; without effect where loss or gradient is not finite.

        Reads the device once. Saves the training state when that is due.

        Args:
            samples: what the batch consists of, for the record of a loss that is not finite.
            metrics: numbers or tensors of one element, whose means over the epoch are logged beside the loss.

        Raises:
            Stopped: after SIGINT or SIGTERM in any process, with the state saved.
            InputError: the loss or its gradient is not finite, without `--skip_nonfinite`.
        """
        args, done = self.args, self.progress
        factor = lr_factor(args, done.epoch + done.batch / max(self._total, 1), done.step)
        for group, lr in zip(self.optimizer.param_groups, self.initial_lrs, strict=True):
            group["lr"] = lr * factor
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, args.clip_max_norm or math.inf)
        due = rank() == 0 and time.monotonic() - self.saved_at > SAVE_SECONDS
        flags = torch.tensor([0.0, self.stop.raised, due], device=self.device)
        flags[0] = ~self.loss.isfinite()
        if world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        values = torch.cat([flags, torch.stack([self.loss, norm.to(self.loss)]).float()])
        bad, stopping, due, loss, norm = values.tolist()
        # With fp16, a gradient beyond its range is no fault until the scale is 1: the scaler lowers it and goes on.
        finite = not bad and (math.isfinite(norm) or (self.scaler.is_enabled() and self.scaler.get_scale() > 1))
        if finite:
            self.scaler.step(self.optimizer)
            done.add({"loss": self.loss, **metrics} | ({"grad_norm": norm} if math.isfinite(norm) else {}))
        else:
            for buffer, before in zip(self.bare.buffers(), self._buffers, strict=False):
                buffer.copy_(before)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss = torch.zeros((), device=self.device)
        done.step += 1
        done.batch += 1
        if not finite:
            done.skipped += 1
            self._report_nonfinite(loss, samples)
        self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._bar.update()
        if stopping:
            save_state(self)
            raise self.stop.stopped(f"in epoch {done.epoch + 1}")
        if done.step % args.save_steps == 0 if args.save_steps else due:
            save_state(self)

    def end_epoch(self, validate: Callable[[], dict[str, float]] | None = None) -> None:
        """Log the epoch's metrics and, each `--save_epochs` epochs and at the end, leave a checkpoint.

        Args:
            validate: further metrics of epochs that leave a checkpoint; called on rank 0, the model in eval mode.

        Raises:
            Stopped: as in `step`.
        """
        args, done = self.args, self.progress
        epoch = done.epoch + 1
        metrics = done.means()
        if done.skipped:
            metrics["skipped_steps"] = done.skipped
        metrics["lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["seconds"] = time.monotonic() - self._began
        last = epoch == args.epochs
        keep = last or epoch % args.save_epochs == 0
        if validate is not None and keep:
            save_state(self)  # a long validation that is cut off costs no training
            if rank() == 0:
                self.bare.eval()
                metrics |= validate()
        if rank() == 0:
            self.log.metrics(metrics, epoch)
            if keep:
                path = self.folder / f"epoch_{epoch}.pth"
                weights = {name: value.cpu() for name, value in self.exported.state_dict().items()}
                save_torch(path, {"model": weights, "config": self.config, "epoch": epoch})
                self.log.comet("log_other", "checkpoint", str(path))
            shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            tqdm.write(f"epoch {epoch}/{args.epochs}: {shown}")
        done.epoch, done.batch, done.skipped, done.sums = epoch, 0, 0, {}
        save_state(self)
        if any(per_rank(self.stop.raised)) and not last:
            raise self.stop.stopped(f"after epoch {epoch}")

    def _report_nonfinite(self, loss: float, samples: list[str]) -> None:
        done, path = self.progress, self.folder / NONFINITE
        processes = per_rank({"loss": str(loss), "batch": samples})
        if rank() == 0:
            append_json(path, {"epoch": done.epoch + 1, "step": done.step, "processes": processes})
        if not self.args.skip_nonfinite:
            raise InputError(
                f"the loss or its gradient is not finite in epoch {done.epoch + 1}, step {done.step}; the batch is in "
                f"{path}; lower --lr, or go on from the last saved state with --resume --skip_nonfinite"
            )


def _plot(folder: Path, plot_format: Sequence[str] | None) -> Path:
    """Plot every epoch's metrics as `<folder>/training.png`, and in further formats."""
    from utils.drawing.plots import formats
    from utils.plot_utils import plot_training, read_metrics  # Matplotlib only where something is plotted

    path = folder / "training.png"
    with formats(plot_format or ()):
        plot_training(path, read_metrics(folder / METRICS))
    tell(f"training curves: {path}")
    return path
