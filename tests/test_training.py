"""The training loop: interrupted anywhere and resumed exactly, several processes, faults in the numbers."""

import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.processes import as_rank, free_port, launch
from tests.toy_training import (
    arguments,
    joined,
    launch_slow,
    network,
    one_step,
    plain_step,
    rows_of,
    slow,
    train,
)
from utils.misc import InputError
from utils.storage.files import load_checkpoint, load_torch, lock
from utils.training.resume import STATE, StopFlag
from utils.training.run import TrainingRun, lr_factor


def weights(folder: Path, epoch: int = 3) -> dict[str, Tensor]:
    return load_checkpoint(folder / f"epoch_{epoch}.pth", "toy")["model"]


def metrics(folder: Path) -> list[dict]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """All checkpoints bit for bit, and all metrics."""
    for epoch in (1, 2, 3):
        first, second = weights(a, epoch), weights(b, epoch)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"epoch {epoch}: {name}"
    assert metrics(a) == metrics(b)


def next_save(run: BaseProcess, state: Path, after: int) -> int:
    """Wait until a running process has saved its state again; the time of that save."""
    while run.is_alive():
        if state.is_file() and state.stat().st_mtime_ns != after:
            return state.stat().st_mtime_ns
        time.sleep(0.002)
    return after


def test_a_cosine_that_ends_elsewhere_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for schedule in ("cosine", "step"):
        folder, flags = tmp_path / schedule, ("--lr_schedule", schedule)
        train(folder, arguments(*flags, "--epochs", "1"))
        train(folder, arguments(*flags, "--epochs", "1", "--resume"))
        assert "note: " not in capsys.readouterr().err
        train(folder, arguments(*flags, "--epochs", "2", "--resume"))
        told = "was started with --epochs 1: its cosine now ends at 2, so the learning rate jumps"
        assert (told in capsys.readouterr().err) == (schedule == "cosine")


def test_killed_anywhere_and_resumed(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    log = tmp_path / "whole.txt"
    run = launch(log, slow, whole)
    run.join()
    assert run.exitcode == 0 and log.read_text().count("\n") == 3, "one line an epoch, no bar in a file"

    moments, saved, killed = random.Random(5), 0, 0
    for attempt in range(8):  # killed seven times, the first before it can have saved anything, then left alone
        log = tmp_path / f"cut{attempt}.txt"
        run = launch(log, slow, cut, "--resume")
        if attempt < 7:
            saved = next_save(run, cut / STATE, saved) if attempt else 0
            time.sleep(moments.uniform(0, 0.05))
            run.kill()
        run.join()
        killed += run.exitcode == -signal.SIGKILL
        assert run.exitcode in (0, -signal.SIGKILL), log.read_text()
    assert run.exitcode == 0 and killed > 3
    assert_same_run(whole, cut)
    assert not [path for path in cut.rglob("*") if ".part" in path.name]


def test_sigterm_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = launch_slow(tmp_path / "cut", tmp_path / "log.txt")
    os.kill(run.pid, signal.SIGTERM)
    os.kill(run.pid, signal.SIGINT)  # a launcher sends a second one
    run.join()
    said = (tmp_path / "log.txt").read_text()
    assert run.exitcode == 143 and "--resume" in said and "Traceback" not in said
    train(tmp_path / "whole", arguments("--save_steps", "1"))
    train(tmp_path / "cut", arguments("--save_steps", "1", "--resume"))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_stop_flag_interrupts_the_second_time() -> None:
    with pytest.raises(KeyboardInterrupt), StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.raised
        os.kill(os.getpid(), signal.SIGINT)  # at once: the terminal's and the launcher's
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


class Cut(Exception):
    pass


def cut_at(epoch_of_cut: int, batch_of_cut: int, batch_size: int, epoch: int, first: int) -> Iterator[dict]:
    for i, batch in enumerate(rows_of(batch_size, epoch, first), first):
        if (epoch, i) == (epoch_of_cut, batch_of_cut):
            raise Cut
        yield batch


@pytest.mark.parametrize(
    "flags", [(), ("--amp", "bf16"), ("--amp", "fp16"), ("--lr_schedule", "cosine", "--warmup_steps", "7")]
)
def test_resumed_exactly(tmp_path: Path, flags: tuple[str, ...]) -> None:
    flags, step = ("--save_steps", "2", *flags), partial(one_step, parts=2)
    train(tmp_path / "whole", arguments(*flags), step=step)
    with pytest.raises(Cut):
        train(tmp_path / "cut", arguments(*flags), step=step, batches=partial(cut_at, 1, 7))
    train(tmp_path / "cut", arguments("--resume", *flags), step=step)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    states = [load_torch(tmp_path / name / STATE) for name in ("whole", "cut")]
    assert states[0]["scaler"] == states[1]["scaler"] and bool(states[0]["scaler"]) == ("fp16" in flags)


def test_validation_cut_off_costs_no_training(tmp_path: Path) -> None:
    seen: list[int] = []

    def validate(cut: bool, model: nn.Module, epoch: int) -> dict[str, float]:
        assert not model.training
        if cut and epoch == 2:
            raise Cut
        torch.rand(5)  # must not change what the next epoch draws after a cut
        return {"val": float(epoch)}

    def counted(run: TrainingRun, batch: dict) -> None:
        seen.append(run.batches_done)
        one_step(run, batch)

    train(tmp_path / "whole", arguments(), validate=partial(validate, False))
    with pytest.raises(Cut):
        train(tmp_path / "cut", arguments(), validate=partial(validate, True))
    train(tmp_path / "cut", arguments("--resume"), validate=partial(validate, False), step=counted)
    assert seen == list(range(12)), "the third epoch alone"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert [line["val"] for line in metrics(tmp_path / "cut")] == [1.0, 2.0, 3.0]


def test_checkpoints_metrics_and_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(tmp_path, arguments("--save_epochs", "2"), validate=lambda model, epoch: {"val": float(epoch)})
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_2.pth", "epoch_3.pth", STATE]
    checkpoint = load_checkpoint(tmp_path / "epoch_3.pth", "toy")
    assert checkpoint["config"] == {"width": 8} and checkpoint["epoch"] == 3
    network(noisy=True).load_state_dict(checkpoint["model"])
    lines = metrics(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3] and lines[0]["rows"] == 4.0
    assert [line.get("val") for line in lines] == [None, 2.0, 3.0], "what leaves a checkpoint is measured"
    assert [line["lr"] for line in lines] == pytest.approx([1e-2, 1e-2, 1e-3]), "--lr_drop 2: two epochs in full"
    assert lines[2]["loss"] < lines[0]["loss"] and lines[0]["grad_norm"] > 0

    before = (tmp_path / "metrics.jsonl").read_text()
    train(tmp_path, arguments("--save_epochs", "2", "--resume"))
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == before
    train(tmp_path, arguments("--resume", "--epochs", "4"))
    assert [line["epoch"] for line in metrics(tmp_path)] == [1, 2, 3, 4]

    last = weights(tmp_path, 4)
    (tmp_path / "training.png").write_text("of --plot")
    train(tmp_path, arguments("--epochs", "1"))
    assert "previous" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("epoch_*.pth")) == ["epoch_1.pth"]
    kept = weights(tmp_path / "previous-1", 4)
    assert all(torch.equal(value, kept[name]) for name, value in last.items())
    assert len(metrics(tmp_path / "previous-1")) == 4
    assert (tmp_path / "previous-1" / "training.png").is_file() and not (tmp_path / "training.png").exists()


def test_resume_refuses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(tmp_path, arguments("--resume", "--epochs", "1"))
    assert "nothing to resume" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"started with --lr 0\.01, not 0\.5"):
        train(tmp_path, arguments("--resume", "--lr", "0.5"))
    with pytest.raises(InputError, match="not the state of such a run"):
        train(tmp_path, arguments("--resume"), False)
    with lock(tmp_path, "training run"), pytest.raises(InputError, match="another training run"):
        train(tmp_path, arguments())
    assert (tmp_path / "epoch_1.pth").is_file()
    content = bytearray((tmp_path / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        train(tmp_path, arguments("--resume"))
    (tmp_path / STATE).unlink()
    with pytest.raises(InputError, match="missing, though there are checkpoints"):
        train(tmp_path, arguments("--resume"))


def test_a_project_file_that_has_moved_does_not_stop_a_run(tmp_path: Path) -> None:
    for epochs, dataset in ((1, "before/own.yml"), (2, "after/own.yml")):
        args = arguments("--resume", "--epochs", str(epochs))
        args.dataset = dataset
        train(tmp_path, args)
    assert [line["epoch"] for line in metrics(tmp_path)] == [1, 2]


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    train(tmp_path, arguments("--epochs", "1"))
    args = arguments("--resume")
    args.younger = 4
    with pytest.raises(InputError, match=r"by a version with other flags \(--younger\); start again without --resume"):
        train(tmp_path, args)
    state = load_torch(tmp_path / STATE)
    for name in ("data", "args", "ranks"):
        former = {key: value for key, value in state.items() if key != name}
        torch.save(former, tmp_path / STATE)
        with pytest.raises(InputError, match="not the state of such a run, or of a former form"):
            train(tmp_path, arguments("--resume"))


def test_a_step_in_parts_equals_one_in_whole(tmp_path: Path) -> None:
    train(tmp_path / "whole", arguments(), False, 12, plain_step)
    train(tmp_path / "parts", arguments(), False, 12, partial(plain_step, parts=3))
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], value, atol=1e-6, rtol=1e-5)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    port = free_port()
    logs = [tmp_path / f"rank{i}.txt" for i in range(2)]
    ranks = [launch(log, as_rank, i, 2, port, joined, tmp_path) for i, log in enumerate(logs)]
    for process, log in zip(ranks, logs, strict=True):
        process.join()
        assert process.exitcode == 0, log.read_text()
    train(tmp_path / "one", arguments(), False, 8, plain_step)
    expected = weights(tmp_path / "one")
    for name in ("plain", "parts"):
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5)
        for line, wanted in zip(metrics(tmp_path / name), metrics(tmp_path / "one"), strict=True):
            assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
            assert line["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
    both = [torch.load(tmp_path / f"rank{i}.pth", weights_only=True) for i in range(2)]
    assert all(torch.equal(value, both[1][name]) and value.isfinite().all() for name, value in both[0].items())
    (line,) = (tmp_path / "faulty" / "nonfinite.jsonl").read_text().splitlines()
    processes = json.loads(line)["processes"]
    assert [process["loss"] == "nan" for process in processes] == [False, True]
    assert all(process["batch"] for process in processes)
    assert [line.get("skipped_steps") for line in metrics(tmp_path / "faulty")] == [None, 1, None]
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    with pytest.raises(InputError, match="with 2 processes, not 1"):
        train(tmp_path / "plain", arguments("--resume"), False, 8)


def spoiled(where: str, seen: list, run: TrainingRun, batch: dict) -> None:
    """A step, of which the sixth has a fault in its data, or in its gradient alone. `seen` gets the states before."""
    seen.append({name: value.clone() for name, value in run.bare.state_dict().items()})
    if len(seen) == 6 and where == "data":
        batch["x"][0] = math.nan
    with run.autocast:
        out = run.model(batch["x"])
    loss = ((out.float() - batch["y"]) ** 2).mean()
    if len(seen) == 6 and where == "gradient":
        loss = loss + (run.bare[0].weight * 0).sum().sqrt()  # 0, with a slope of infinity
    run.backward(loss)
    run.step(batch["rows"])


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("where", ["data", "gradient"])
def test_not_finite(tmp_path: Path, where: str, amp: str) -> None:
    if (where, amp) != ("gradient", "fp16"):  # there the scale is lowered first
        with pytest.raises(InputError, match="--skip_nonfinite"):
            train(tmp_path, arguments("--amp", amp), step=partial(spoiled, where, []))
        recorded = json.loads((tmp_path / "nonfinite.jsonl").read_text())
        assert recorded["step"] == 6 and len(recorded["processes"][0]["batch"]) == 4
    assert not torch.is_autocast_enabled("cpu")

    seen: list = []
    train(tmp_path, arguments("--amp", amp, "--skip_nonfinite"), step=partial(spoiled, where, seen))
    changed = [name for name, value in seen[5].items() if not torch.equal(value, seen[6][name])]
    if (where, amp) == ("gradient", "fp16"):
        assert not [name for name in changed if "running" not in name and "num_batches" not in name]
    else:
        assert changed == [], "neither weights nor running statistics"
        assert metrics(tmp_path)[0]["skipped_steps"] == 1
    assert not torch.equal(seen[6]["0.weight"], seen[7]["0.weight"])
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    assert all(line["loss"] is not None for line in metrics(tmp_path))


def test_nothing_finite_stops(tmp_path: Path) -> None:
    def never(run: TrainingRun, batch: dict) -> None:
        run.backward(run.model(batch["x"]).sum() * math.inf)
        run.step(batch["rows"])

    with pytest.raises(InputError, match="no step of epoch 1 was finite"):
        train(tmp_path, arguments("--skip_nonfinite"), step=never)


def test_learning_rates() -> None:
    step = arguments("--lr_drop", "10", "--epochs", "20")
    assert [lr_factor(step, epoch, 5) for epoch in (0, 9, 9.99, 10, 19)] == [1, 1, 1, 0.1, 0.1]
    cosine = arguments("--lr_schedule", "cosine", "--epochs", "20")
    assert [lr_factor(cosine, epoch, 5) for epoch in (0, 10, 20)] == pytest.approx([1, 0.5, 0])
    warm = arguments("--lr_schedule", "constant", "--warmup_steps", "4")
    assert [lr_factor(warm, 0, at) for at in (0, 1, 3, 9)] == [0.25, 0.5, 1, 1]
