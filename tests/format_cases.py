"""Reading the cases of annotation formats, and comparing what comes out."""

import json
from pathlib import Path

import numpy as np

from datasets import convert

OWN = Path(__file__).parent / "fixtures" / "formats"


def described(folder: Path) -> tuple[dict, Path]:
    case = json.loads((folder / "case.json").read_text())
    return case, folder / case["input"]


def tubes_in(content: dict) -> dict[str, list[tuple]]:
    """The tubes of a JSON of ours, sorted: label, frames, boxes, and which others are of the same person."""
    videos = {}
    for name, video in content["videos"].items():
        people: dict[object, list] = {}
        for i, tube in enumerate(video["tubes"]):
            people.setdefault(tube.get("person_id", f"alone {i}"), []).append((str(tube["label"]), tube["frames"]))
        rows = [(str(t["label"]), t["frames"], sorted(people[t.get("person_id", f"alone {i}")]), t["boxes"])
                for i, t in enumerate(video["tubes"])]  # fmt: skip
        videos[name] = sorted(rows, key=lambda row: (row[:3], row[3][0]))
    return videos


def assert_same(got: dict, expected: dict, within: float = 0.02) -> None:
    a, b = tubes_in(got), tubes_in(expected)
    assert a.keys() == b.keys()
    for name in a:
        assert [row[:3] for row in a[name]] == [row[:3] for row in b[name]]
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_allclose(x[3], y[3], atol=within)


def written_json(path: Path, format: str, options: dict, target: Path) -> dict:
    convert.convert(path, format, options, target)
    return json.loads(target.read_text(encoding="utf-8"))
