"""What scripts/reproduce.sh says beforehand and at its end, and that it refuses what it does not know."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.reproduce import CLIP, EPOCHS, STEP, cost, main, table
from tests.stages import Stages
from utils.misc import InputError


def test_cost_counts_each_pass_over_the_frames(stages: Stages) -> None:
    def rows(tuned: bool, published: bool) -> dict[str, float]:
        return {row[0]: row[1] for row in cost("synthetic", str(stages.data), tuned, published, rate=2.0)}

    plain = rows(False, False)
    frames = plain["frames of train"] + plain["frames of val"]
    assert 6 * 12 <= frames <= 6 * 16
    assert plain["time: all frames"] == pytest.approx(frames / 2 / 3600)
    more = rows(True, True)
    extra = more["time: all that a detector does"] - plain["time: all that a detector does"]
    assert extra == pytest.approx(4 * EPOCHS * (STEP + CLIP) / 2 / 3600)  # four videos to train on
    assert more["disk: shards"] > 0 and "disk: shards" not in plain


def test_the_table_has_both_stages_results(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    table(stages.folder("one"))
    text = capsys.readouterr().out
    recall, heads = text.split("\n\n")
    value = stages.results("one", "eval_map")[0]["metrics"]["v-mAP@0.2"]
    assert recall.splitlines()[1].split()[:2] == ["feature", "0.2"] and len(recall.splitlines()) == 3
    assert f"{value:.4f}" in heads and "vanilla" in heads
    with pytest.raises(InputError, match="has no results"):
        table(stages.folder("nobody"))


def test_a_data_set_without_the_preset_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "cost", "--dataset", "synthetic", "--published"])
    with pytest.raises(InputError, match="--published: synthetic has no such preset"):
        main()


def test_a_mistyped_call_is_one_line() -> None:
    script = str(Path(__file__).parents[1] / "scripts" / "reproduce.sh")
    for words in ((), ("jhmdb21", "--publishd")):
        done = subprocess.run(["bash", script, *words], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1
