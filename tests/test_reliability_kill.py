"""Every stage, killed at random moments or just before it renames a file and run again, ends as if never killed.

`python -m tests.kill_many` does the same hundreds of times.
"""

import pytest

from tests.killing import NEEDS, Killing

pytestmark = pytest.mark.slow  # `test_training.py` and `test_reliability_stop.py` interrupt and resume in every run


@pytest.fixture(scope="module")
def killing(tmp_path_factory: pytest.TempPathFactory) -> Killing:
    return Killing(tmp_path_factory.mktemp("killed"), seed=1)


@pytest.mark.parametrize("script", NEEDS)
def test_killed_at_random_and_resumed(killing: Killing, script: str) -> None:
    killing.at_random(script, 2)


@pytest.mark.parametrize("script", ["train_qmm", "eval_qmm"])
def test_one_of_two_processes_killed_and_both_resumed(killing: Killing, script: str) -> None:
    killing.pairs_at_random(script, 1)


def test_killed_just_before_a_file_is_whole(killing: Killing) -> None:
    assert killing.at_renames("eval_qmm", [3, 9]) == 2
    assert killing.at_renames("train_detr", [3]) == 1
