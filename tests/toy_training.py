"""A training of a second or two for the tests of the loop, in this process or in processes of its own."""

import argparse
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.cli import Parser, Stopped, run
from utils.distributed import barrier, process_group, rank, rank_mean, world_size
from utils.flags import add_run_flags, add_training_flags
from utils.misc import rng, start
from utils.training.loop import fit
from utils.training.resume import STATE

N, D, BATCH = 48, 6, 4


def arguments(*given: str) -> argparse.Namespace:
    """A trainer's arguments, in small."""
    parser = Parser("toy")
    add_training_flags(parser, epochs=3, batch_size=BATCH, lr=1e-2, lr_drop=2, unit="rows")
    add_run_flags(parser)
    return parser.parse_args(["--comet", "disabled", "--device", "cpu", "--threads", "1", *given])


def network(noisy: bool = False) -> nn.Module:
    """A small model; `noisy` ones have dropout and batch normalisation."""
    inner = [nn.BatchNorm1d(8), nn.Dropout(0.2)] if noisy else []
    return nn.Sequential(nn.Linear(D, 8), *inner, nn.Tanh(), nn.Linear(8, 1))


def epoch_rows(batch: int, epoch: int) -> list[np.ndarray]:
    """The epoch's batches, of `batch` rows each, before they are shared by the processes."""
    return np.split(rng(7, epoch).permutation(N), range(batch, N, batch))


def rows_of(batch: int, epoch: int, first: int) -> Iterator[dict]:
    """This process's batches: of each joined batch rank 0 takes a few rows more than the others."""
    data = np.random.default_rng(3)
    x = torch.from_numpy(data.normal(size=(N, D)).astype(np.float32))
    y = x.sum(1, keepdim=True).sin()
    for rows in epoch_rows(batch, epoch)[first:]:
        share = np.array_split(rows, world_size())[rank()]
        if world_size() == 2:
            share = rows[: batch // 2 + 1] if rank() == 0 else rows[batch // 2 + 1 :]
        yield {"rows": share.tolist(), "x": x[share], "y": y[share]}


def losses(delay: float, draw: bool, model: nn.Module, group: list[dict]) -> Iterator[tuple[Tensor, dict]]:
    """Mean squared error of the group's rows; `draw` adds noise from every generator there is."""
    count = rank_mean(torch.tensor(float(sum(len(batch["x"]) for batch in group))))
    for batch in group:
        time.sleep(delay)
        x = batch["x"]
        if draw:
            x = x + 0.1 * random.random() + 0.1 * np.random.random() + 0.1 * torch.rand(())
        out = model(x)
        with torch.autocast("cpu", enabled=False):
            value = ((out.float() - batch["y"]) ** 2).sum() / count
            yield value, {"rows": len(x), "largest": out.detach().abs().max()}


def train(folder: Path, args: argparse.Namespace, noisy: bool = True, batch: int = BATCH, **options) -> nn.Module:
    """`fit` on the toy; `options` replace its arguments. The trained model."""
    start(args)
    model = network(noisy)
    options = {
        "losses": partial(losses, 0.0, True),
        "batches": partial(rows_of, batch),
        "n_batches": lambda epoch: len(epoch_rows(batch, epoch)),
        "keys": lambda batch: batch["rows"],
        **options,
    }
    weights = [{"params": list(model.parameters()), "lr": args.lr}]
    fit("toy", folder, model, weights, {"width": 8}, args, torch.device("cpu"), **options)
    return model


def slow(folder: Path, *given: str) -> None:
    """A run of half a second or more, most of it spent in saving."""
    train(folder, arguments("--save_steps", "1", *given), losses=partial(losses, 0.01, True))


def as_script(log: Path, main: Callable, *args: object) -> None:
    """Run `main` as a script's, with what it prints in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    run(partial(main, *args))


def launch(log: Path, main: Callable, *args: object) -> multiprocessing.Process:
    """Start `as_script` in a process of its own, forked from one that has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.toy_training", "torch._dynamo"])  # the first optimizer imports it
    process = context.Process(target=as_script, args=(log, main, *args))
    process.start()
    return process


def launch_slow(folder: Path, log: Path) -> multiprocessing.Process:
    """Start a run of many epochs, `slow`; it has saved its state once."""
    process = launch(log, slow, folder, "--epochs", "300")
    while not (folder / STATE).is_file():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def set_rank(number: int, world: int, port: int) -> None:
    """Make this process one of `world`, as torchrun starts them."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def as_rank(number: int, world: int, port: int, main: Callable, *args: object) -> None:
    """`main` as one of `world` processes, in their group."""
    set_rank(number, world, port)
    with process_group("cpu"):
        main(*args)


def joined(folder: Path) -> None:
    """In two processes: an ordinary run, one that accumulates, one with a fault in the other process's data, and
    one whose other process is told to stop, and its resumption."""
    train(folder / "plain", arguments(), False, 8, losses=partial(losses, 0.0, False))
    train(folder / "grouped", arguments(), False, 8, losses=partial(losses, 0.0, False), iter_update=2)

    def faulty(epoch: int, first: int) -> Iterator[dict]:
        for i, batch in enumerate(rows_of(8, epoch, first)):
            if rank() == 1 and epoch == 1 and i == 2:
                batch["x"][0] = torch.nan
            yield batch

    model = train(folder / "faulty", arguments("--skip_nonfinite"), False, 8, batches=faulty)
    torch.save(model.state_dict(), folder / f"rank{rank()}.pth")

    def stopping(epoch: int, first: int) -> Iterator[dict]:
        for i, batch in enumerate(rows_of(8, epoch, first)):
            if rank() == 1 and epoch == 1 and i == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    train(folder / "whole", arguments(), batch=8)
    try:
        train(folder / "cut", arguments(), batch=8, batches=stopping)
    except Stopped:
        barrier()
        train(folder / "cut", arguments("--resume"), batch=8)
