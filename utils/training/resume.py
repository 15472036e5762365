"""What lets a training run be stopped anywhere and go on exactly: its state, its random numbers, its signals."""

import argparse
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.cli import Stopped
from utils.distributed import per_rank, rank, world_size
from utils.misc import InputError
from utils.run_log import METRICS
from utils.storage.files import load_torch, save_torch

STATE = "train_state.pth"
NONFINITE = "nonfinite.jsonl"
PREVIOUS = "previous"
HOW_TO_GO_ON = "state saved; go on with the same command and --resume"

# Arguments that a resumed run need not repeat: they do not change what is learnt, or are meant to be changed.
_MAY_CHANGE = {
    "resume", "epochs", "skip_nonfinite", "save_epochs", "save_steps", "comet", "plot",
    "device", "workers", "threads", "compile", "detr_batch", "data_root", "checkpoint_root", "shards_path",
}  # fmt: skip


class StopFlag:
    """Turns SIGINT and SIGTERM into `raised`, which the loop looks at once a step.

    Further signals change nothing (a launcher passes on what the terminal has already sent), but a SIGINT
    more than a second after the first signal interrupts at once.
    """

    def __init__(self) -> None:
        self.raised = False
        self._at, self._number = 0.0, 0

    def __enter__(self) -> "StopFlag":
        self._before = {s: signal.signal(s, self._raise) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _raise(self, signum: int, _frame: object) -> None:
        if self.raised and signum == signal.SIGINT and time.monotonic() - self._at > 1:
            raise KeyboardInterrupt
        if not self.raised:
            self.raised, self._at = True, time.monotonic()
        self._number = max(self._number, signum)  # SIGTERM, where both came

    def stopped(self, where: str) -> Stopped:
        """What the loop raises once the state is saved; `where` says how far it came."""
        return Stopped(f"stopped {where}, {HOW_TO_GO_ON}", self._number or signal.SIGTERM)  # of another process

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Progress:
    """Where a run stands, and what its current epoch has added up.

    `epoch`: epochs that are complete; `batch`: batches done of the next one; `step`: steps of the whole run;
    `skipped`: steps of this epoch that were not finite; `sums`: figure -> [sum, number of steps] of this epoch.
    """

    def __init__(self) -> None:
        self.epoch, self.batch, self.step, self.skipped = 0, 0, 0, 0
        self.sums: dict[str, list] = {}
        self._pending: list[dict[str, float | Tensor]] = []

    def add(self, figures: dict[str, float | Tensor]) -> None:
        """Count one step's figures. Tensors stay on their device, unread, for up to 100 steps."""
        self._pending.append(figures)
        if len(self._pending) == 100:
            self.read()

    def read(self) -> None:
        """Bring `sums` up to date with one read of the device."""
        tensors = [value.float() for figures in self._pending for value in figures.values() if torch.is_tensor(value)]
        read = iter(torch.stack(tensors).tolist() if tensors else [])
        for figures in self._pending:
            for name, value in figures.items():
                held = self.sums.setdefault(name, [0.0, 0])
                held[0] += next(read) if torch.is_tensor(value) else float(value)
                held[1] += 1
        self._pending = []

    def means(self) -> dict[str, float]:
        """The mean of each figure over this epoch's steps, of all processes."""
        self.read()
        held = per_rank(self.sums)
        names = dict.fromkeys(name for sums in held for name in sums)
        pairs = {name: [sums[name] for sums in held if name in sums] for name in names}
        return {name: sum(s for s, _ in pair) / sum(n for _, n in pair) for name, pair in pairs.items()}

    def next_epoch(self) -> None:
        """An epoch is complete."""
        self.epoch, self.batch, self.skipped, self.sums = self.epoch + 1, 0, 0, {}

    def state(self) -> dict:
        """For `load`."""
        self.read()
        return {name: value for name, value in vars(self).items() if name != "_pending"}

    def load(self, state: dict) -> None:
        """Go on from a `state`."""
        vars(self).update(state)


def random_state(device: torch.device) -> dict:
    """Where every generator stands, in plain types and tensors."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    kind, keys, *rest = np.random.get_state()
    state["numpy"] = (kind, torch.from_numpy(keys.astype(np.int64)), *rest)
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    """Put every generator where a `random_state` says."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _fixed_args(args: argparse.Namespace) -> dict[str, str]:
    return {name: str(value) for name, value in vars(args).items() if name not in _MAY_CHANGE}


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    args: argparse.Namespace,
    device: torch.device,
) -> None:
    """Write everything that the next step depends on; all processes call it, rank 0 writes."""
    ranks = per_rank({"random": random_state(device), "progress": progress.state()})
    if rank() == 0:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "ranks": ranks,
            "args": _fixed_args(args),
        }
        save_torch(path, state)


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    args: argparse.Namespace,
    device: torch.device,
) -> None:
    """Go on from what `save_state` wrote. InputError when it is damaged or of a run with other arguments."""
    state = load_torch(path, "training state to resume")
    try:
        then, now, missing = state["args"], _fixed_args(args), "(no such argument)"
        for name in sorted(now.keys() | then.keys()):
            was, given = then.get(name, missing), now.get(name, missing)
            if was == missing and given in ("None", "False"):
                continue  # a flag that is younger than the run, and not used
            if was != given:
                raise InputError(f"{path}: the run was started with --{name} {was}, not {given}; repeat it to resume")
        if len(state["ranks"]) != world_size():
            raise InputError(f"{path}: the run was started with {len(state['ranks'])} processes, not {world_size()}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        progress.load(state["ranks"][rank()]["progress"])
        set_random_state(state["ranks"][rank()]["random"], device)
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not the state of such a run ({text})") from None


def something_to_resume(folder: Path) -> bool:
    """Whether a run of this name has left a state. InputError when it has left checkpoints only."""
    if (folder / STATE).is_file():
        return True
    if any(folder.glob("epoch_*.pth")):
        raise InputError(f"{folder / STATE}: missing, though there are checkpoints; start again without --resume")
    return False


def set_aside(folder: Path) -> None:
    """Move what a former run of this name has left into `<folder>/previous`, in place of what was there."""
    held = [*folder.glob("epoch_*.pth"), folder / STATE]
    if not any(path.is_file() for path in held) and not (folder / f".{PREVIOUS}").is_dir():
        return
    previous, coming = folder / PREVIOUS, folder / f".{PREVIOUS}"  # a move that is cut off is gone on with
    coming.mkdir(exist_ok=True)
    for path in [*held[::-1], folder / METRICS, folder / NONFINITE]:
        if path.is_file():
            path.replace(coming / path.name)
    shutil.rmtree(previous, ignore_errors=True)
    coming.replace(previous)
    print(f"the former run in {folder} is now in {previous}", file=sys.stderr)
