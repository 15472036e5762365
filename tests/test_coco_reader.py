"""COCO with videos: images that are every n-th frame."""

import json

import numpy as np
import pytest

from datasets import convert
from datasets.annotations import read_annotations
from datasets.config import load_project
from tests.format_cases import written_json
from utils.misc import InputError

FRAMES = [0, 30, 60, 90]


@pytest.mark.parametrize(("fields", "expected"), [({}, [*range(31), 90]), ({"fill": False}, [0, 30, 90])])
def test_images_in_steps_are_filled_for_training(tmp_path, fields, expected):
    images = [{"id": i, "video_id": 1, "frame_index": f, "frame_id": i} for i, f in enumerate(FRAMES)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "track_id": 5, "bbox": [10 + f, 0, 20, 40]}
        for i, f in enumerate(FRAMES)
        if f != 60
    ]
    content = {"videos": [{"id": 1, "name": "v"}], "categories": [{"id": 1, "name": "walk"}], "images": images}
    (tmp_path / "ann.json").write_text(json.dumps({**content, "annotations": boxes}))
    (tmp_path / "val.txt").write_text("v")
    about = {"name": "own", "format": "coco", "annotations": "ann.json", "frames": "{name}.mp4", **fields}
    (tmp_path / "own.yml").write_text(json.dumps({**about, "splits": {"val": "val.txt"}}))
    (tube,) = read_annotations(load_project(tmp_path / "own.yml"))["v"].tubes
    assert tube.frames.tolist() == expected
    np.testing.assert_allclose(tube.boxes[:, 0], 10 + tube.frames)


@pytest.mark.parametrize("track", ["ann", 5.0, 5])
def test_a_track_is_one_person_whatever_its_id_is_made_of(tmp_path, track):
    """Its tubes would else be strangers to each other, which a matcher is trained to tell apart."""
    content = {
        "videos": [{"id": 1, "name": "v"}],
        "categories": [{"id": 1, "name": "walk"}, {"id": 2, "name": "sit"}],
        "images": [{"id": i, "video_id": 1, "frame_id": i} for i in range(4)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i // 2, "track_id": track, "bbox": [0, 0, 9, 9]}
            for i in range(4)
        ],
    }
    (tmp_path / "ann.json").write_text(json.dumps(content))
    walk, sit = written_json(tmp_path / "ann.json", "coco", {}, tmp_path / "out.json")["videos"]["v"]["tubes"]
    assert (walk["label"], sit["label"]) == ("walk", "sit") and walk["person_id"] == sit["person_id"]


@pytest.mark.parametrize("key", ["frame_index", "frame_id"])
def test_a_huge_frame_is_refused_before_any_is_filled(tmp_path, key):
    content = {
        "videos": [{"id": 1, "name": "v"}],
        "categories": [{"id": 1, "name": "walk"}],
        "images": [{"id": i, "video_id": 1, key: i * 10**12} for i in range(3)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "track_id": 5, "bbox": [0, 0, 9, 9]} for i in range(3)
        ],
    }
    (tmp_path / "ann.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"image 1: 1000000000000 is no number of a video's frame"):
        convert.convert(tmp_path / "ann.json", "coco", {"fill": True}, tmp_path / "out.json")
