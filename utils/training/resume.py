"""The state of a training run: saved, resumed exactly, and asked to stop by signals."""

import itertools
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.cli import Stopped
from utils.distributed import per_rank, rank, world_size
from utils.misc import InputError, tell
from utils.run_log import METRICS
from utils.storage.files import load_torch, save_torch

if TYPE_CHECKING:
    from utils.training.run import TrainingRun

STATE = "train_state.pth"
NONFINITE = "nonfinite.jsonl"

# Flags that a resumed run need not repeat: they do not change what is learnt, or are meant to be changed.
_MAY_CHANGE = {
    "resume", "epochs", "skip_nonfinite", "save_epochs", "save_steps", "comet", "plot", "plot_format",
    "device", "workers", "threads", "compile", "detr_batch", "data_root", "checkpoint_root", "shards_path",
    "dataset",  # a path; a run's folder has the data set's name, and the data are compared
}  # fmt: skip


class StopFlag:
    """Turns SIGINT and SIGTERM into `raised`, which the loop reads once a step.

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
        text = f"stopped {where}, state saved; go on with the same command and --resume"
        return Stopped(text, self._number or signal.SIGTERM)  # of another process

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Progress:
    """How far a run is, and the sums of the current epoch's metrics.

    `epoch`: epochs that are complete; `batch`: batches done of the next one; `step`: steps of the whole run;
    `skipped`: steps of this epoch that were not finite; `sums`: metric -> [sum, number of steps] of this epoch, sums of
    tensors on their device, unread.
    """

    def __init__(self) -> None:
        self.epoch, self.batch, self.step, self.skipped = 0, 0, 0, 0
        self.sums: dict[str, list] = {}

    def add(self, metrics: dict[str, float | Tensor]) -> None:
        """Count one step's metrics."""
        for name, value in metrics.items():
            total, n = self.sums.get(name, (0.0, 0))
            total = total + (value.detach().double() if torch.is_tensor(value) else float(value))
            self.sums[name] = [total, n + 1]

    def means(self) -> dict[str, float]:
        """The mean of each metric over this epoch's steps, of all processes."""
        of_ranks = per_rank(self.state()["sums"])
        names = dict.fromkeys(name for sums in of_ranks for name in sums)
        pairs = {name: [sums[name] for sums in of_ranks if name in sums] for name in names}
        return {name: sum(s for s, _ in pair) / sum(n for _, n in pair) for name, pair in pairs.items()}

    def state(self) -> dict:
        """The attributes, in plain numbers."""
        return vars(self) | {"sums": {name: [float(total), n] for name, (total, n) in self.sums.items()}}


def random_state(device: torch.device) -> dict:
    """The state of every random number generator, in plain types and tensors."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    kind, keys, *rest = np.random.get_state()
    state["numpy"] = (kind, torch.from_numpy(keys.astype(np.int64)), *rest)
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict, device: torch.device) -> None:
    """Set every random number generator to a `random_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _fixed(settings: dict) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items() if name not in _MAY_CHANGE}


def save_state(run: "TrainingRun") -> None:
    """Write everything that the next step depends on; all processes call it, rank 0 writes."""
    ranks = per_rank({"random": random_state(run.device), "progress": run.progress.state()})
    if rank() == 0:
        state = {
            "model": run.bare.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "ranks": ranks,
            "args": _fixed(run.settings),
            "epochs": run.args.epochs,
            "data": run.data,
            "frozen": run.frozen,
        }
        save_torch(run.folder / STATE, state)
    run.saved_at = time.monotonic()


def load_state(run: "TrainingRun") -> None:
    """Continue from what `save_state` wrote.

    Raises:
        InputError: the state is damaged or of a former form, or of a run with other flags, other data, other frozen
            models or another number of processes.
    """
    path = run.folder / STATE
    state = load_torch(path, "training state to resume")
    try:
        for difference in _differences(state, run):
            raise InputError(f"{path}: the run was started {difference}")
        if run.args.lr_schedule == "cosine" and state["epochs"] != run.args.epochs and rank() == 0:
            text = f"was started with --epochs {state['epochs']}: its cosine now ends at {run.args.epochs}, so the"
            tell(f"note: {path}: {text} learning rate jumps, and the run is not an uninterrupted one")
        run.bare.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scaler.load_state_dict(state["scaler"])
        vars(run.progress).update(state["ranks"][rank()]["progress"])
        set_random_state(state["ranks"][rank()]["random"], run.device)
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not the state of such a run, or of a former form ({text})") from None


def _differences(state: dict, run: "TrainingRun") -> Iterator[str]:
    """Why a state cannot be continued by `run`, each reason as the end of an error line."""
    old, new = state["args"], _fixed(run.settings)
    for name in sorted(old.keys() ^ new.keys()):
        yield f"by a version with other flags (--{name}); start again without --resume"
    for name in sorted(new):
        if old[name] != new[name]:
            note = " (train_qmm.py: --lr_en)" * (name == "lr")
            yield f"with --{name} {old[name]}, not {new[name]}{note}; repeat it to resume"
    if state["data"] != run.data:
        yield (
            "on other training data (videos or annotations have changed since); restore them, or start again without "
            "--resume"
        )
    for name, key in run.frozen.items():
        old_key = state["frozen"][name]
        if old_key != key:
            yield f"with another {name} ({old_key}, now {key}); restore it, or start again without --resume"
    if len(state["ranks"]) != world_size():
        yield f"with {len(state['ranks'])} processes, not {world_size()}"


def has_state(folder: Path) -> bool:
    """Whether a run of this name has left a state. InputError when it has left checkpoints only."""
    if (folder / STATE).is_file():
        return True
    if any(folder.glob("epoch_*.pth")):
        raise InputError(f"{folder / STATE}: missing, though there are checkpoints; start again without --resume")
    return False


def set_aside(folder: Path) -> None:
    """Move what a former run of this name has left into `<folder>/previous-<n>`, the first n that is free."""
    files = [*folder.glob("epoch_*.pth"), folder / STATE]
    coming = folder / ".previous"  # the next run continues an interrupted move
    if not any(path.is_file() for path in files) and not coming.is_dir():
        return
    coming.mkdir(exist_ok=True)
    for path in [*files[::-1], folder / METRICS, folder / NONFINITE, *folder.glob("training.*")]:
        if path.is_file():
            path.replace(coming / path.name)
    previous = next(p for n in itertools.count(1) if not (p := folder / f"previous-{n}").exists())
    coming.replace(previous)
    tell(f"the former run in {folder} is now in {previous}")
