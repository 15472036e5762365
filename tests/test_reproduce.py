"""What scripts/reproduce.sh says beforehand and at its end, and that it refuses what it does not know."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.reproduce import CLIP, EPOCHS, STEP, cost, main, table
from tests.stages import Stages
from utils.box_ops import MOTION_CATEGORIES
from utils.misc import InputError
from utils.results import cell, print_table


def test_cost_counts_each_pass_over_the_frames(stages: Stages) -> None:
    def rows(tuned: bool, published: bool) -> dict[str, float]:
        return {row[0]: row[1] for row in cost("synthetic", str(stages.data), tuned, published, rate=2.0)}

    plain = rows(False, False)
    frames = plain["frames of train"] + plain["frames of val"]
    assert 7 * 12 <= frames <= 7 * 16
    assert plain["time: all frames"] == pytest.approx(frames / 2 / 3600)
    more = rows(True, True)
    extra = more["time: all that a detector does"] - plain["time: all that a detector does"]
    assert extra == pytest.approx(5 * EPOCHS * (STEP + CLIP) / 2 / 3600)  # five videos to train on
    assert more["disk: shards"] > 0 and "disk: shards" not in plain


def test_the_table_has_both_stages_results(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    table(stages.folder("one"))
    text = capsys.readouterr().out
    recall, heads = text.split("\n\n")
    value = stages.results("one", "eval_map")[0]["metrics"]["v-mAP@0.2"]
    assert recall.splitlines()[1].split()[:2] == ["feature", "0.2"] and len(recall.splitlines()) == 3
    assert f"{value:.4f}" in heads and "vanilla" in heads
    (tracks,) = (r["metrics"] for r in stages.results("one", "eval_qmm") if r["args"]["subset"] == "val")
    motion = [tracks["motion_recall@0.2"][kind] for kind in MOTION_CATEGORIES]
    numbers = [tracks["recall@0.2"], *motion, tracks["precision@0.2"], tracks["IDF1"], tracks["HOTA"]]
    assert recall.splitlines()[1].split()[2:] == list(map(cell, numbers))
    with pytest.raises(InputError, match="has no results"):
        table(stages.folder("nobody"))


def test_columns_are_aligned_below_each_other_in_any_script(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["AP", "@0.5"], [["立っている人", 0.5], ["run", 0.25], ["прыжок", None]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["AP              @0.5", "立っている人  0.5000", "run           0.2500", "прыжок             -"]


def test_a_data_set_without_the_preset_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "cost", "--dataset", "synthetic", "--published"])
    with pytest.raises(InputError, match="--published: synthetic has no such preset"):
        main()


def test_a_mistyped_call_is_one_line() -> None:
    script = str(Path(__file__).parents[1] / "scripts" / "reproduce.sh")
    for words in ((), ("jhmdb21", "--publishd")):
        done = subprocess.run(["bash", script, *words], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1


def test_the_table_takes_no_results_of_other_settings(stages: Stages, tmp_path: Path, capsys) -> None:
    shutil.copytree(stages.folder("one") / "results", tmp_path / "results")
    for number, path in enumerate(sorted((tmp_path / "results").glob("eval_*-val-*.json"))):
        result = json.loads(path.read_text())
        for name in ("recall@0.2", "v-mAP@0.2"):
            if name in result["metrics"]:
                result["metrics"][name] = 0.1234
        result["args"]["sim_th"] = 0.125
        older = path.with_name(path.name.replace("-val-", "-val-zzz-"))
        older.write_text(json.dumps(result))
        os.utime(older, (number, number))
    table(tmp_path)
    shown = capsys.readouterr()
    assert "0.1234" not in shown.out and "2 results of other settings left out" in shown.err
    os.utime(older, None)
    table(tmp_path)
    assert "0.1234" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_way_to_make_and_count_tubes(stages: Stages, tmp_path: Path, capsys) -> None:
    (path,) = (stages.folder("one") / "results").glob("eval_map-val-*.json")
    original, results = json.loads(path.read_text()), tmp_path / "results"
    results.mkdir()
    changes = [
        ("protocol", "act"), ("min_tube_length", 25), ("count_duplicates", True), ("action_th", 0.25),
        ("load_epoch_head", 1), ("head_name", "mine"), ("topk", 3), ("protocol", original["args"]["protocol"]),
    ]  # fmt: skip
    for i, (name, value) in enumerate(changes):
        result = json.loads(path.read_text())
        result["args"][name], result["metrics"]["v-mAP@0.2"] = value, (i + 1) / 10000
        (results / f"eval_map-val-{i}.json").write_text(json.dumps(result))
    table(tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]]
    assert sorted(row[-2] for row in rows) == [f"0.000{i + 1}" for i in range(len(changes))]
    for name in ("ground_truth", "detector_key", "encoder_hash"):
        newer = {**original, "args": original["args"] | {name: "another"}}
        (results / "eval_map-val-newer.json").write_text(json.dumps(newer))
        table(tmp_path)
        shown = capsys.readouterr()
        assert "0.0008" not in shown.out and "8 results of other settings left out" in shown.err


def test_predictions_of_any_program_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    args = {"predictions": "a.json", "link_cues": "feature", "head_type": "vanilla", "topk": None}  # flags' defaults
    args |= {"min_tube_length": None, "protocol": "voc"}
    result = {"args": args, "metrics": {"v-mAP@0.5": 0.25}}
    (tmp_path / "results" / "eval_map-val-a.json").write_text(json.dumps(result))
    with pytest.raises(InputError, match="has no results of a run on val"):
        table(tmp_path)


def test_a_row_has_no_metrics_of_a_head_that_was_trained_anew_since(stages: Stages, tmp_path: Path, capsys) -> None:
    (path,) = (stages.folder("one") / "results").glob("eval_map-val-*.json")
    (tmp_path / "results").mkdir()
    for i, (metric, head) in enumerate((("frame-mAP@0.2", "former"), ("v-mAP@0.2", None))):
        result = json.loads(path.read_text())
        result["args"]["head_hash"] = head or result["args"]["head_hash"]
        result["metrics"] = {metric: (i + 1) / 10000}
        (tmp_path / "results" / f"eval_map-val-{i}.json").write_text(json.dumps(result))
    table(tmp_path)
    shown = capsys.readouterr()
    assert "0.0002" in shown.out and "0.0001" not in shown.out and "1 result of other settings left out" in shown.err


def test_tracks_that_are_counted_otherwise_have_rows_of_their_own(stages: Stages, tmp_path: Path, capsys) -> None:
    (path,) = (stages.folder("one") / "results").glob("eval_qmm-val-*.json")
    (tmp_path / "results").mkdir()
    for i, change in enumerate(({}, {"protocol": "published"}, {"label_centric": False}, {"frame_iou": 0.3})):
        result = json.loads(path.read_text())
        result["args"] |= change
        (tmp_path / "results" / f"eval_qmm-val-{i}.json").write_text(json.dumps(result))
    table(tmp_path)
    names = [line.split("  ")[0] for line in capsys.readouterr().out.split("\n\n")[0].splitlines()[1::2]]
    assert names == [
        f"feature{more}" for more in ("", " (pairs, all frames)", " (pairs, frame IoU 0.3)", " (published)")
    ]


@pytest.mark.parametrize(
    ("gpus", "processes", "batches"), [(0, 1, (32, 8, 64)), (1, 1, (32, 8, 64)), (6, 4, (8, 2, 16))]
)
def test_trainers_share_one_batch_whatever_the_number_of_gpus(
    tmp_path: Path, gpus: int, processes: int, batches: tuple[int, int, int]
) -> None:
    """With a Python that only writes down what it is called with."""
    root, log = Path(__file__).parents[1], tmp_path / "log"
    programs = {"venv/bin/python": f'echo "$*" >>{log}', "bin/nvidia-smi": f"seq {gpus}" if gpus else "exit 9"}
    for name, line in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    shutil.copy(root / "requirements.txt", tmp_path / "venv" / ".requirements.txt")
    detr = tmp_path / "checkpoint" / "ucf101-24" / "reproduce_published" / "detr" / "epoch_20.pth"
    detr.parent.mkdir(parents=True)
    detr.touch()
    env = {name: value for name, value in os.environ.items() if name not in ("GPUS", "DETR_RATE")}
    env |= {"VENV": str(tmp_path / "venv"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HEADS": "vanilla"}
    env |= {"CHECKPOINT_ROOT": str(tmp_path / "checkpoint")}
    command = ["bash", str(root / "scripts" / "reproduce.sh"), "ucf101-24", "--published"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    scripts = ("train_detr.py", "train_qmm.py", "train_action_head.py")
    flags = ("--batch_size", "--batch_size", "--iter_update")
    for script, flag, size in zip(scripts, flags, batches, strict=True):
        trained = [call for call in calls if f"{script} " in call]
        assert trained and all(f"{flag} {size} " in f"{call} " and "--preset published" in call for call in trained)
        assert all((f"--nproc_per_node {processes} " in call) == (processes > 1) for call in trained)
    assert all(("--device cpu" in call) == (gpus == 0) for call in calls if "eval_map.py" in call)
