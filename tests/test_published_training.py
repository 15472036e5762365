"""How the published code chooses and labels the queries that train the person encoder, against its own answers."""

import json
import zlib
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.annotations import Video
from datasets.query_clips import QueryClips
from datasets.transforms import normalise_boxes, resize
from models.detectors import Detections
from models.detr import normalize, pad_square
from models.held_out import GAPS, held_out_metrics, rank1
from models.person_encoder import NPairLoss, PersonEncoder
from models.person_queries import match_hungarian
from tests.fill import fill_state_dict
from train_qmm import match
from utils.box_ops import Tube, box_cxcywh_to_xyxy, paired_iou
from utils.misc import exceeding

FLOATS = np.array([0.9, np.nextafter(np.float32(0.9), np.float32(2))], np.float32)


@pytest.fixture(scope="module")
def selection(shared: Path) -> list[tuple[dict, dict]]:
    """Of each case the arrays and the numbers."""
    folder = shared / "oracles" / "published"
    with np.load(folder / "published_selection.npz") as data:
        arrays = {name: data[name] for name in data}
    numbers = json.loads((folder / "published_selection.json").read_text())
    cases = sorted({name.split("/")[0] for name in arrays})
    numbers = list(numbers.values()) if isinstance(numbers, dict) else numbers
    return [
        ({name.split("/")[1]: a for name, a in arrays.items() if name.startswith(f"{case}/")}, number)
        for case, number in zip(cases, numbers, strict=True)
    ]


def all_queries(case: dict) -> Detections:
    """Every query of every frame, boxes relative to the square."""
    probabilities = torch.from_numpy(case["logits"]).float().softmax(-1)
    frames, slots = np.divmod(np.arange(probabilities.shape[0] * 100), 100)
    boxes = box_cxcywh_to_xyxy(torch.from_numpy(case["boxes"]).float()).flatten(0, 1).numpy()
    scores = probabilities[..., 1].flatten().numpy()
    return Detections(frames, scores, boxes, np.zeros((len(boxes), 1)), slots)


def test_matching_is_the_published_one(selection: list) -> None:
    for case, _ in selection:
        d, targets = all_queries(case), box_cxcywh_to_xyxy(torch.from_numpy(case["target_boxes"]).float()).numpy()
        matched = match_hungarian(d.frames, d.boxes, d.scores, case["target_frame"], targets, -1.0)
        rows = np.flatnonzero(matched >= 0)
        found = set(zip(d.frames[rows], d.slots[rows], matched[rows], strict=True))
        first = np.searchsorted(case["target_frame"], case["hungarian_frame"])  # targets count within their frame
        places = case["hungarian_target"] + (first if case["hungarian_target"].max() < len(targets) - 1 else 0)
        assert found == set(zip(case["hungarian_frame"], case["hungarian_slot"], places, strict=True))


def test_chosen_detections_are_the_published_ones_but_for_the_two_scales(selection: list) -> None:
    """The published code compares boxes in two scales (not offered): with targets in its scale, the choice is equal."""
    for case, number in selection:
        d, targets = all_queries(case), box_cxcywh_to_xyxy(torch.from_numpy(case["target_boxes"]).float()).numpy()
        args = Namespace(matching="hungarian")
        least = {"psn_score_th": exceeding(number["psn_score_th"]), "iou_th": -1.0}
        matched = match(args, least, d, case["target_frame"], targets)
        height, width = np.ravel(case["size_hw"])[:2]
        side = max(height, width)
        near = np.zeros(len(matched), bool)
        for frame in range(8):
            rows = d.frames == frame
            theirs = targets[case["target_frame"] == frame] * [width, height, width, height]
            if len(theirs):
                near[rows] = paired_iou(d.boxes[rows, None] * side, theirs[None]).max(1) > number["iou_th"]
        rows = np.flatnonzero((matched >= 0) & near)
        assert list(zip(d.frames[rows], d.slots[rows], strict=True)) == list(
            zip(case["chosen_frame"], case["chosen_slot"], strict=True)
        )


def test_features_and_losses_by_slot_are_the_published_ones(selection: list) -> None:
    for case, number in selection:
        clip = case["chosen_frame"] // (8 // number.get("clips", 2))
        _, labels = np.unique(clip * 1000 + case["chosen_slot"], return_inverse=True)
        np.testing.assert_array_equal(labels, case["labels"])
        queries, labels = torch.from_numpy(case["queries"]).float(), torch.from_numpy(labels)
        for skip, name in ((False, "noskip"), (True, "skip")):
            encoder = fill_state_dict(PersonEncoder(skip=skip)).eval()
            features = encoder(queries)
            wanted = torch.from_numpy(case["features" + "_skip" * skip])
            torch.testing.assert_close(features, wanted, atol=1e-5, rtol=0)
            features = wanted.requires_grad_()
            loss = NPairLoss()(features, labels)
            assert loss.item() == pytest.approx(number["n_pair_loss"][name], abs=1e-5)
            (grad,) = torch.autograd.grad(loss, features)
            torch.testing.assert_close(grad, torch.from_numpy(case["grad" + "_skip" * skip]), atol=1e-6, rtol=0)


def clips_of(seed: int = 0, **settings) -> QueryClips:
    """Two people in each of three videos of 90 frames, who change their query numbers halfway."""
    rng = np.random.default_rng(seed)
    videos, detections = {}, {}
    for name in "abc":
        frames = np.repeat(np.arange(10, 90), 2)
        boxes = np.tile([[0, 0, 10, 10], [20, 0, 30, 10]], (80, 1)).astype(np.float32)
        looks = np.tile(rng.standard_normal((2, 8)), (80, 1)) + 0.1 * rng.standard_normal((160, 8))
        queries = looks.astype(np.float32)
        slots = np.where(frames < 50, np.tile([3, 7], 80), np.tile([7, 3], 80))
        tubes = [Tube(np.arange(10, 90), boxes[i::2], 0, person_id=i) for i in (0, 1)]
        videos[name] = Video(name, 100, 100, 100, tubes)
        detections[name] = SimpleNamespace(
            frames=frames, boxes=boxes, queries=queries.__getitem__, slots=slots, meta={"n_frames": 100}
        )

    def by_place(detections, frames, boxes):
        return np.arange(len(detections.frames))

    return QueryClips(videos, [detections.get], by_place, 8, 4, seed, **settings)


def test_identities_are_persons_or_query_numbers() -> None:
    persons, slots = clips_of(), clips_of(by_slot=True)
    for epoch in range(20):
        queries, ids = persons.pack([(epoch, 0), (epoch, 1)])
        again, by_slot = slots.pack([(epoch, 0), (epoch, 1)])
        np.testing.assert_array_equal(queries, again)
        assert set(ids) == set(by_slot) == {0, 1, 2, 3}
        np.testing.assert_array_equal(ids, np.repeat([[0, 1], [2, 3]], 8, axis=0).ravel())
        if not (ids == by_slot).all():  # a clip over the frame where they change
            return
    pytest.fail("no clip saw the change")


def test_a_clip_takes_each_frame_from_either_view() -> None:
    """As with queries of mirrored frames beside those of the frames as they are."""
    frames, boxes = np.repeat(np.arange(40), 2), np.zeros((80, 4), np.float32)
    tubes = [Tube(np.arange(40), boxes[i::2], 0, person_id=i) for i in (0, 1)]

    def view(number: int) -> SimpleNamespace:
        queries = np.stack([np.full(80, number), frames, np.tile([0, 1], 40)], 1).astype(np.float32)
        return SimpleNamespace(frames=frames, boxes=boxes, queries=queries.__getitem__, meta={"n_frames": 40})

    def match(detections: SimpleNamespace, frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return np.arange(80)

    videos = {"v": Video("v", 100, 100, 40, tubes)}
    clips = QueryClips(videos, [lambda _: view(0), lambda _: view(1)], match, 8, 4, seed=0)
    shares = []
    for epoch in range(20):
        queries, ids = clips.pack([(epoch, 0)])
        assert len(queries) == 16 and (ids == queries[:, 2]).all()
        of_frame = {frame: set(queries[queries[:, 1] == frame, 0].tolist()) for frame in queries[:, 1].tolist()}
        assert len(of_frame) == 8 and all(len(views) == 1 for views in of_frame.values())
        shares.append(queries[:, 0].mean())
    assert 0.3 < np.mean(shares) < 0.7 and np.std(shares) > 0


def test_whole_videos_reach_beyond_the_annotation() -> None:
    lengths = {len(clips_of(whole_videos=True).pack([(epoch, 0)])[1]) for epoch in range(60)}
    assert min(lengths) < 16 == max(lengths)
    assert {len(clips_of().pack([(epoch, 0)])[1]) for epoch in range(60)} == {16}


def test_exceeding_is_what_strict_comparison_says() -> None:
    assert (exceeding(0.9) <= FLOATS).tolist() == (np.float32(0.9) < FLOATS).tolist() == [False, True]


def test_held_out_metrics_are_those_of_a_slow_version() -> None:
    clips, criterion = clips_of(), NPairLoss()
    encoder = fill_state_dict(PersonEncoder(8, 8)).eval()
    metrics = held_out_metrics(encoder, criterion, clips, 2)
    losses, same, different = [], [], []
    for indices in ([0, 1], [2]):
        queries, ids = clips.pack([(0, i) for i in indices])
        features = torch.nn.functional.normalize(encoder(torch.from_numpy(queries)), dim=1).detach().numpy()
        losses.append(float(criterion(torch.from_numpy(features), torch.from_numpy(ids))))
        pairs = [
            (features[i] @ features[j], ids[i] == ids[j]) for i in range(len(ids)) for j in range(len(ids)) if i != j
        ]
        same.append(np.mean([s for s, alike in pairs if alike]))
        different.append(np.mean([s for s, alike in pairs if not alike]))
    assert metrics["val_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["val_similarity_same"] == pytest.approx(np.mean(same), abs=1e-5)
    assert metrics["val_similarity_different"] == pytest.approx(np.mean(different), abs=1e-5)
    assert {f"val_rank1@{gap}" for gap in GAPS} <= metrics.keys()
    assert all(0.9 < metrics[f"val_rank1@{gap}"] <= 1 for gap in GAPS)


def test_rank_1_counts_people_who_are_in_the_gallery() -> None:
    features, gallery = torch.eye(3), torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.2, 1.0], [0.0, 0.0, 1.0]])
    ids = torch.tensor([5, 6, 7])
    assert rank1(features, ids, gallery, torch.tensor([5, 6, 5])) == (2, 2)
    assert rank1(features, ids, gallery, torch.tensor([6, 5, 7])) == (1, 3)
    assert rank1(features, ids, gallery, torch.tensor([1, 2, 3])) == (0, 0)


def test_a_gap_compares_frames_that_far_apart() -> None:
    clips = clips_of()
    (anchors, ids), (later, later_ids) = clips.across([0, 2], 64, 0.5)
    assert len(anchors) == len(later) == 4 and (ids == later_ids).all() and len(set(ids.tolist())) == 4
    frames = np.arange(10, 90)
    start = np.intersect1d(frames, frames - 64)[8]
    video = clips.videos[2][2][0][0]
    np.testing.assert_array_equal(anchors[2:], video.queries(np.flatnonzero(video.frames == start)))
    np.testing.assert_array_equal(later[2:], video.queries(np.flatnonzero(video.frames == start + 64)))
    assert not len(clips.across([1], 80, 0.5)[0][1])
    twice = clips_of(clips_per_video=2).across([4, 5], 64, 0.5)  # two clips of one video
    assert (twice[0][1] == ids[2:]).all() and len(twice[0][0]) == 2


@pytest.mark.parametrize("size", ["320x240", "240x320"])
def test_square_frames_differ_from_the_published_ones_by_rounding_alone(shared: Path, size: str) -> None:
    folder = shared / "oracles" / "published"
    answer = json.loads((folder / "published_preprocess.json").read_text())[size]
    width, height = map(int, size.split("x"))
    y, x = np.mgrid[:height, :width]
    base = np.stack([(x // 2 + y) % 256, (2 * x + y // 3) % 256, (x * y // 64) % 256], -1)
    noise = np.random.RandomState(answer["random_state"]).randint(0, 256, (height, width, 3))
    picture = ((noise + 3 * base) // 4).astype(np.uint8)
    assert zlib.crc32(picture.tobytes()) == answer["picture_crc32"]

    small = resize(picture, 512)
    assert list(small.shape[1::-1]) == answer["resized_wh"]
    square = normalize(pad_square(torch.from_numpy(small).permute(2, 0, 1)[None]))[0].numpy()
    with np.load(folder / "published_preprocess.npz") as data:
        rows, columns = data[f"{size}/y"], data[f"{size}/x"]
        np.testing.assert_allclose(square[:, rows, columns].T, data[f"{size}/values"], atol=0.014)
        rw, rh = answer["resized_wh"]
        edge = square[:, max(rh - 4, 0) : rh + 4, max(rw - 4, 0) : rw + 4]
        np.testing.assert_allclose(edge, data[f"{size}/edge"], atol=0.014)
    side = max(width, height)
    boxes = normalise_boxes(np.array([answer["box_xyxy"]]), side, side)[0]
    np.testing.assert_allclose(boxes, answer["target_cxcywh"], atol=1e-6)
