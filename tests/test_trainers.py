"""What the trainers report, on cases worked out by hand, and what they refuse to resume."""

import math
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.config import load_project
from datasets.make_shards import make_shards
from datasets.synthetic.videos import make_synthetic
from datasets.track_batches import TrackBatches
from tests.stages import LOOSE, TINY_DETR, Stages
from train_action_head import top_k_hits, validate
from train_detr import architecture_of, box_metrics, make_parser, warn
from train_qmm import nearest_is_same
from utils.box_ops import Track
from utils.misc import InputError

LEFT, RIGHT = [0.0, 0.0, 0.4, 1.0], [0.6, 0.0, 1.0, 1.0]
NOWHERE = [0.45, 0.0, 0.55, 0.1]
HALF_OF_LEFT, THIRD_OF_LEFT = [0.0, 0.0, 0.2, 1.0], [0.0, 0.0, 0.13, 1.0]  # IoU 0.5 and 0.325


@pytest.mark.parametrize(
    ("frames", "ap", "recall"),
    [
        ([([(0.9, LEFT), (0.6, NOWHERE)], [LEFT])], 1, 1),  # a false positive below the only hit costs nothing
        ([([(0.9, LEFT), (0.95, NOWHERE)], [LEFT])], 1 / 2, 1),  # above it: precision 1/2 at recall 1
        ([([(0.8, LEFT)], [LEFT]), ([(0.7, NOWHERE)], [RIGHT])], 1 / 2, 1 / 2),  # one of two people
        # hit, its duplicate, hit: precision 1 up to recall 1/2, then 2/3
        ([([(0.9, LEFT), (0.8, LEFT)], [LEFT]), ([(0.7, RIGHT)], [RIGHT])], 1 / 2 + 1 / 2 * 2 / 3, 1),
        ([([(0.3, LEFT)], [LEFT])], 1, 0),  # recall wants a score of 0.5
        ([([(0.04, LEFT), (0.01, NOWHERE)], [LEFT])], 1, 0),  # AP counts the order of scores alone
        ([([(0.9, HALF_OF_LEFT)], [LEFT])], 1, 1),  # IoU 0.5 is enough
        ([([(0.9, THIRD_OF_LEFT)], [LEFT])], 0, 0),
        ([([(0.9, LEFT)], []), ([(0.8, LEFT)], [LEFT])], 1 / 2, 1),  # a detection where there is nobody
    ],
)
def test_val_ap50_and_recall(frames: list, ap: float, recall: float) -> None:
    scores = [np.array([score for score, _ in detections], np.float32) for detections, _ in frames]
    boxes = [np.array([box for _, box in detections], np.float32) for detections, _ in frames]
    people = [np.array(boxes_of_frame, np.float32).reshape(-1, 4) for _, boxes_of_frame in frames]
    metrics = box_metrics(scores, boxes, people)
    assert metrics == {"val_AP50": pytest.approx(ap), "val_recall50": pytest.approx(recall)}


def test_val_ap50_without_people_is_left_out() -> None:
    assert box_metrics([np.float32([0.9])], [np.float32([LEFT])], [np.zeros((0, 4), np.float32)]) == {}


def test_nearest_is_same() -> None:
    # 0 and 1 are each other's nearest; between 2 and 3, one person, lies 4, who appears once and does not count
    features = torch.tensor([[1, 0], [10, 1], [0, 1], [0.1, 1], [0.05, 1]])
    assert nearest_is_same(features, torch.tensor([7, 7, 3, 3, 5])) == 2 / 4
    assert nearest_is_same(features[:4], torch.tensor([7, 7, 3, 3])) == 1
    assert nearest_is_same(features, torch.arange(5)) == 0
    assert nearest_is_same(features[:1], torch.tensor([7])) == 0


class Store(list):
    """Tracks and their queries: the action that the head is to answer, in each frame."""

    def queries(self, track: Track) -> np.ndarray:
        answers = {"a": [0, 1, 1], "b": [1]}
        return np.float32(answers[track.video])[:, None]


class Sure(nn.Module):
    """Gives the answer in the query 0.8, the two other classes 0.1."""

    def forward(self, queries: Tensor, *_: object) -> Tensor:
        answers = nn.functional.one_hot(queries[..., 0].long(), 3)
        return (0.1 + 0.7 * answers).log()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_val_accuracy_and_loss(batch_size: int) -> None:
    tracks = Store(
        Track(np.arange(len(labels)), np.zeros((len(labels), 4)), np.ones(len(labels)), labels=labels, video=name)
        for name, labels in (("a", np.array([0, 1, 2])), ("b", np.array([1])))
    )
    metrics = validate(Sure(), TrackBatches(tracks, seed=0), batch_size, torch.tensor([1.0, 1.0, 0.5]))
    right, wrong = -math.log(0.8), -math.log(0.1)
    of_a = (right + right + 0.5 * wrong) / 2.5  # its last frame is "no action", of half the weight
    top_k = {"val_top5": 1, "val_action_top1": 1, "val_action_top5": 1}
    assert metrics == {"val_accuracy": 3 / 4, "val_loss": pytest.approx((of_a + right) / 2, rel=1e-5), **top_k}


def test_top_k_with_and_without_no_action() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
    labels = torch.tensor([0, 1, 0, 2])  # the last class is "no action"
    assert top_k_hits(logits, labels, 1).tolist() == [True, False, False, False]
    assert top_k_hits(logits, labels, 2).tolist() == [True, True, False, True]
    tracks = Store([Track(np.arange(3), np.zeros((3, 4)), np.ones(3), labels=np.array([0, 1, 2]), video="a")])
    metrics = validate(Sure(), TrackBatches(tracks, seed=0), 1, torch.ones(3))
    assert metrics.keys() == {"val_loss", "val_accuracy", "val_top5", "val_action_top1", "val_action_top5"}
    assert [metrics[name] for name in ("val_top5", "val_action_top1", "val_action_top5")] == [1, 1, 1]
    nobody = Store([Track(np.arange(1), np.zeros((1, 4)), np.ones(1), labels=np.array([2]), video="b")])
    metrics = validate(Sure(), TrackBatches(nobody, seed=0), 1, torch.ones(3))
    assert metrics.keys() == {"val_loss", "val_accuracy", "val_top5"} and metrics["val_top5"] == 1


def test_what_cannot_be_learnt_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    data, still = (SimpleNamespace(most_people=lambda: 4, anybody_twice=lambda n=n: n > 1) for n in (2, 1))
    warn(Namespace(id_loss_coef=2.0), data, num_queries=4)
    warn(Namespace(id_loss_coef=0.0), still, num_queries=4)
    assert capsys.readouterr().err == ""
    warn(Namespace(id_loss_coef=2.0), still, num_queries=3)
    identity, people = capsys.readouterr().err.splitlines()
    assert "--id_loss_coef 2 has no effect" in identity and "--n_frames 2" in identity
    assert "a frame has 4 people, but the detector 3 queries" in people


@pytest.mark.slow
def test_a_changed_list_of_videos_is_not_resumed(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "synthetic", 4, 1, 64, 48, length=(12, 16))
    project, shards = load_project("synthetic", tmp_path), tmp_path / "synthetic" / "shards" / "train"
    make_shards(project, "train", shards)
    stages = Stages(tmp_path, tmp_path / "checkpoint")
    with pytest.raises(InputError, match="--n_frames 1: clips of one frame"):
        stages.run("train_qmm", "--n_frames", 1)
    detector = ("train_detr", "--ex_name", "one", *TINY_DETR, "--resume", "--epochs")
    stages.run(*detector, 1)
    stages.run(*detector, 2)
    weights = stages.folder("one") / "detr" / "epoch_1.pth"
    encoder = ("train_qmm", "--qmm_name", "one", "--detr", weights, "--iou_th", 0.05, *LOOSE, "--resume", "--epochs")
    stages.run(*encoder, 1)
    stages.run(*encoder, 2)
    names = (tmp_path / "synthetic" / "train.txt").read_text().splitlines()
    (tmp_path / "synthetic" / "train.txt").write_text("\n".join(names[1:]))
    make_shards(load_project("synthetic", tmp_path), "train", shards)
    for command in (detector, encoder):
        with pytest.raises(InputError, match=r"train_state\.pth: the run was started on other training data"):
            stages.run(*command, 3)


def test_earlier_layers_have_losses_unless_the_flag_says_otherwise() -> None:
    """Also where the detector that is trained further was trained without them."""
    for flags, wanted in (([], True), (["--no_aux_loss"], False)):
        assert architecture_of(make_parser().parse_args(["--dataset", "jhmdb21", *flags]))[1]["aux_loss"] is wanted
