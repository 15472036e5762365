"""Every stage on the layouts of AVA and MultiSports, evaluated by their own protocols as by the official commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.config import load_project
from datasets.synthetic.videos import make_synthetic
from tests.pickled_layouts import FILES, write_pickled_layout
from tests.pickles import pickled
from tests.stages import Stages
from utils.metrics import ava, multisports


def chain(root: Path, layout: str, monkeypatch: pytest.MonkeyPatch, *length: int) -> Stages:
    """From the layout's files to a head, with the detector that comes with the code."""
    of_pickle = layout in FILES
    make_synthetic(root / "synthetic", 2, 1, length=length, two_at_once=1.0, layout="json" if of_pickle else layout)
    if of_pickle:
        write_pickled_layout(root / "synthetic", layout)
    stages = Stages(root, root / "checkpoint")
    data = ("--dataset", root / "synthetic" / "project.yml")
    monkeypatch.setattr(stages, "run", lambda script, *flags, run=stages.run: run(script, *data, *flags))
    stages.run("train_qmm", "--detr", "synthetic", "--epochs", 1, "--sampling_rate", 1)
    for subset in ("train", "val"):
        stages.run("eval_qmm", "--subset", subset)
    stages.run("train_action_head", "--epochs", 2)
    return stages


def results(root: Path, layout: str, protocol: str) -> tuple[dict, Path]:
    (path,) = (root / "checkpoint" / f"synthetic-{layout}" / "qmm" / "results").glob(f"eval_map*{protocol}.json")
    return json.loads(path.read_text())["metrics"], path.with_suffix("")


def test_ava_s_layout_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = chain(tmp_path, "ava", monkeypatch, 51, 55)
    stages.run("eval_map", "--metric", "frame-mAP", "--protocol", "ava", "--tiou_th", 0.5, "--save_predictions")
    metrics, folder = results(tmp_path, "ava", "ava")
    folder_of_gt = tmp_path / "synthetic" / "annotations"
    files = folder_of_gt / "ava_val.csv", folder / "ava.csv", folder_of_gt / "ava_action_list.pbtxt"
    official = ava.evaluate_files(*files)
    assert 0 < metrics["frame-mAP@0.5"] == pytest.approx(official["mAP"], abs=1e-9)
    assert files[1].read_text().split(",")[1] in ("0900", "0901", "0902")


@pytest.mark.slow
def test_multisports_layout_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = chain(tmp_path, "multisports", monkeypatch, 24, 26)
    for metric in ("v-mAP", "frame-mAP", "motion-AP"):
        flags = ("--metric", metric, "--protocol", "multisports", "--tiou_th", 0.2, 0.5, "--min_tube_length", 2)
        stages.run("eval_map", *flags, "--save_predictions")
    metrics, folder = results(tmp_path, "multisports", "v-mAP-multisports")
    predicted = json.loads((folder / "predictions.json").read_text())
    labels = load_project(tmp_path / "synthetic" / "project.yml").labels
    tubes: dict[int, list] = {label: [] for label in range(len(labels))}
    for name, video in predicted["videos"].items():
        for tube in video["tubes"]:
            rows = np.column_stack([np.array(tube["frames"]) + 1, tube["boxes"]]).astype(np.float32)
            label = tube["label"] if isinstance(tube["label"], int) else labels.index(tube["label"])
            tubes[label].append((name, tube["score"], rows))
    (tmp_path / "tubes.pkl").write_bytes(pickled(tubes))
    official = multisports.evaluate_files(tmp_path / "synthetic" / "multisports_GT.pkl", tubes=tmp_path / "tubes.pkl")
    assert metrics["v-mAP@0.2"] == pytest.approx(official["videoAP@0.2"]["mAP"], abs=1e-9)
    assert metrics["AP@0.5"] == pytest.approx(
        {label: ap if ap == ap else None for label, ap in official["videoAP@0.5"]["AP"].items()}, abs=1e-9
    )
