"""A training of a second or two for the tests of the loop, in this process or in processes of its own."""

import argparse
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.processes import launch
from utils.cli import Parser, Stopped
from utils.distributed import barrier, rank, rank_mean, world_size
from utils.flags import add_run_flags, add_training_flags
from utils.misc import rng, start
from utils.training.resume import STATE
from utils.training.run import TrainingRun

N, D, BATCH = 48, 6, 4


def arguments(*given: str) -> argparse.Namespace:
    """A trainer's arguments, in small."""
    parser = Parser("toy")
    add_training_flags(parser, epochs=3, batch_size=BATCH, lr=1e-2, lr_drop=2, batch_help="rows")
    add_run_flags(parser)
    return parser.parse_args(["--comet", "disabled", "--device", "cpu", "--threads", "1", *given])


def network(noisy: bool = False) -> nn.Module:
    """A small model; `noisy` ones have dropout and batch normalisation."""
    inner = [nn.BatchNorm1d(8), nn.Dropout(0.2)] if noisy else []
    return nn.Sequential(nn.Linear(D, 8), *inner, nn.Tanh(), nn.Linear(8, 1))


def epoch_rows(batch_size: int, epoch: int) -> list[np.ndarray]:
    """The epoch's batches, before they are shared by the processes."""
    return np.split(rng(7, epoch).permutation(N), range(batch_size, N, batch_size))


def rows_of(batch_size: int, epoch: int, first: int) -> Iterator[dict]:
    """This process's batches: of each joined batch rank 0 takes a few rows more than the others."""
    data = np.random.default_rng(3)
    x = torch.from_numpy(data.normal(size=(N, D)).astype(np.float32))
    y = x.sum(1, keepdim=True).sin()
    for rows in epoch_rows(batch_size, epoch)[first:]:
        share = np.array_split(rows, world_size())[rank()]
        if world_size() == 2:
            share = rows[: batch_size // 2 + 1] if rank() == 0 else rows[batch_size // 2 + 1 :]
        yield {"rows": share.tolist(), "x": x[share], "y": y[share]}


def one_step(run: TrainingRun, batch: dict, draw: bool = True, delay: float = 0.0, parts: int = 1) -> None:
    """A step on a batch's mean squared error, in so many parts; `draw` adds noise from every generator there is."""
    count = rank_mean(torch.tensor(float(len(batch["x"]))))
    outputs = []
    for x, y in zip(batch["x"].chunk(parts), batch["y"].chunk(parts), strict=True):
        time.sleep(delay)
        if draw:
            x = x + 0.1 * random.random() + 0.1 * np.random.random() + 0.1 * torch.rand(())
        with run.autocast:
            out = run.model(x)
        run.backward(((out.float() - y) ** 2).sum() / count)
        outputs.append(out.detach())
    run.step(batch["rows"], rows=len(batch["x"]), largest=torch.cat(outputs).abs().max())


plain_step = partial(one_step, draw=False)


def train(
    folder: Path,
    args: argparse.Namespace,
    noisy: bool = True,
    batch_size: int = BATCH,
    step: Callable = one_step,
    batches: Callable = rows_of,
    validate: Callable | None = None,
) -> nn.Module:
    """A trainer's loop on the toy; the trained model. `validate(model, epoch)` gives metrics of epoch 1, 2, ..."""
    start(args)
    model = network(noisy)
    with TrainingRun("toy", folder, model, {"width": 8}, args, torch.device("cpu"), "rows") as run:
        for epoch in run.epochs():
            total = len(epoch_rows(batch_size, epoch))
            for batch in run.batches(batches(batch_size, epoch, run.batches_done), total):
                step(run, batch)
            run.end_epoch(partial(validate, model, epoch + 1) if validate else None)
    return model


def slow(folder: Path, *given: str) -> None:
    """A run of half a second or more, most of it spent in saving."""
    train(folder, arguments("--save_steps", "1", *given), step=partial(one_step, delay=0.01))


def launch_slow(folder: Path, log: Path) -> BaseProcess:
    """Start a run of many epochs, `slow`; it has saved its state once."""
    process = launch(log, slow, folder, "--epochs", "300")
    while not (folder / STATE).is_file():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def joined(folder: Path) -> None:
    """In two processes: an ordinary run, one whose steps have several parts, one with a fault in the other process's
    data, and one whose other process is told to stop, and its resumption."""
    train(folder / "plain", arguments(), False, 8, plain_step)
    train(folder / "parts", arguments(), False, 8, partial(plain_step, parts=2))

    def faulty(batch_size: int, epoch: int, first: int) -> Iterator[dict]:
        for i, batch in enumerate(rows_of(batch_size, epoch, first)):
            if rank() == 1 and epoch == 1 and i == 2:
                batch["x"][0] = torch.nan
            yield batch

    model = train(folder / "faulty", arguments("--skip_nonfinite"), False, 8, batches=faulty)
    torch.save(model.state_dict(), folder / f"rank{rank()}.pth")

    def stopping(batch_size: int, epoch: int, first: int) -> Iterator[dict]:
        for i, batch in enumerate(rows_of(batch_size, epoch, first)):
            if rank() == 1 and epoch == 1 and i == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    train(folder / "whole", arguments(), batch_size=8)
    try:
        train(folder / "cut", arguments(), batch_size=8, batches=stopping)
    except Stopped:
        barrier()
        train(folder / "cut", arguments("--resume"), batch_size=8)
