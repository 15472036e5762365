"""Data annotated in key frames: what detector and person encoder are trained on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from datasets.annotations import Video, annotated_boxes
from datasets.config import load_project
from datasets.make_shards import encode_video
from datasets.query_clips import QueryClips, with_boxes_between
from datasets.track_batches import TrackBatches
from datasets.use_shards import ClipDataset
from eval_qmm import actions_of
from models.link_settings import tracks_sources
from tests.videos import gradient_frames, write_video
from train_action_head import classify, frame_losses
from utils.box_ops import Track, Tube
from utils.storage.files import write_sealed
from utils.storage.tars import write_tar

KEYS = np.array([2, 6, 10, 14, 18])


def video(keys: np.ndarray | None = KEYS) -> Video:
    """Person 1 in key frames 2, 6, 10 and 18, person 2 in 10 and 14; boxes move by a pixel a frame."""
    tubes = []
    for person, frames in ((1, np.array([2, 6, 10, 18])), (2, np.array([10, 14]))):
        left = frames + 20.0 * person - 20
        boxes = np.stack([left, np.zeros(len(frames)), left + 10, np.full(len(frames), 20.0)], 1)
        tubes += [Tube(frames, boxes, 0, person_id=person), Tube(frames, boxes, 1, person_id=person)]
    return Video("v", 64, 48, 24, tubes, keys)


def test_boxes_between_key_frames_lie_on_the_line() -> None:
    frames, boxes, persons = with_boxes_between(*annotated_boxes(video()), KEYS)
    shown = {1: [*range(2, 11), 18], 2: list(range(10, 15))}  # person 1 is not there in key frame 14
    assert [(f, p) for f, p in zip(frames, persons, strict=True)] == sorted((f, p) for p in shown for f in shown[p])
    assert boxes[:, 0].tolist() == (frames + 20 * persons - 20).tolist()


@pytest.mark.parametrize(("between", "whole"), [(False, False), (True, False), (True, True)])
def test_clips_of_queries_follow_people_over_key_frames(between: bool, whole: bool) -> None:
    queries = np.arange(24, dtype=np.float32)[:, None]  # one detection a frame, which says its frame
    boxes = np.stack([np.arange(24), np.zeros(24), np.arange(24) + 10, np.full(24, 20)], 1)
    meta = {"n_frames": 24, "made_from": {"source": [1, 2, 3]}}
    detections = SimpleNamespace(frames=np.arange(24), boxes=boxes, queries=lambda rows: queries[rows], meta=meta)

    def match(_: object, frames: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
        """The person whose box is just there, person 1."""
        found = np.full(24, -1)
        for i, (frame, box) in enumerate(zip(frames, gt_boxes, strict=True)):
            if np.allclose(box, boxes[frame]):
                found[frame] = i
        return found

    def clips_of(keys: np.ndarray) -> QueryClips:
        options = {"whole_videos": whole, "between": between}
        return QueryClips({"v": video(keys)}, [lambda _: detections], match, 3, 1, seed=0, **options)

    clips = clips_of(KEYS)
    assert clips_of(KEYS[1:]).checksum() != clips.checksum() == clips_of(KEYS).checksum()
    seen = {tuple(clips.pack([(epoch, 0)])[0].ravel().astype(int).tolist()) for epoch in range(200)}
    if between:
        at_the_start = {(2,), (2, 3)} if whole else set()
        assert seen == {(f, f + 1, f + 2) for f in range(2, 9)} | {(9, 10), (10,), (), (18,)} | at_the_start
    else:
        assert seen == {(2, 6, 10), (6, 10), (10, 18)}


def test_frames_between_key_frames_teach_no_action(tmp_path: Path) -> None:
    """What is done there is not annotated; the head learns neither "no action" nor anything else from them."""
    boxes = np.stack([np.arange(24), np.zeros(24), np.arange(24) + 10, np.full(24, 20)], 1)
    track, away = Track(np.arange(24), boxes, np.ones(24)), Track(np.arange(14, 18), boxes[14:18] + 99, np.ones(4))
    project = load_project("synthetic", tmp_path)
    labels = actions_of([track, away], video(), project, 0.5)
    assert labels[KEYS].tolist() == [0, 0, 0, 8, 0] and labels[24:].tolist() == [8, -1, -1, -1]
    assert set(labels[np.setdiff1d(np.arange(24), KEYS)]) == {-1}
    assert set(actions_of([track], video(None), project, 0.5).tolist()) == {0, 8}

    videos = SimpleNamespace(sources=lambda: {"v": [1, 2, 3]}, bad={})
    sources = [tracks_sources(project, videos, {"v": video(keys)})["v"] for keys in (KEYS, KEYS[1:], None)]
    assert len({source[-1] for source in sources}) == 3  # other key frames, other labels

    known = [replace(track, labels=labels[:24]), replace(track, labels=np.full(24, -1))]
    (only,) = TrackBatches(known, seed=0).tracks
    logits, weight = torch.randn(1, 24, 9), torch.linspace(0.5, 1, 9)
    batch = {"queries": None, "times": None, "features": None, "labels": torch.from_numpy(only.labels)[None]}
    batch["padding"] = torch.zeros(1, 24, dtype=torch.bool)
    _, targets, counts = classify(lambda *_: logits, batch, torch.device("cpu"))
    losses, _, n = frame_losses(logits, targets, counts, weight)
    expected = cross_entropy(logits[0, KEYS], torch.from_numpy(labels[KEYS]), weight)
    assert n == 5 and float(losses) == pytest.approx(float(expected), rel=1e-5)


def test_clips_of_frames_are_key_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", gradient_frames(24))
    settings = {"image_size": 0, "quality": 95}
    for keys, expected in ((KEYS, set(KEYS.tolist())), (None, set(range(2, 19)))):
        meta, jpegs, _ = encode_video(video(keys), path, tmp_path / "spool", settings)
        write_tar(tmp_path / "shards" / "shard-0.tar", [(meta, jpegs)])
        write_sealed(tmp_path / "shards" / "index.json", {"shards": ["shard-0.tar"]})
        data = ClipDataset(tmp_path / "shards", jitter=(0, 0, 0, 0))
        packed = [data.pack([(epoch, 0)]) for epoch in range(200)]
        assert {int(p["frames"][0]) for p in packed} == expected
        clip = ClipDataset(tmp_path / "shards", 3, 2).pack([(0, 0)])
        if keys is not None:
            assert all(len(p["boxes"]) for p in packed)
            assert clip["frames"].tolist() == [2, 10, 18]
        write_tar(
            tmp_path / "shards" / "shard-0.tar",
            [(meta, jpegs), ({**meta, "name": "w", "key_frames": []}, jpegs)],
        )
        with_excluded = ClipDataset(tmp_path / "shards", whole_videos=False)
        assert [v.name for v in with_excluded.videos] == ["v"] and with_excluded.names == {"v", "w"}
        assert len(ClipDataset(tmp_path / "shards", whole_videos=True)) == 2
        still = ClipDataset(tmp_path / "shards", train=False, clips_per_video=4)
        assert {int(still.pack([(0, i)])["frames"][0]) for i in range(4)} <= expected
