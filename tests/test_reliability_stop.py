"""Interrupts and their exit statuses; how long processes wait for one another."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.processes import as_rank, fork, free_port, launch
from tests.toy_training import launch_slow
from utils.distributed import PATIENCE


def wait() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
    print("ready", flush=True)
    time.sleep(60)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_is_one_line_and_a_status(tmp_path: Path, number: int, status: int) -> None:
    log = tmp_path / "log.txt"
    process = launch(log, wait)
    while "ready" not in (log.read_text() if log.exists() else ""):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == status
    assert log.read_text().count("\n") == 2 and "go on with the same command" in log.read_text()


def test_an_interrupted_training_ends_with_130(tmp_path: Path) -> None:
    process = launch_slow(tmp_path / "run", tmp_path / "log.txt")
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130 and "--resume" in (tmp_path / "log.txt").read_text()


def group_patience(path: Path) -> None:
    backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    path.with_suffix(f".{torch.distributed.get_rank()}").write_text(str(backend.options._timeout.total_seconds()))


def test_processes_wait_for_hours(tmp_path: Path) -> None:
    port = free_port()
    runs = [launch(tmp_path / f"{i}.txt", as_rank, i, 2, port, group_patience, tmp_path / "patience") for i in (0, 1)]
    for i, process in enumerate(runs):
        process.join()
        assert process.exitcode == 0, (tmp_path / f"{i}.txt").read_text()
        assert float((tmp_path / f"patience.{i}").read_text()) == PATIENCE.total_seconds() >= 6 * 3600


def store_that_ends(port: int) -> None:
    """Be the store that processes meet at, and exit as soon as one of them waits there for the other."""
    store = torch.distributed.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)
    alone = store.num_keys()
    while store.num_keys() == alone:
        time.sleep(0.01)
    os._exit(0)


def test_a_process_whose_other_one_dies_while_they_meet_ends_with_a_line(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log.txt"
    first = fork(store_that_ends, port)
    second = launch(log, as_rank, 1, 2, port, group_patience, tmp_path / "patience")
    for process in (first, second):
        process.join(60)
    text = log.read_text()
    assert second.exitcode == 2 and "another process of this run has ended" in text and "Traceback" not in text
