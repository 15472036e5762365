"""Causes of error: cases with one kind of error alone, the ACT detector's kinds written out, and their sums."""

from dataclasses import replace

import numpy as np
import pytest

from tests.test_box_ops import obvious_iou
from tests.tube_cases import random_case
from utils.box_ops import Tube
from utils.metrics import errors as module
from utils.metrics.errors import CAUSES, act_errors, errors, print_errors
from utils.metrics.evaluation import Evaluation
from utils.video_map import calc_frame_map, calc_video_map, mean_ap

LABELS = ["a", "b", "c"]
FRAMES = np.arange(40)
ASIDE = np.array([12, 0, 12, 0])


def person(place: int, label: int, number: int) -> Tube:
    """Somebody of 20 x 50 pixels who walks to the right, in a lane of their own."""
    left = 10 + FRAMES
    boxes = np.stack([left, np.full(40, 60 * place), left + 20, np.full(40, 60 * place + 50)], 1)
    return Tube(FRAMES + 5, boxes, label, 0.5 + 0.01 * number, number)


@pytest.fixture
def gt() -> dict[str, list[Tube]]:
    """Six videos of three people; in each one action of each class."""
    return {f"v{v}": [person(place, (place + v) % 3, 3 * v + place) for place in range(3)] for v in range(6)}


def changed(gt: dict, change, every: int = 2) -> dict[str, list[Tube]]:
    """Perfect predictions, of every second video changed: `change(tubes of the video)`."""
    return {name: change(list(tubes)) if i % every == 0 else list(tubes) for i, (name, tubes) in enumerate(gt.items())}


def other_class(tubes):
    return [replace(tube, label=(tube.label + 1) % 3) for tube in tubes]


def one_other_class(tubes):
    return [replace(tubes[0], label=tubes[1].label), *tubes[1:]]


def looser(tubes):
    return [replace(tube, boxes=tube.boxes + ASIDE) for tube in tubes]


def shorter(tubes):
    return [replace(tube, frames=tube.frames[:15], boxes=tube.boxes[:15]) for tube in tubes]


def later(tubes):
    return [replace(tube, frames=tube.frames + 60, boxes=tube.boxes) for tube in tubes] + tubes


def longer(tubes):
    """Goes on for 60 frames where the person stopped."""
    frames, last = np.arange(100) + 5, np.full(60, -1)
    return [replace(t, frames=frames, boxes=np.concatenate([t.boxes, t.boxes[last]])) for t in tubes]


def torn(tubes):
    cuts = (slice(0, 14), slice(14, 27), slice(27, 40))
    return [
        replace(t, frames=t.frames[c], boxes=t.boxes[c], score=t.score - 0.1 * i)
        for t in tubes
        for i, c in enumerate(cuts)
    ]


def swapped(tubes):
    """Two people of one class exchange their numbers in the middle; the third is right."""
    a, b = (replace(tube, label=tubes[0].label) for tube in tubes[:2])
    cut = 20
    first, second = (np.concatenate([x.boxes[:cut], y.boxes[cut:]]) for x, y in ((a, b), (b, a)))
    return [replace(a, boxes=first), replace(b, boxes=second), tubes[2]]


def torn_late(tubes):
    """The first two thirds are found, the rest is a piece of its own: the person counts as found."""
    cuts = (slice(0, 28), slice(28, 40))
    return [
        replace(t, frames=t.frames[c], boxes=t.boxes[c], score=t.score + 0.2 * i)
        for t in tubes
        for i, c in enumerate(cuts)
    ]


def twice(tubes):
    return [*tubes, *(replace(tube, boxes=tube.boxes + 1, score=0.9) for tube in tubes)]


def elsewhere(tubes):
    return [*tubes, *(replace(tube, boxes=tube.boxes + 300, score=0.9) for tube in tubes)]


def both(tubes):
    """A second, loose tube of the wrong class."""
    wrong = [replace(t, boxes=t.boxes + ASIDE, label=(t.label + 1) % 3, score=0.9) for t in tubes]
    return [*tubes, *wrong]


def missed(tubes):
    return tubes[1:]


def all_to_one(gt: dict) -> dict:
    """The ground truth of `swapped`: the first two people of changed videos have the same class."""
    return {
        n: [t[0], replace(t[1], label=t[0].label), t[2]] if i % 2 == 0 else t for i, (n, t) in enumerate(gt.items())
    }


def summary(metric: str, pred: dict, gt: dict, threshold: float = 0.5, protocol: str = "voc") -> dict:
    (found,) = errors(metric, Evaluation(pred, gt, {}, LABELS, [threshold], protocol)).values()
    return found


@pytest.mark.parametrize("protocol", ["voc", "act", "multisports"])
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (other_class, "class"), (one_other_class, "class"), (looser, "box"), (shorter, "time"), (longer, "time"),
        (torn, "link"), (swapped, "link"), (torn_late, "link"), (twice, "duplicate"), (elsewhere, "background"),
        (both, "both"), (missed, "missed"),
    ],
)  # fmt: skip
def test_one_kind_of_error_alone_gets_all_of_it_in_tubes(gt, change, cause, protocol):
    gt = all_to_one(gt) if change is swapped else gt
    threshold = 0.75 if change is swapped else 0.5  # half of a tube is on each person
    found = summary("v-mAP", changed(gt, change), gt, threshold, protocol)
    assert found["mAP"] < 1 and found["all"] == 1
    gains = {name: row["gain"] for name, row in found["causes"].items()}
    assert gains.pop(cause) == pytest.approx(1 - found["mAP"])
    assert all(gain == pytest.approx(0, abs=1e-12) for gain in gains.values())
    assert {row["cause"] for row in found["list"]} == {cause}
    assert {row["video"] for row in found["worst_videos"]} == {"v0", "v2", "v4"}
    for row in found["worst_videos"]:
        mended = {name: gt[name] if name == row["video"] else tubes for name, tubes in changed(gt, change).items()}
        if cause in ("background", "both"):  # the scores of the others are those of perfect tubes
            after = mean_ap(calc_video_map(mended, gt, 3, 0.5, protocol))
            assert row["cost"] == pytest.approx(after - found["mAP"], abs=1e-12)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (other_class, "class"), (looser, "box"), (longer, "time"), (later, "time"), (twice, "duplicate"),
        (elsewhere, "box"), (both, "both"), (missed, "missed"), (shorter, "missed"), (torn, None),
    ],
)  # fmt: skip
def test_one_kind_of_error_alone_gets_all_of_it_in_frames(gt, change, cause):
    if change is elsewhere:  # a frame without anybody of the class: nothing to be loose about
        cause, gt = "background", {name: [t for t in tubes if t.label] for name, tubes in gt.items()}
        pred = {
            name: [*tubes, *(replace(t, boxes=t.boxes + 300, label=0, score=0.9) for t in tubes)]
            for name, tubes in gt.items()
        }
        gt = gt | {"other": [person(0, 0, 0)]}
        pred["other"] = gt["other"]
    else:
        pred = changed(gt, change)
    found = summary("frame-mAP", pred, gt)
    assert found["all"] == 1
    gains = {name: row["gain"] for name, row in found["causes"].items()}
    if cause:
        assert gains.pop(cause) == pytest.approx(1 - found["mAP"]) and found["mAP"] < 1
    assert all(gain == pytest.approx(0, abs=1e-12) for gain in gains.values())


@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("metric", ["v-mAP", "frame-mAP"])
def test_every_error_has_one_cause_and_all_mended_is_one(metric, threshold):
    for seed in range(8):
        pred, gt = random_case(seed, 4)
        for protocol in ("voc", "act", "multisports"):
            e = Evaluation(pred, gt, {}, list("abcd"), [threshold], protocol)
            (found,) = errors(metric, e).values()
            calc = calc_video_map if metric == "v-mAP" else calc_frame_map
            assert found["mAP"] == pytest.approx(mean_ap(calc(pred, gt, 4, threshold, protocol)), abs=1e-12)
            assert found["all"] == 1
            assert found["causes"].keys() == set(CAUSES)
            if metric == "v-mAP":
                wrong = [row for row in found["list"] if row["kind"] == "false positive"]
                assert len({(row["video"], row["tube"]) for row in wrong}) == len(wrong)
                counts = sum(row["count"] for name, row in found["causes"].items() if name != "missed")
                assert counts == len(wrong)


@pytest.mark.parametrize("metric", ["v-mAP", "frame-mAP"])
def test_of_one_video_alone_the_cost_is_all_that_is_missing(metric):
    """Also where its errors leave a class without any ground truth, which is perfect then."""
    for seed in range(4):
        pred, gt = random_case(seed, 3)
        gt = {"v": gt["only annotated"] + gt["v1"]}
        for predicted in ({"v": pred["v1"]}, {}):
            found = summary(metric, predicted, gt)
            (worst,) = found["worst_videos"]
            assert worst["cost"] == pytest.approx(1 - found["mAP"])


def obvious_act_errors(pred: dict, gt: dict, n_labels: int, threshold: float) -> dict[str, float]:
    """The kinds as the ACT detector's evaluation counts them, box by box; boxes have inclusive pixels."""
    wide = np.array([0, 0, 1, 1])
    annotated: dict = {}
    for video, tubes in gt.items():
        for tube in tubes:
            for frame, box in zip(tube.frames.tolist(), tube.boxes, strict=True):
                annotated.setdefault((video, frame), []).append((tube.label, box + wide))
    rows = []
    for label in range(n_labels):
        n_gt = sum(which == label for people in annotated.values() for which, _ in people)
        if not n_gt:
            continue
        free = {key: [box for which, box in people if which == label] for key, people in annotated.items()}
        boxes = [
            (tube.score, video, frame, box + wide)
            for video, tubes in pred.items()
            for tube in tubes
            if tube.label == label
            for frame, box in zip(tube.frames.tolist(), tube.boxes, strict=True)
        ]
        counts = dict.fromkeys(("AP", "E_L", "E_C", "E_T", "E_E"), 0)
        area, before = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0) | {"AP": 1.0}
        for n, (_, video, frame, box) in enumerate(sorted(boxes, key=lambda b: -b[0]), 1):
            here = annotated.get((video, frame), [])
            ious = [obvious_iou(box, other) for other in free.get((video, frame), [])]
            if ious and max(ious) >= threshold:
                free[video, frame].pop(int(np.argmax(ious)))
                kind = "AP"
            elif any(which == label for which, _ in here):
                kind = "E_L"
            elif here:
                kind = "E_C" if max(obvious_iou(box, other) for _, other in here) >= threshold else "E_E"
            else:
                kind = "E_T" if any(tube.label == label for tube in gt.get(video, [])) else "E_E"
            counts[kind] += 1
            for name, count in counts.items():
                if kind == "AP":
                    area[name] += (count / n + before[name]) / 2 / n_gt
                before[name] = count / n
        rows.append(area | {"E_M": 1 - counts["AP"] / n_gt})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def test_the_act_detectors_kinds_are_those_of_its_evaluation_and_add_up_to_one():
    for seed in range(4):
        pred, gt = random_case(seed, 4)
        rs = np.random.RandomState(seed)
        scored = {
            name: [replace(t, score=t.score + 1e-9 * i, frame_scores=rs.rand(len(t))) for i, t in enumerate(tubes)]
            for name, tubes in pred.items()
        }
        single = {
            name: [Tube(t.frames[[k]], t.boxes[[k]], t.label, t.frame_scores[k]) for t in tubes for k in range(len(t))]
            for name, tubes in scored.items()
        }
        got = act_errors(Evaluation(scored, gt, {}, list("abcd"), [0.5]), 0.5)
        expected = obvious_act_errors(single, gt, 4, 0.5)
        assert got == pytest.approx(expected, abs=1e-9)
        assert sum(got.values()) == pytest.approx(1)
        assert got["AP"] == pytest.approx(mean_ap(calc_frame_map(scored, gt, 4, 0.5, "act")))


def test_a_threshold_below_what_counts_as_found_has_its_duplicates(gt):
    def again(tubes):
        return [*tubes, *(replace(tube, boxes=tube.boxes + np.array([17.4, 0, 17.4, 0]), score=0.1) for tube in tubes)]

    found = summary("v-mAP", changed(gt, again), gt, 0.05)
    assert {row["cause"] for row in found["list"]} == {"duplicate"}
    found = summary("frame-mAP", changed(gt, again), gt, 0.05)
    assert {name for name, row in found["causes"].items() if row["count"]} == {"duplicate"}


def test_gaps_are_no_errors_of_time_where_spans_are_compared(gt):
    def with_gaps(tubes):  # half of the frames, IoU 0.48
        return [replace(t, frames=t.frames[::2], boxes=t.boxes[::2] + np.array([7, 0, 7, 0])) for t in tubes]

    found = summary("v-mAP", changed(gt, with_gaps), gt, 0.5, "multisports")
    assert {row["cause"] for row in found["list"]} == {"box"}


@pytest.mark.parametrize("metric", ["v-mAP", "frame-mAP"])
def test_the_order_of_a_persons_two_actions_does_not_matter(metric):
    """Somebody of whom one action is found, and one of whom none is; each with a detection of a wrong class."""
    pred, gt, swapped = {}, {}, {}
    for video, found in (("one", True), ("none", False)):
        gt[video] = [person(0, 0, 0), person(0, 1, 0)]
        swapped[video] = gt[video][::-1]
        pred[video] = [replace(person(0, 2, 0), score=0.9), *gt[video][: int(found)]]
    results = [summary(metric, pred, annotation) for annotation in (gt, swapped)]
    listed = [
        sorted((row["video"], row["kind"], row["label"], row["cause"]) for row in result.pop("list", ()))
        for result in results
    ]
    assert results[0] == results[1] and listed[0] == listed[1]
    n = 1 if metric == "v-mAP" else 40
    assert results[0]["causes"]["class"]["count"] == 2 * n
    assert results[0]["causes"]["missed"]["count"] == n  # where both are missed, one detection explains one of them
    if metric == "v-mAP":
        misses = [(video, label, cause) for video, kind, label, cause in listed[0] if kind == "miss"]
        assert misses == [("none", "a", "class"), ("none", "b", "missed"), ("one", "b", "class")]


def test_a_videos_cost_needs_only_the_classes_of_its_errors(gt, monkeypatch):
    pred = changed(gt, missed)  # of each second video one person
    calls = []
    counted = lambda *args: calls.append(args) or average_precision(*args)  # noqa: E731
    average_precision = module.average_precision
    monkeypatch.setattr(module, "average_precision", counted)
    found = summary("v-mAP", pred, gt)
    whole = 2 + len(CAUSES)  # nothing, each cause, and all of them mended
    assert len(calls) <= 3 * whole + 3 and len(found["worst_videos"]) == 3


def test_where_not_every_video_is_looked_at_it_is_said(gt, monkeypatch, capsys):
    found = summary("v-mAP", changed(gt, missed), gt)
    assert found["videos_with_errors"] == 3
    for looked_at, among in ((3, ""), (2, ", of the 2 with most errors")):
        monkeypatch.setattr(module, "N_EXAMINED", looked_at)
        print_errors({"v-mAP@0.5": found})
        assert f"videos whose errors cost most{among}: v" in capsys.readouterr().out


def test_nothing_predicted_is_all_missed(gt):
    found = summary("v-mAP", {}, gt)
    assert found["mAP"] == 0 and found["causes"]["missed"] == {"gain": 1.0, "count": 18}
    assert act_errors(Evaluation({}, gt, {}, LABELS, [0.5]), 0.5)["E_M"] == 1
