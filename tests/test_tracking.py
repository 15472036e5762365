"""Tracking metrics against the recorded answers of TrackEval (PyPI `trackeval`), and their properties."""

import json

import numpy as np
import pytest

from tests.tube_cases import coarse_case, shuffled
from utils.box_ops import Tube
from utils.metrics.tracking import tracking_metrics

SEEDS = range(8)


def make_case(seed: int) -> tuple[dict[str, list[Tube]], dict[str, list[Tube]]]:
    """People that cross, and tracks of them that break, swap, jitter, double and miss; several videos."""
    rs = np.random.RandomState(seed)
    pred, gt = {}, {}
    for v in range(rs.randint(2, 5)):
        name = f"v{v}"
        gt[name], pred[name] = [], []
        for _ in range(rs.randint(0 if v else 1, 6)):
            start, length = rs.randint(0, 30), rs.randint(1, 50)
            frames = np.arange(start, start + length)
            if rs.rand() < 0.3:
                frames = frames[(rs.rand(length) < 0.8) | (np.arange(length) == 0)]
            corner = rs.uniform(0, 60, 2) + np.outer(np.arange(len(frames)), rs.uniform(-2, 2, 2))
            boxes = np.concatenate([corner, corner + rs.uniform(30, 60, 2)], 1)
            gt[name].append(Tube(frames, boxes))
            for _ in range(rs.randint(0, 3)):
                noisy = boxes + rs.normal(0, rs.choice([1, 4, 9]), boxes.shape)
                cut = rs.randint(0, len(frames) + 1)
                for part in (slice(0, cut), slice(cut, None)):
                    if len(frames[part]):
                        pred[name].append(Tube(frames[part], noisy[part]))
        for k in range(len(pred[name]) - 1):  # swap the ends of tracks that are there together
            a, b = pred[name][k], pred[name][k + 1]
            if rs.rand() < 0.4 and len(a) > 2 and len(b) > 2:
                middle = int(np.median(np.append(a.frames, b.frames)))
                parts = [(t.frames < middle, t) for t in (a, b)]
                for n, ((early, one), (other, two)) in enumerate((parts, parts[::-1])):
                    frames = np.append(one.frames[early], two.frames[~other])
                    boxes = np.append(one.boxes[early], two.boxes[~other], 0)
                    pred[name][k + n] = Tube(frames, boxes)
    pred["only predicted"] = [Tube(np.arange(5), np.tile([0, 0, 9, 9], (5, 1)))]
    gt["only annotated"] = [Tube(np.arange(5), np.tile([0, 0, 9, 9], (5, 1)))]
    return pred, gt


@pytest.mark.parametrize("label_centric", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_recorded_answers_of_trackeval(seed, label_centric, fixtures):
    recorded = json.loads((fixtures / "tracking.json").read_text())[f"{seed} {label_centric}"]
    assert tracking_metrics(*make_case(seed), label_centric) == pytest.approx(recorded, abs=1e-6)


def test_perfect_tracks():
    _, gt = make_case(0)
    assert tracking_metrics(gt, gt) == pytest.approx({"IDF1": 1, "IDSW": 0, "HOTA": 1, "DetA": 1, "AssA": 1})


@pytest.mark.parametrize("label_centric", [True, False])
def test_no_order_matters_where_overlaps_repeat_and_a_person_has_several_tubes(label_centric):
    for seed in range(30):
        pred, gt = coarse_case(seed)
        again = tracking_metrics(shuffled(pred, seed), shuffled(gt, seed), label_centric)
        assert again == tracking_metrics(pred, gt, label_centric), seed


def test_tubes_of_one_person_are_one_track():
    boxes = np.tile([0.0, 0, 10, 10], (10, 1))
    gt = [Tube(np.arange(6), boxes[:6], person_id=3), Tube(np.arange(4, 10), boxes[4:], person_id=3)]
    perfect = {"IDF1": 1, "IDSW": 0, "HOTA": 1, "DetA": 1, "AssA": 1}
    assert tracking_metrics({"v": [Tube(np.arange(10), boxes)]}, {"v": gt}) == pytest.approx(perfect)


@pytest.mark.filterwarnings("error")
def test_nothing_to_compare():
    tube = Tube([0], [[0, 0, 1, 1]])
    for pred in ({}, {"v": []}, {"v": [tube]}):
        for gt in ({}, {"v": []}):
            got = tracking_metrics(pred, gt)
            assert got.pop("IDSW") == 0
            assert np.isnan(list(got.values())).all()
    zero = {"IDF1": 0, "IDSW": 0, "HOTA": 0, "DetA": 0, "AssA": 0}
    assert tracking_metrics({}, {"v": [tube]}) == zero
    assert tracking_metrics({"w": [tube]}, {"v": [tube]}, False) == zero
