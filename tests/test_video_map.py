"""Average precision against another evaluation's answers, a slower obvious version, and its properties."""

import numpy as np
import pytest

from tests.test_box_ops import obvious_iou, obvious_motion
from tests.tube_cases import coarse_case, jhmdb21_case, random_case, shuffled
from utils.box_ops import Tube
from utils.misc import InputError
from utils.video_map import average_precision, calc_frame_map, calc_motion_ap, calc_video_map, mean_ap

N = 4
THRESHOLDS = (0.2, 0.5, 0.75)
SEEDS = range(4)


def obvious_ap(correct: list[bool], n_gt: int, protocol: str) -> float:
    points, hits = [(0.0, 1.0)], 0
    for n, one in enumerate(correct, 1):
        hits += one
        points.append((hits / n_gt, hits / n))
    area = 0.0
    for k in range(1, len(points)):
        width = points[k][0] - points[k - 1][0]
        if protocol == "voc":
            area += width * max(precision for _, precision in points[k:])
        else:
            area += width * (points[k][1] + points[k - 1][1]) / 2
    return area


def by_score(detections: list[tuple[str, Tube]]) -> list[tuple[str, Tube]]:
    def key(one):
        video, tube = one
        return -tube.score, video, tube.frames[0], len(tube), tube.frames.tobytes(), tube.boxes.tobytes()

    return sorted(detections, key=key)


def pixel_iou(a: Tube, b: Tube, protocol: str) -> float:
    wider = np.array([0, 0, 1, 1]) if protocol == "act" else np.zeros(4)
    of_a = dict(zip(a.frames.tolist(), a.boxes.astype(float) + wider, strict=True))
    of_b = dict(zip(b.frames.tolist(), b.boxes.astype(float) + wider, strict=True))
    return sum(obvious_iou(of_a[f], of_b[f]) for f in of_a.keys() & of_b.keys()) / len(of_a.keys() | of_b.keys())


def obvious_map(pred, gt, th, protocol, category=None) -> list[float]:
    """AP by class; of the ground target of one motion category, where one is given."""
    aps = []
    for label in range(N):
        left = {video: [tube for tube in tubes if tube.label == label] for video, tubes in gt.items()}
        everything = {video: list(tubes) for video, tubes in left.items()}
        n_gt = sum(category in (None, obvious_motion(tube)) for tubes in left.values() for tube in tubes)
        correct = []
        for video, tube in by_score([(v, t) for v, tubes in pred.items() for t in tubes if t.label == label]):
            ious = [pixel_iou(tube, target, protocol) for target in left.get(video, [])]
            if ious and max(ious) >= th:
                matched = left[video].pop(int(np.argmax(ious)))
                if category in (None, obvious_motion(matched)):
                    correct.append(True)
                continue
            near = [(pixel_iou(tube, target, protocol), n) for n, target in enumerate(everything.get(video, []))]
            if category and near and max(near)[0] >= th:
                best = max(near, key=lambda one: (one[0], -one[1]))[1]
                if obvious_motion(everything[video][best]) != category:
                    continue
            correct.append(False)
        aps.append(obvious_ap(correct, n_gt, protocol) if n_gt else np.nan)
    return aps


def frames_as_tubes(tubes: dict[str, list[Tube]]) -> dict[str, list[Tube]]:
    """Each frame of each video a video of its own."""
    out = {}
    for video, of_video in tubes.items():
        for tube in of_video:
            for frame, box in zip(tube.frames.tolist(), tube.boxes, strict=True):
                out.setdefault(f"{video} {frame:06d}", []).append(Tube([frame], [box], tube.label, tube.score))
    return out


@pytest.mark.parametrize("protocol", ["act", "voc"])
def test_equals_the_act_evaluation_on_jhmdb21(fixtures, protocol):
    pred, gt, recorded = jhmdb21_case(fixtures)
    ap = calc_video_map(pred, gt, 21, THRESHOLDS, protocol)
    for row, th in zip(ap, THRESHOLDS, strict=True):
        np.testing.assert_allclose(row, recorded[f"ap_{protocol}@{th}"], atol=1e-9)
    if protocol == "act":
        assert [round(mean_ap(row), 4) for row in ap] == [0.6743, 0.5151, 0.0516]


@pytest.mark.parametrize("dataset", ["jhmdb21", "ucf101-24"])
def test_equals_the_act_evaluation_on_the_annotations_themselves(shared, dataset):
    from datasets.annotations import read_annotations
    from datasets.config import load_project

    with np.load(shared / "oracles" / "video_map.npz") as file:
        recorded = {key.split("/")[1]: file[key] for key in file.files if key.startswith(dataset)}
    project = load_project(dataset, data_root=str(shared / "data"))
    gt = {name: video.tubes for name, video in read_annotations(project, recorded["gt_videos"].tolist()).items()}
    pred = {}
    boxes = np.split(recorded["pred_boxes"], recorded["pred_length"].cumsum()[:-1])
    for i, video in enumerate(recorded["pred_video"].tolist()):
        frames = recorded["pred_first_frame"][i] + np.arange(len(boxes[i]))
        pred.setdefault(video, []).append(
            Tube(frames, boxes[i], int(recorded["pred_label"][i]), recorded["pred_score"][i])
        )
    for protocol in ("act", "voc"):
        ap = calc_video_map(pred, gt, len(project.labels), THRESHOLDS, protocol)
        for row, th in zip(ap, THRESHOLDS, strict=True):
            np.testing.assert_allclose(row, recorded[f"ap_{protocol}@{th}"], atol=1e-9)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("protocol", ["voc", "act"])
@pytest.mark.parametrize("seed", SEEDS)
def test_is_the_obvious_greedy_matching(seed, protocol, tied):
    pred, gt = random_case(seed, N, tied)
    got = calc_video_map(pred, gt, N, THRESHOLDS, protocol)
    expected = [obvious_map(pred, gt, th, protocol) for th in THRESHOLDS]
    assert np.isnan(expected[0]).any()
    np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_array_equal(calc_video_map(pred, gt, N, 0.5, protocol), got[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_motion_ap_is_the_obvious_one(seed):
    pred, gt = random_case(seed, N)
    got = calc_motion_ap(pred, gt, N, THRESHOLDS)
    for category in ("small", "medium", "large"):
        expected = [obvious_map(pred, gt, th, "voc", category) for th in THRESHOLDS]
        np.testing.assert_allclose(got[category], expected, atol=1e-12)
        np.testing.assert_array_equal(calc_motion_ap(pred, gt, N, 0.2)[category], got[category][0])


@pytest.mark.parametrize("protocol", ["voc", "act"])
@pytest.mark.parametrize("seed", SEEDS)
def test_frame_map_is_the_video_map_of_single_frames(seed, protocol):
    pred, gt = random_case(seed, N)
    rs = np.random.RandomState(seed)
    scores = {video: [rs.rand(len(tube)) for tube in tubes] for video, tubes in pred.items()}
    rescored = {
        f"{video} {k} {n}": (video, Tube(tube.frames[n : n + 1], tube.boxes[n : n + 1], tube.label, score))
        for video, tubes in pred.items()
        for k, tube in enumerate(tubes)
        for n, score in enumerate(scores[video][k])
    }
    single = {}
    for video, tube in rescored.values():
        single.setdefault(f"{video} {tube.frames[0]:06d}", []).append(tube)
    got = calc_frame_map(pred, gt, N, THRESHOLDS, protocol, frame_scores=scores)
    expected = calc_video_map(single, frames_as_tubes(gt), N, THRESHOLDS, protocol)
    assert (np.nan_to_num(expected) > 0).any()
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_frame_map_with_the_scores_of_tubes():
    pred, gt = random_case(0, N)
    same = {video: [np.full(len(tube), tube.score) for tube in tubes] for video, tubes in pred.items()}
    np.testing.assert_array_equal(calc_frame_map(pred, gt, N), calc_frame_map(pred, gt, N, frame_scores=same))
    with pytest.raises(ValueError, match="frame_scores"):
        calc_frame_map(pred, gt, N, frame_scores={video: [scores[:-1] for scores in same[video]] for video in same})


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_of_equal_scores_count_alike_whether_they_are_linked_or_not(seed):
    pred, gt = random_case(seed, N)
    rs = np.random.RandomState(seed)
    scores = {video: [rs.rand(len(tube)).round(1) for tube in tubes] for video, tubes in pred.items()}
    single = {
        video: [
            Tube([frame], [box], tube.label, score)
            for tube, of_tube in zip(tubes, scores[video], strict=True)
            for frame, box, score in zip(tube.frames, tube.boxes, of_tube, strict=True)
        ]
        for video, tubes in pred.items()
    }
    got = calc_frame_map(pred, gt, N, THRESHOLDS, frame_scores=scores)
    np.testing.assert_array_equal(got, calc_frame_map(single, gt, N, THRESHOLDS))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_shuffling_predictions_changes_nothing(seed, tied):
    pred, gt = random_case(seed, N, tied)
    other = shuffled(pred, seed)
    for metric in (calc_video_map, calc_frame_map):
        np.testing.assert_array_equal(metric(pred, gt, N, 0.3), metric(other, gt, N, 0.3))
    once, again = calc_motion_ap(pred, gt, N, 0.3), calc_motion_ap(other, gt, N, 0.3)
    for category in once:
        np.testing.assert_array_equal(once[category], again[category])


def test_order_of_ground_truth_that_overlaps_equally_changes_nothing():
    for seed in range(200):
        pred, gt = coarse_case(seed)
        for metric in (calc_video_map, calc_frame_map):
            once, again = (metric(pred, of_gt, 3, (0.1, 0.3)) for of_gt in (gt, shuffled(gt, seed)))
            np.testing.assert_array_equal(once, again, str(seed))


def test_counting_duplicates_is_the_published_evaluation(fixtures):
    pred, gt, _ = jhmdb21_case(fixtures)
    assert mean_ap(calc_video_map(pred, gt, 21, 0.2, "act", count_duplicates=True)) == pytest.approx(0.79, abs=0.005)
    a, b, far = (Tube([0, 1], np.array([[x, 0, x + 10, 10]] * 2), 0, s) for x, s in ((0, 0.9), (1, 0.8), (50, 0.7)))
    assert calc_video_map({"v": [a, b, far]}, {"v": [a]}, 1, count_duplicates=True)[0] == 2  # found twice over
    once = {"v": [b, far]}, {"v": [a, far]}  # without duplicates both ways agree
    assert calc_video_map(*once, 1, count_duplicates=True) == calc_video_map(*once, 1)


@pytest.mark.parametrize("protocol", ["voc", "act"])
def test_a_duplicate_never_raises_ap(fixtures, protocol):
    pred, gt, _ = jhmdb21_case(fixtures)
    before = calc_video_map(pred, gt, 21, THRESHOLDS, protocol)
    rs = np.random.RandomState(0)
    for _ in range(5):
        chosen = {video: [tube for tube in tubes if rs.rand() < 0.3] for video, tubes in pred.items()}
        twice = {video: [*tubes, *chosen[video]] for video, tubes in pred.items()}
        after = calc_video_map(twice, gt, 21, THRESHOLDS, protocol)
        assert (after <= before + 1e-12).all()
        assert after.sum() < before.sum()


@pytest.mark.parametrize("protocol", ["voc", "act"])
def test_perfect_predictions_give_one(protocol):
    gt = random_case(2, N)[1]
    for metric in (calc_video_map, calc_frame_map):
        ap = metric(gt, gt, N, (0.5, 1.0), protocol)
        assert mean_ap(ap[0]) == mean_ap(ap[1]) == 1
        assert np.isnan(ap[:, N - 1]).all()
    for ap in calc_motion_ap(gt, gt, N, 0.5, protocol).values():
        assert mean_ap(ap) == 1


def test_people_without_an_action_do_not_count():
    tube = Tube([0], [[0, 0, 9, 9]], 0)
    nobody = Tube([0], [[50, 50, 60, 60]], -1)
    for metric in (calc_video_map, calc_frame_map):
        assert metric({"v": [tube]}, {"v": [tube, nobody]}, 1)[0] == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", ["voc", "act"])
def test_nothing_predicted_and_nothing_annotated(protocol):
    tube = Tube([0], [[0, 0, 9, 9]], 0)
    for metric in (calc_video_map, calc_frame_map):
        assert np.isnan(metric({}, {}, 3, protocol=protocol)).all()
        assert np.isnan(metric({"v": [tube]}, {"v": []}, 3, protocol=protocol)).all()
        np.testing.assert_array_equal(metric({}, {"v": [tube]}, 2, protocol=protocol), [0, np.nan])
    assert np.isnan(mean_ap(np.full(3, np.nan)))
    assert mean_ap(np.array([1, np.nan, 0.5])) == 0.75
    for ap in calc_motion_ap({"v": [tube]}, {}, 3, protocol=protocol).values():
        assert np.isnan(ap).all()
    assert average_precision(np.zeros(0, bool), 2, protocol) == 0


def test_invalid_input_raises():
    tube = Tube([0], [[0, 0, 9, 9]], 0)
    for pred, options, message in (
        ({"v": [Tube([0], [[0, 0, 9, 9]], 2)]}, {}, "'v'.*label 2"),
        ({"v": [Tube([0], [[0, 0, 9, 9]])]}, {}, "'v'.*label -1"),
        ({"v": [Tube([0], [[0, 0, 9, 9]], 0, np.nan)]}, {}, "'v'.*score"),
        ({"v": [Tube([5], [[0, 0, np.inf, 9]], 0)]}, {}, "'v'.*frame 5"),
        ({}, {"tiou_th": 0}, "threshold 0"),
        ({}, {"tiou_th": (0.5, 1.5)}, "threshold 1.5"),
        ({}, {"tiou_th": ()}, "threshold"),
        ({}, {"protocol": "coco"}, "coco"),
    ):
        with pytest.raises(InputError, match=message):
            calc_video_map(pred, {"v": [tube]}, 2, **options)


def test_frames_far_apart_need_no_memory():
    thin = Tube([0, 10**12], [[0, 0, 9, 9]] * 2, 0)
    half = Tube([10**12], [[0, 0, 9, 9]], 0)
    assert calc_video_map({"v": [half]}, {"v": [thin]}, 1, 0.5)[0] == 1
    assert calc_video_map({"v": [half]}, {"v": [thin]}, 1, 0.51)[0] == 0
