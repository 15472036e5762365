"""Precision and recall of tracks against a slower obvious version, and cases by hand."""

import numpy as np
import pytest

from tests.test_box_ops import obvious_motion, obvious_tube_iou
from tests.tube_cases import coarse_case, random_case, shuffled
from utils.box_ops import Tube
from utils.metrics.tube_recall import tube_precision_recall
from utils.misc import InputError

BOX = [0, 0, 10, 10]
N = 4


def still(first: int, last: int, label: int = -1, person_id: int = -1, box=BOX) -> Tube:
    frames = np.arange(first, last)
    return Tube(frames, [box] * len(frames), label, person_id=person_id)


def rates(pred, gt, **options):
    result = tube_precision_recall({"v": pred}, {"v": gt}, **options)[0]
    return result["recall"], result["precision"]


def obvious(pred, gt, th, label_centric, frame_iou):
    """The accepted (video, prediction, ground truth) at one threshold."""
    accepted = []
    for video in {*pred, *gt}:
        pairs = [
            (obvious_tube_iou(p, g, label_centric, (frame_iou is not None, frame_iou)), -i, -j)
            for i, p in enumerate(pred.get(video, []))
            for j, g in enumerate(gt.get(video, []))
        ]
        for iou, i, j in sorted(pairs, reverse=True):
            covered = [gt[video][g] for v, p, g in accepted if (v, p) == (video, -i)]
            taken = any((v, g) == (video, -j) for v, _, g in accepted)
            clash = any(set(gt[video][-j].frames.tolist()) & set(other.frames.tolist()) for other in covered)
            if iou >= th and not taken and not clash:
                accepted.append((video, -i, -j))
    return accepted


@pytest.mark.parametrize("options", [(True, None), (False, None), (True, 0.4)])
@pytest.mark.parametrize("seed", range(5))
def test_is_the_obvious_greedy_pairing(seed, options):
    pred, gt = random_case(seed, N)
    thresholds = (0.2, 0.5, 0.8)
    results = tube_precision_recall(pred, gt, thresholds, *options, num_classes=N)
    n_pred, n_gt = (sum(map(len, side.values())) for side in (pred, gt))
    for th, result in zip(thresholds, results, strict=True):
        accepted = obvious(pred, gt, th, *options)
        if options[1] is None:  # IoUs of 1 tie, and who then comes first may change the count of others
            assert result["recall"] == pytest.approx(len(accepted) / n_gt)
            assert result["precision"] == pytest.approx(len({one[:2] for one in accepted}) / n_pred)
            matched = [gt[v][j] for v, _, j in accepted]
            every = [tube for tubes in gt.values() for tube in tubes]
            for label in range(N):
                total = sum(tube.label == label for tube in every)
                expected = sum(tube.label == label for tube in matched) / total if total else np.nan
                np.testing.assert_allclose(result["class_recall"][label], expected)
            for name, value in result["motion_recall"].items():
                total = sum(obvious_motion(tube) == name for tube in every)
                expected = sum(obvious_motion(tube) == name for tube in matched) / total if total else np.nan
                np.testing.assert_allclose(value, expected)
        alone = tube_precision_recall(pred, gt, th, *options, num_classes=N)[0]
        assert alone["recall"] == result["recall"] and alone["precision"] == result["precision"]


def test_order_of_predictions_does_not_matter():
    for seed in range(5):
        pred, gt = random_case(seed, N)
        turned = {name: tubes[::-1] for name, tubes in reversed(pred.items())}
        for frame_iou in (None, 0.3):
            one, two = (tube_precision_recall(x, gt, 0.3, True, frame_iou, N)[0] for x in (pred, turned))
            for key in ("recall", "precision", "class_recall", "class_precision"):
                np.testing.assert_array_equal(one[key], two[key])
            assert str(one["motion_precision"]) == str(two["motion_precision"])


def test_no_order_matters_where_overlaps_repeat():
    for seed in range(150):
        pred, gt = coarse_case(seed)
        both = (pred, gt), (shuffled(pred, seed), shuffled(gt, seed))
        one, two = (tube_precision_recall(*case, 0.1, num_classes=3)[0] for case in both)
        assert str(one) == str(two), seed


def test_two_actions_of_one_person_at_once_are_one_region():
    assert rates([still(0, 10)], [still(0, 10, 0, 7), still(0, 10, 1, 7)]) == (1, 1)
    assert rates([still(0, 10)], [still(0, 10, 0, 7), still(0, 10, 1, 8)]) == (0.5, 1)


def test_frame_iou_forgives_boxes_but_not_links():
    loose = [0, 0, 10, 20]
    assert rates([still(0, 10, box=loose)], [still(0, 10)], tiou_th=0.9) == (0, 0)
    assert rates([still(0, 10, box=loose)], [still(0, 10)], tiou_th=0.9, frame_iou=0.4) == (1, 1)
    assert rates([still(0, 5, box=loose)], [still(0, 10)], tiou_th=0.9, frame_iou=0.4) == (0, 0)


def test_precision_by_class_counts_what_belongs_there():
    far = [500, 500, 510, 510]
    gt = {"v": [still(0, 10, 0), still(0, 10, 1, box=[100, 0, 110, 10])], "w": [still(0, 10, 2)]}
    pred = {"v": [still(0, 10), still(0, 10), still(0, 10, box=far)], "w": [still(0, 10)]}
    result = tube_precision_recall(pred, gt, 0.5, num_classes=4)[0]
    np.testing.assert_allclose(result["class_recall"], [1, 0, 1, np.nan])
    np.testing.assert_allclose(result["class_precision"], [1 / 3, 0, 1, np.nan])
    assert (result["recall"], result["precision"]) == (2 / 3, 0.5)
    assert result["motion_precision"]["small"] == 0.5
    assert np.isnan(result["motion_precision"]["large"])


def test_perfect_predictions():
    gt = random_case(1, N)[1]
    for result in tube_precision_recall(gt, gt, (0.5, 1.0), num_classes=N):
        assert (result["recall"], result["precision"]) == (1, 1)
        assert np.nanmin(result["class_precision"]) == 1


@pytest.mark.filterwarnings("error")
def test_nothing_predicted_and_nothing_annotated():
    recall, precision = rates([], [still(0, 5)])
    assert recall == 0 and np.isnan(precision)
    recall, precision = rates([still(0, 5)], [])
    assert np.isnan(recall) and precision == 0
    for result in tube_precision_recall({}, {}, (0.2, 0.5), num_classes=2):
        assert np.isnan([result["recall"], result["precision"], *result["class_recall"]]).all()
    with pytest.raises(InputError, match="threshold 2"):
        tube_precision_recall({}, {}, 2)


def test_precision_of_classes_does_not_depend_on_the_order_of_a_person_s_actions() -> None:
    """A second track of a person who does two things is a false positive of both."""
    frames, box = range(10), [[0, 0, 10, 20]]
    walk, wave = (Tube(frames, box * 10, label, person_id=0) for label in (0, 1))
    tracks = [Tube(frames, box * 10), Tube(frames, [[0, 0, 10, 19]] * 10)]
    for gt in ([walk, wave], [wave, walk]):
        (rates,) = tube_precision_recall({"v": tracks}, {"v": gt}, [0.5], num_classes=2)
        assert rates["class_precision"].tolist() == [0.5, 0.5] and rates["precision"] == 0.5
