"""Linking: the rule against loops over pairs and against the published code's answers, whole videos and streams."""

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.link_cues import (
    Video,
    identities,
    mended,
    second_numbers,
    tracks_of,
    true_tracks,
    with_missing_boxes,
)
from benchmarks.linking import link_by_loops, same_rows, wandering_people
from models.link_settings import LinkSettings
from models.linkers import (
    LINKERS,
    LinkOptions,
    distinct_detections,
    greedy_assignment,
    hungarian_assignment,
    join_tracks,
    second_detections,
)
from models.tube import LINK_CUES, LinkCue, Linker, link
from utils.box_ops import Track, Tube
from utils.misc import InputError


@pytest.mark.parametrize("cue", LINK_CUES)
@pytest.mark.parametrize("sim_th", [-1.0, 0.2, 0.6])
def test_linking_is_its_definition(cue: str, sim_th: float) -> None:
    for seed in range(3):
        detections = wandering_people(60, 4, 8, 0.5, seed)
        keep = (detections.frames < 20) | (detections.frames > 20 + 5 * seed)  # nobody for a while
        frames, scores, boxes, features = (part[keep] for part in detections[:4])
        expected = link_by_loops(frames, features if cue == "feature" else boxes, sim_th, cue, end=3)
        tracks = link(frames, boxes, scores, features if cue == "feature" else None, sim_th, 3, cue)
        assert same_rows(tracks, expected)
        assert [track.rows[0] for track in tracks] == sorted(track.rows[0] for track in tracks)
        assert [track.person_id for track in tracks] == list(range(len(tracks)))
        for track in tracks:
            assert (track.frames == frames[track.rows]).all() and (track.boxes == boxes[track.rows]).all()
            assert (track.scores == scores[track.rows]).all()


@pytest.mark.parametrize("cue", LINK_CUES)
def test_linking_is_the_published_codes(fixtures: Path, cue: str) -> None:
    """Its K is one more than `end_consecutive_frames`, and its thresholds exclude their value."""
    arrays = np.load(fixtures / "published_linking.npz")
    entries = [e for e in json.loads((fixtures / "published_linking.json").read_text()) if e["link_cue"] == cue]
    assert entries
    for entry in entries:
        stream = entry["stream"]
        rows = np.flatnonzero((arrays["stream"] == stream) & (arrays["score"] > arrays["psn_score_th"][stream]))
        frames, slots, features = (arrays[name][rows] for name in ("frame", "slot", "features"))
        end = entry["end_consecutive_frames"] - 1
        tracks = link(frames, arrays["boxes"][rows], arrays["score"][rows], features, entry["sim_th"], end, cue)
        pairs = [[[int(frames[row]), int(slots[row])] for row in track.rows] for track in tracks]
        assert sorted(pairs) == sorted(entry["tubes"])


def test_a_stream_links_as_the_whole_video_does() -> None:
    frames, scores, boxes, features = wandering_people(80, 5, 8, 0.3)[:4]
    linker = Linker(0.2, 3)
    for edges in np.split(np.arange(len(frames)), np.searchsorted(frames, [1, 17, 40, 41])):
        linker.extend(frames[edges], boxes[edges], scores[edges], features[edges])
        current = linker.tracks_since(int(frames[edges[-1]]))
        assert sum(frames[edges[-1]] in track.frames for track in current) == (frames == frames[edges[-1]]).sum()
    whole = link(frames, boxes, scores, features, 0.2, 3)
    for one, other in zip(linker.finish(), whole, strict=True):
        assert (one.rows == other.rows).all() and one.person_id == other.person_id


def test_a_track_survives_as_many_frames_as_it_may() -> None:
    boxes, scores, features = np.ones((2, 4)), np.ones(2), np.ones((2, 3))
    assert len(link(np.array([0, 8]), boxes, scores, features, 0.5, 8)) == 1
    assert len(link(np.array([0, 9]), boxes, scores, features, 0.5, 8)) == 2


def test_a_similarity_of_the_threshold_links() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 20]], np.float32)
    assert len(link(np.array([0, 1]), boxes, np.ones(2), None, 0.5, link_cues="iou")) == 1
    assert len(link(np.array([0, 1]), boxes, np.ones(2), None, 0.500001, link_cues="iou")) == 2


def test_no_detections_give_no_tracks() -> None:
    assert link(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), np.zeros((0, 8)), 0.5) == []


def test_frames_that_decrease_and_unknown_cues_are_refused() -> None:
    with pytest.raises(ValueError, match="frame 0 after those of frame 1"):
        link(np.array([1, 0]), np.zeros((2, 4)), np.ones(2), np.ones((2, 3)), 0.5)
    with pytest.raises(ValueError, match="one of feature, iou, not 'colour'"):
        link(np.array([0]), np.zeros((1, 4)), np.ones(1), np.ones((1, 3)), 0.5, link_cues="colour")


def test_linking_remembers_little_more_than_the_numbers_themselves() -> None:
    frames, scores, boxes, features = wandering_people(3000, 5, 8, 0.0)[:4]
    tracemalloc.start()
    try:
        linker = Linker(-1.0)
        for frame in range(3000):
            rows = slice(5 * frame, 5 * frame + 5)
            linker.extend(frames[rows], boxes[rows], scores[rows], features[rows])
        tracks = linker.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(map(len, tracks)) == 15000
    assert peak / 15000 < 64  # bytes a detection; 36 are the numbers themselves


def test_every_setting_is_in_the_name() -> None:
    settings = LinkSettings(20, 0.9, 0.5, 8, 8, 0.2, "feature")
    changes = {"load_epoch": 2, "psn_score_th": 0.8, "sim_th": 0.4, "filter_length": 4}
    changes |= {"end_consecutive_frames": 3, "iou_th": 0.3, "link_cues": "iou", "linker": "robust", "strict": True}
    assert changes.keys() == vars(settings).keys()
    others = [LinkSettings(**vars(settings) | {name: value}) for name, value in changes.items()]
    assert len({settings.name, *(other.name for other in others)}) == len(changes) + 1


def test_the_published_options_are_the_published_rule() -> None:
    assert LINKERS["published"] == LinkOptions() == Linker(0.2).options  # those of `link`


def test_the_hungarian_assignment_is_the_best_of_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        similarity = random.uniform(-1, 1, (random.integers(1, 5), random.integers(1, 5)))
        pairs = hungarian_assignment(similarity, 0.1)
        assert all(similarity[pair] >= 0.1 for pair in pairs)
        n, m = similarity.shape
        best = max(
            sum(similarity[i, j] - 0.1 for i, j in enumerate(columns) if j >= 0)
            for columns in itertools.permutations([*range(m), *[-1] * n], n)
        )
        assert sum(similarity[pair] - 0.1 for pair in pairs) == pytest.approx(best)


def test_a_pair_on_a_hairs_difference_costs_greedy_another() -> None:
    similarity = np.array([[0.9, 0.89], [0.88, 0.2]])
    assert greedy_assignment(similarity, 0.5) == [(0, 0)]
    assert hungarian_assignment(similarity, 0.5) == [(0, 1), (1, 0)]


def test_a_similarity_that_is_no_number_stops_no_other_link() -> None:
    similarity = np.array([[np.nan, 0.9], [0.8, 0.1]])
    assert greedy_assignment(similarity, 0.5) == hungarian_assignment(similarity, 0.5) == [(0, 1), (1, 0)]


def test_a_newcomer_like_an_old_track_displaces_nobody() -> None:
    """Tracks of somebody who left and of somebody in sight: the latter keeps the track, although a link more could be
    made by giving the newcomer that one and the person in sight the other."""
    similarity = np.array([[0.44, 0.12], [0.87, 0.6]])
    assert hungarian_assignment(similarity, 0.4) == [(1, 0)]


def test_of_two_alike_and_overlapping_detections_the_weaker_goes() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 1, 10, 11], [50, 0, 60, 10], [0, 0, 10, 10]], float)
    similarity = np.array([[1, 0.9, 0.9, 0.1], [0.9, 1, 0.9, 0.1], [0.9, 0.9, 1, 0.1], [0.1, 0.1, 0.1, 1]])
    assert distinct_detections(similarity, boxes, np.array([0.8, 0.9, 0.8, 0.8]), (0.7, 0.3)) == [1, 2, 3]
    assert distinct_detections(similarity, boxes, np.array([0.9, 0.8, 0.8, 0.8]), (0.7, 0.3)) == [0, 2, 3]
    no_features = np.diag([1.0, 1, 0, 0])
    no_features[0, 1] = no_features[1, 0] = 0.9
    assert distinct_detections(no_features, boxes, np.array([0.8, 0.9, 0.8, 0.8]), (0.7, 0.3)) == [1, 2, 3]
    echo = second_detections(similarity[[0, 2, 3]][:, [1]], boxes[[0, 2, 3]], boxes[[1]], (0.4, 0.2))
    assert echo.tolist() == [True, False, False]


def test_the_mean_of_a_track_outweighs_one_odd_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detection between two people: by newest detection the wrong one is followed on, by the mean of eight not."""
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    features = np.array([a, b, a, b, 0.45 * a + 0.55 * b, b, a, b], np.float32)
    frames, boxes, scores = np.array([0, 0, 1, 1, 2, 3, 4, 4]), np.zeros((8, 4)), np.ones(8)

    def rows(options: LinkOptions) -> list[list[int]]:
        linker = Linker(0.4, 8, options=options)
        linker.extend(frames, boxes, scores, features)
        return sorted(track.rows.tolist() for track in linker.finish())

    assert [1, 3, 4, 5, 7] in rows(LinkOptions(memory=8))
    assert [0, 2, 6] in rows(LinkOptions(memory=8))
    own = LinkCue(lambda boxes, features: np.hstack([boxes, features]), lambda a, b: a @ b.T, "sim_th", True)
    monkeypatch.setitem(LINK_CUES, "own", own)
    for options, cue in itertools.product((LinkOptions(memory=8), LinkOptions(join=(0.5, 10))), ("iou", "own")):
        with pytest.raises(InputError, match=f"no mean {cue}"):
            Linker(0.3, 8, cue, options)


def piece(frames: range, person_id: int) -> Track:
    n = len(frames)
    return Track(np.array(frames), np.zeros((n, 4)), np.ones(n), np.arange(n) + 100 * person_id, person_id=person_id)


def test_pieces_of_one_person_are_joined_and_people_at_the_same_time_never() -> None:
    tracks = [piece(range(0, 10), 0), piece(range(5, 15), 1), piece(range(12, 20), 2), piece(range(18, 30), 3)]
    unit = np.array([[1, 0], [0.98, 0.2], [0.99, 0.1], [0.97, 0.24]])
    joined = join_tracks(tracks, unit * [[10], [10], [8], [12]], 0.5, 100)
    assert [track.person_id for track in joined] == [0, 1]
    assert joined[0].frames.tolist() == [*range(10), *range(12, 20)]
    assert joined[0].rows.tolist() == [*range(10), *range(200, 208)]
    assert joined[1].frames.tolist() == [*range(5, 15), *range(18, 30)]
    assert [len(join_tracks(tracks, unit, 0.5, gap)) for gap in (2, 3, 4)] == [4, 3, 2]
    assert join_tracks([], np.zeros((0, 2)), 0.5, 100) == []


def test_joining_is_its_definition() -> None:
    """Against a loop that computes every mean and every pair again after each join."""
    random = np.random.default_rng(0)
    for _ in range(20):
        starts = np.sort(random.integers(0, 200, 15))
        tracks = [piece(range(s, s + int(random.integers(1, 40))), i) for i, s in enumerate(starts.tolist())]
        sums = random.normal(size=(15, 3)) + 1
        groups = [[i] for i in range(15)]
        while True:
            pairs = []
            for a, b in itertools.combinations(groups, 2):
                gaps = [
                    max(tracks[i].frames[0], tracks[j].frames[0]) - min(tracks[i].frames[-1], tracks[j].frames[-1])
                    for i in a
                    for j in b
                ]
                one, other = sums[a].sum(0), sums[b].sum(0)
                cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
                if min(gaps) > 0 and min(gaps) <= 30 and cosine >= 0.6:
                    pairs.append((cosine, a, b))
            if not pairs:
                break
            _, a, b = max(pairs, key=lambda pair: pair[0])
            groups = [group for group in groups if group not in (a, b)] + [a + b]
        expected = sorted(sorted(row for i in group for row in tracks[i].rows.tolist()) for group in groups)
        assert sorted(sorted(track.rows.tolist()) for track in join_tracks(tracks, sums, 0.6, 30)) == expected


def test_joining_a_long_video_is_fast() -> None:
    random = np.random.default_rng(0)
    people = random.normal(size=(10, 64))
    tracks = [piece(range(20 * i, 20 * i + 15), 10 * i + k) for i in range(100) for k in range(10)]
    sums = np.stack([people[track.person_id % 10] + 0.2 * random.normal(size=64) for track in tracks])
    joined = join_tracks(tracks, sums, 0.5, 100)
    assert sorted(len(track) for track in joined) == [1500] * 10


def test_the_robust_linker_follows_a_person_detected_twice_under_one_number() -> None:
    frames, scores, boxes, features = wandering_people(80, 3, 16, 0.0, seed=1)[:4]
    twice = np.flatnonzero(frames == 40)[:1]
    order = np.argsort(np.concatenate([frames, frames[twice]]), kind="stable")
    columns = [np.concatenate([x, x[twice]])[order] for x in (frames, boxes + 0.0, scores, features)]
    linker = Linker(0.4, 12, options=LINKERS["robust"])
    linker.extend(*columns)
    assert len(linker.finish()) == 3


def test_an_exchange_in_plain_sight_counts_and_true_identities_mend_it() -> None:
    """Two people for six frames, who overlap in the third; numbers are exchanged there and in the fifth."""
    left = np.tile(np.float32([0, 0, 10, 20]), (6, 1))
    right = left + np.where(np.arange(6) == 2, 5, 30)[:, None] * np.float32([1, 0, 1, 0])
    gt = [Tube(np.arange(6), boxes, person_id=p) for p, boxes in enumerate((left, right))]
    frames, boxes = np.repeat(np.arange(6), 2), np.stack([left, right], 1).reshape(-1, 4)
    person, alone = identities(frames, boxes, gt)
    assert (person == np.tile([0, 1], 6)).all() and (alone == (frames != 2)).all()
    video = Video(frames, boxes, np.ones(12), np.ones((12, 2)), person, alone, gt)
    linked = tracks_of(video, np.where(np.isin(frames, (2, 4)), 1 - person, person))
    assert second_numbers(video, linked) == 2  # one for each of the two, in frames 3 to 5
    assert [track.rows.tolist() for track in true_tracks(video)] == [[*range(0, 12, 2)], [*range(1, 12, 2)]]
    apart = mended(video, linked, alone)
    assert second_numbers(video, apart) == 0 and (apart[0].rows == [0, 2, 5, 6, 8, 10]).all()
    assert (mended(video, linked, ~alone)[0].rows == [0, 2, 4, 6, 9, 10]).all()
    missing = video._replace(**{name: getattr(video, name)[frames != 2] for name in Video._fields[:-1]})
    assert len(with_missing_boxes(missing).frames) == 12 and len(with_missing_boxes(video).frames) == 12
