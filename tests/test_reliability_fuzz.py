"""Hundreds of damaged files of every kind, each in a process that may die; `python -m tests.fuzz` does thousands."""

from pathlib import Path

import pytest

from tests.fuzz import KINDS, in_child

COUNT = 25


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_told_or_harmless(tmp_path: Path, name: str) -> None:
    told = in_child(name, tmp_path / "fuzz", seed=5, count=COUNT if name != "checkpoint" else COUNT // 2)
    assert told["faults"] == []
    assert told["refused"] > (0 if name == "metrics" else COUNT // 10) - 1
