"""Several actions at once: sets of labels from the annotation to the head's loss and the action tubes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.annotations import Video
from datasets.check import several_actions
from datasets.make_shards import encode_video
from datasets.track_batches import TrackBatches
from datasets.use_shards import ClipDataset, collate
from models.action_head import action_probabilities, build_action_head
from models.auxiliary_losses import QueryLosses
from models.tube import action_tubes, carried_actions
from tests.videos import gradient_frames, write_video
from train_action_head import MAX_WEIGHT, class_weights, classify, frame_losses, validate
from utils.box_ops import Track, Tube, paired_iou
from utils.gt_tubes import label_frames, label_sets
from utils.storage.files import write_sealed
from utils.storage.tars import write_tar


def people(draw: np.random.Generator, n_frames: int = 30) -> list[Tube]:
    """Tubes of three people, each with up to three actions at a time, whose boxes drift."""
    tubes = []
    for person in range(3):
        left = draw.uniform(0, 60) + np.cumsum(draw.normal(0, 2, n_frames))
        boxes = np.stack([left, np.full(n_frames, 5.0), left + 20, np.full(n_frames, 45.0)], 1)
        for label in [*draw.choice(4, 3, replace=False).tolist(), -1]:
            frames = np.flatnonzero(draw.random(n_frames) < 0.5)
            if len(frames):
                tubes.append(Tube(frames, boxes[frames], label, person_id=person))
    return tubes


@pytest.mark.parametrize("seed", range(8))
def test_label_sets_are_those_of_the_person_that_overlaps_most(seed: int) -> None:
    draw = np.random.default_rng(seed)
    gt, frames = people(draw), np.flatnonzero(draw.random(30) < 0.7)
    left = draw.uniform(0, 60, len(frames))
    boxes = np.stack([left, np.full(len(frames), 5.0), left + 20, np.full(len(frames), 45.0)], 1)
    sets = label_sets(frames, boxes, gt, 0.3, 4)
    for frame, box, row in zip(frames, boxes, sets, strict=True):
        here = [(t, t.boxes[np.searchsorted(t.frames, frame)]) for t in gt if frame in t.frames]
        near = max(here, key=lambda pair: paired_iou(box, pair[1]), default=None)
        expected = set()
        if near is not None and paired_iou(box, near[1]) > 0.3:
            expected = {t.label for t, _ in here if t.person_id == near[0].person_id} - {-1}
        assert set(np.flatnonzero(row).tolist()) == expected
    assert sets.dtype == np.uint8 and sets.any()


def test_a_set_of_one_is_the_single_label() -> None:
    draw = np.random.default_rng(0)
    gt = [tube for tube in people(draw) if tube.label >= 0][::3]  # one tube a person
    for tube in gt:
        single = label_frames(tube.frames, tube.boxes, gt, 0.5, 4)
        sets = label_sets(tube.frames, tube.boxes, gt, 0.5, 4)
        assert (single < 4).any() and (sets.sum(1) == (single < 4)).all()
        assert (sets.argmax(1)[single < 4] == single[single < 4]).all()


def shard(folder: Path, settings: dict) -> ClipDataset:
    frames, boxes = np.arange(6), np.tile(np.float32([5, 5, 25, 45]), (6, 1))
    tubes = [Tube(frames, boxes, 2, person_id=1), Tube(frames[2:], boxes[2:], 0, person_id=1)]
    tubes.append(Tube(frames[:3], boxes[:3] + 30, -1, person_id=7))
    path = write_video(folder / "v.mp4", gradient_frames(6))
    video = Video("v", 64, 48, 6, tubes)
    meta, jpegs, _ = encode_video(video, path, folder / "spool", {"image_size": 0, "quality": 95, **settings})
    write_tar(folder / "shards" / "shard-0.tar", [(meta, jpegs)])
    write_sealed(folder / "shards" / "index.json", {"shards": ["shard-0.tar"]})
    return ClipDataset(folder / "shards", 6, 1, train=False)


def test_clips_carry_sets_and_the_detectors_action_loss_takes_them(tmp_path: Path) -> None:
    batch = collate(shard(tmp_path, {"n_actions": 3}).pack([(0, 0)]))
    actions = torch.stack([target["actions"][0] for target in batch["targets"]])
    assert actions.tolist() == [[0, 0, 1]] * 2 + [[1, 0, 1]] * 4
    assert batch["targets"][0]["actions"].tolist() == [[0, 0, 1], [0, 0, 0]]
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = QueryLosses._action_loss(None, logits, batch["targets"][0]["actions"])
    chances = logits[0, :3].sigmoid()
    expected = -(torch.log(1 - chances[0]) + torch.log(1 - chances[1]) + torch.log(chances[2])) / 3
    torch.testing.assert_close(loss, expected)  # the second person's actions are not known
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[1].any() and not gradient[0, 3]


def test_clips_of_single_labels_are_as_they_were(tmp_path: Path) -> None:
    batch = collate(shard(tmp_path, {}).pack([(0, 0)]))
    assert [target["actions"].tolist() for target in batch["targets"][:4]] == [[2, -1], [2, -1], [2, -1], [2]]


class Store(list):
    """Tracks whose queries are random; a label each frame, or none."""

    def queries(self, track: Track) -> np.ndarray:
        return np.random.default_rng(len(track)).standard_normal((len(track), 16)).astype(np.float32)


def tracks(lengths: list[int], labelled: float = 0.4) -> Store:
    draw = np.random.default_rng(0)
    parts = []
    for n in lengths:
        sets = (draw.random((n, 3)) < 0.4) * (draw.random((n, 1)) < labelled)
        parts.append(Track(np.arange(n), np.zeros((n, 4)), np.ones(n), labels=sets.astype(np.uint8), video=f"{n}"))
    return Store(parts)


def test_the_loss_is_the_binary_cross_entropy_of_labelled_frames() -> None:
    torch.manual_seed(0)
    head = build_action_head("vanilla", 3, 16, n_layers=1, nhead=4, dim_feedforward=16, multi_label=True).eval()
    data, weight = TrackBatches(tracks([5, 9, 14]), seed=0), torch.tensor([1.0, 3.0, 1.0])
    losses, right, n = frame_losses(*classify(head, data.batch(data.tracks), weight.device), weight)
    hits = frames = 0
    for loss, track in zip(losses, data.tracks, strict=True):
        chances = action_probabilities(head, data.store.queries(track), track.frames).astype(float)
        assert chances.shape == (len(track), 4) and not chances[:, 3].any()
        terms = []
        for row, labels in zip(chances[:, :3], track.labels, strict=True):
            if labels.any():
                of_class = np.where(labels, -np.log(row) * weight.numpy(), -np.log(1 - row))
                terms.append(of_class.mean())
                hits, frames = hits + labels[row.argmax()], frames + 1
        assert loss.item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert (int(right), int(n)) == (hits, frames)
    assert validate(head, data, 2, weight) == {
        "val_accuracy": pytest.approx(hits / frames),
        "val_loss": pytest.approx(float(losses.detach().mean()), rel=1e-5),
        "val_top5": 1,  # of three classes
    }


def test_tracks_without_a_label_are_not_trained_on_and_weights_balance_the_others() -> None:
    store = tracks([40, 60])
    store.append(Track(np.arange(3), np.zeros((3, 4)), np.ones(3), labels=np.zeros((3, 3), np.uint8)))
    store[0].labels[:, 2] = store[1].labels[:, 2] = 0
    data = TrackBatches(store, seed=0)
    assert [len(track) for track in data.tracks] == [40, 60]
    sets = np.concatenate([t.labels for t in data.tracks])
    sets = sets[sets.any(1)]
    weights = class_weights(data, "balanced").tolist()
    assert weights[2] == min(len(sets), MAX_WEIGHT)
    for weight, present in zip(weights[:2], sets.T[:2].astype(bool), strict=True):
        assert weight == pytest.approx(max((~present).sum() / present.sum(), 1))
    assert class_weights(data, "none").tolist() == [1, 1, 1]


def test_actions_are_carried_above_a_threshold_or_by_rank() -> None:
    chances = np.array([[0.9, 0.6, 0.1, 0.0], [0.2, 0.8, 0.4, 0.0], [0.1, 0.1, 0.2, 0.0]])
    assert carried_actions(chances, action_th=0.5).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert carried_actions(chances, topk=2).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    assert carried_actions(np.array([[0.2, 0.1, 0.7]])).tolist() == [[False, False]]  # "no action" comes first
    frames, boxes = np.array([3, 4, 9]), np.zeros((3, 4))
    tubes = action_tubes(frames, boxes, chances, action_th=0.5, person_id=5)
    assert [(t.label, t.frames.tolist(), t.person_id) for t in tubes] == [(0, [3], 5), (1, [3, 4], 5)]
    assert [tube.frame_scores.tolist() for tube in tubes] == [[0.9], [0.6, 0.8]]


def test_the_check_tells_of_several_actions_that_the_project_does_not_ask_for() -> None:
    frames, boxes = np.arange(4), np.zeros((4, 4))
    walk, wave = Tube(frames, boxes, 0, person_id=3), Tube(frames[3:], boxes[3:], 1, person_id=3)
    after = Tube(frames[3:] + 1, boxes[3:], 1, person_id=3)
    assert (
        list(several_actions({"v": Video("v", 64, 48, 9, [walk, after, Tube(frames, boxes, -1, person_id=3)])})) == []
    )
    (line,) = several_actions({"u": Video("u", 64, 48, 9, [walk, after]), "v": Video("v", 64, 48, 9, [walk, wave])})
    assert line.startswith("1 person does several actions at once") and "(first: 3 in 'v')" in line
