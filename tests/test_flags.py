"""Command lines: flags in every spelling, answers before PyTorch is imported, cores and full memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.flag_tables import SCRIPTS, parser_of
from utils.cli import Parser, cosine, positive_int, run, thresholds
from utils.misc import InputError, available_cores, cpu_quota

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "cv2", "scipy", "matplotlib", "comet_ml", "av")
LIGHT_SCRIPTS = (*SCRIPTS, "models/person_queries")


ANSWERS = """
import contextlib, io, json, runpy, sys
for script in sys.argv[2:]:
    for flag in ("--help", "--epoch"):
        sys.argv, said, status = [f"{script}.py", flag], io.StringIO(), None
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                runpy.run_path(f"{script}.py", run_name="__main__")
            except SystemExit as stop:
                status = stop.code
        heavy = [name for name in HEAVY if name in sys.modules]
        print(json.dumps([script, flag, status, said.getvalue().count("\\n"), heavy]))
"""
"""Of each script and flag the exit status, the lines of stderr and the heavy libraries that are imported by then."""


def test_help_and_mistakes_are_answered_before_heavy_imports() -> None:
    code = ANSWERS.replace("HEAVY", str(HEAVY))
    command = [sys.executable, "-c", code, "-", *LIGHT_SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = [[s, *answer, []] for s in LIGHT_SCRIPTS for answer in (("--help", 0, 0), ("--epoch", 2, 1))]
    assert answers == wanted, done.stderr


@pytest.mark.parametrize(
    ("script", "flag", "dest"),
    [
        ("eval_qmm", "n_frames", "detr_batch"),
        ("eval_qmm", "detr_batch", "detr_batch"),
        ("eval_map", "n_frames", "detr_batch"),
        ("eval_map", "load_epoch", "load_epoch"),
        ("eval_map", "load_epoch_qmm", "load_epoch"),
    ],
)
def test_a_flag_is_taken_by_the_name_that_other_scripts_have_for_it(script: str, flag: str, dest: str) -> None:
    parser = parser_of(script)
    assert vars(parser.parse_args(["--dataset", "d", f"--{flag}", "3"]))[dest] == 3
    assert vars(parser.parse_args(["--dataset", "d"]))[dest] in (None, 0)


def test_flags_are_taken_with_one_dash_or_two() -> None:
    parser = Parser("test")
    parser.flag("a", "epochs", type=positive_int, default=20)
    parser.flag("a", "sim_th", type=cosine)
    parser.flag("b", "plot", action="store_true")
    parser.flag("b", "name")
    for words in (["--epochs", "3", "--sim_th", "-0.5", "--plot"], ["-epochs=3", "-sim_th=-0.5", "-plot"]):
        given = parser.parse_args([*words, "-name", "h"])  # not the flag -h
        assert vars(given) == {"epochs": 3, "sim_th": -0.5, "plot": True, "name": "h"}


def test_help_shows_a_default_where_there_is_one() -> None:
    parser = Parser("test")
    parser.flag("a", "videos", nargs="+", default=(), help="videos")
    parser.flag("a", "limit", type=positive_int, default=0, help="limit")
    parser.flag("a", "levels", nargs="+", default=["0.2", "0.5"], help="levels")
    shown = parser.format_help()
    assert "()" not in shown and "limit (default: 0)" in shown and "levels (default: 0.2 0.5)" in shown


def test_ranges_of_thresholds_are_taken_as_written_or_refused() -> None:
    assert thresholds(["0.5", "0.2:0.3", "0.2:0.6:0.2"]) == [0.5, 0.2, 0.25, 0.3, 0.4, 0.6]
    for text in ("0.2:0.6:0", "0.2:0.6:0.2:9", "0.6:0.2", "0", "0.2:", "nan"):
        with pytest.raises(InputError, match=f"--tiou_th {text}: "):
            thresholds([text])


def test_published_flags_exist() -> None:
    parser = parser_of("train_qmm")
    given = Parser.parse_args(parser, ["-dataset", "jhmdb21", "-lr_en", "1e-3", "-is_skip", "-epochs", "5"])
    assert (given.dataset, given.lr, given.is_skip, given.epochs) == ("jhmdb21", 1e-3, True, 5)


def test_cpu_quota_is_the_smallest_around_the_process(tmp_path: Path) -> None:
    inner = tmp_path / "pod" / "container"
    inner.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("1:cpu:/other\n0::/pod/container\n")
    assert cpu_quota(tmp_path, tmp_path / "cgroup") == float("inf")
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pod" / "cpu.max").write_text("350000 100000\n")
    assert cpu_quota(tmp_path, tmp_path / "cgroup") == 3.5
    (inner / "cpu.max").write_text("50000 100000\n")
    assert cpu_quota(tmp_path, tmp_path / "cgroup") == 0.5
    (tmp_path / "cgroup").write_text("0::/pod/container\n1:cpu:/other\n")  # where both versions are mounted
    assert cpu_quota(tmp_path, tmp_path / "cgroup") == 0.5
    assert cpu_quota(tmp_path, tmp_path / "missing") == float("inf")


def test_cores_are_shared_by_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr("utils.misc.cpu_quota", lambda *_: 4.2)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert available_cores() == 5
    monkeypatch.setattr("utils.misc.cpu_quota", lambda *_: float("inf"))
    assert available_cores() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_cores() == 1


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**50)])
def test_full_memory_is_one_line(allocate, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(allocate)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "memory is full; try a smaller --batch_size, --detr_batch" in said


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))
