"""Processes of the tests, all forked from one that has imported PyTorch and the stages already."""

import importlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from utils.cli import run
from utils.distributed import process_group

STAGES = ("train_detr", "train_qmm", "eval_qmm", "train_action_head", "eval_map", "predict")
PRELOADED = [*STAGES, "torch._dynamo", "tests.fuzz", "tests.killing"]  # the first optimizer imports `torch._dynamo`


def fork(target: Callable, *args: object) -> BaseProcess:
    """Start `target(*args)` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # has an effect before the first process alone
    process = context.Process(target=target, args=args)
    process.start()
    return process


def start_server() -> None:
    """Make sure that whatever else uses the fork server finds everything imported in it."""
    fork(time.sleep, 0).join()


def as_script(log: Path, main: Callable, *args: object) -> None:
    """Run `main` as a script's, with what it prints in a file."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    run(partial(main, *args))


def launch(log: Path, main: Callable, *args: object) -> BaseProcess:
    """Start `as_script` in a process of its own."""
    return fork(as_script, log, main, *args)


def import_stages() -> None:
    """Print which heavy libraries the stages have imported."""
    for stage in STAGES:
        importlib.import_module(stage)
    print([name for name in ("torch", "matplotlib", "comet_ml") if name in sys.modules])


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
