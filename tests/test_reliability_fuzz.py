"""Damaged files of every kind, each read in a process that may crash; `python -m tests.fuzz` runs thousands."""

from pathlib import Path

import pytest

from tests.fuzz import KINDS, in_child

COUNT = 25
QUICK = ("tar", "checkpoint", "jhmdb", "json", "avi")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in KINDS])
def test_damage_is_told_or_harmless(tmp_path: Path, name: str) -> None:
    told = in_child(name, tmp_path / "fuzz", seed=5, count=COUNT)
    assert told["faults"] == []
    assert told["refused"] > (0 if name == "metrics" else COUNT // 10) - 1
