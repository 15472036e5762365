"""Linking: the rule against loops over pairs and against the published code's answers, whole videos and streams."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.linking import link_by_loops, same_rows, wandering_people
from models.link_settings import LinkSettings, settings_differences
from models.person_queries import Detections
from models.tube import LINK_CUES, Linker, link


@pytest.mark.parametrize("cue", LINK_CUES)
@pytest.mark.parametrize("sim_th", [-1.0, 0.2, 0.6])
def test_linking_is_its_definition(cue: str, sim_th: float) -> None:
    for seed in range(3):
        detections = wandering_people(60, 4, 8, 0.5, seed)
        keep = (detections.frames < 20) | (detections.frames > 20 + 5 * seed)  # nobody for a while
        frames, scores, boxes, features = Detections(*(part[keep] for part in detections))
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
    frames, scores, boxes, features = wandering_people(80, 5, 8, 0.3)
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
    frames, scores, boxes, features = wandering_people(3000, 5, 8, 0.0)
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


def test_every_setting_is_in_the_name_and_differences_are_named() -> None:
    settings = LinkSettings(20, 0.9, 0.5, 8, 8, 0.2, "feature")
    changes = {"load_epoch": 2, "psn_score_th": 0.8, "sim_th": 0.4, "filter_length": 4}
    changes |= {"end_consecutive_frames": 3, "iou_th": 0.3, "link_cues": "iou"}
    assert changes.keys() == vars(settings).keys()
    others = [LinkSettings(**vars(settings) | {name: value}) for name, value in changes.items()]
    assert len({settings.name, *(other.name for other in others)}) == len(changes) + 1
    assert settings_differences(vars(settings), vars(settings)) == ""
    differences = settings_differences(vars(settings), vars(settings) | {"sim_th": 0.4, "filter_length": 4})
    assert differences == "sim_th 0.5, here 0.4; filter_length 8, here 4"
