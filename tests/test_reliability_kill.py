"""Every stage killed at random moments and just before its files take their places; it ends as if left alone.

`python scripts/kill_many.py` does the same hundreds of times.
"""

import pytest

from tests.killing import NEEDS, Killing


@pytest.fixture(scope="module")
def killing(tmp_path_factory: pytest.TempPathFactory) -> Killing:
    return Killing(tmp_path_factory.mktemp("killed"), seed=1)


@pytest.mark.parametrize("script", NEEDS)
def test_killed_at_random_and_gone_on_with(killing: Killing, script: str) -> None:
    killing.at_random(script, 4)


@pytest.mark.parametrize("script", ["train_detr", "eval_qmm"])
def test_one_of_two_processes_killed_and_all_gone_on_with(killing: Killing, script: str) -> None:
    killing.pairs_at_random(script, 2)


def test_killed_just_before_a_file_is_whole(killing: Killing) -> None:
    assert killing.at_renames("eval_qmm", [3, 9]) == 2
    assert killing.at_renames("train_detr", [3]) == 1
