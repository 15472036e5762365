"""Files of predictions, in every format."""

import json
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from datasets.predictions import FORMATS, USER_OPTIONS, convert, recognise
from tests.conftest import SHARED
from tests.test_predictions import LABELS, SIZE
from utils.misc import InputError

OWN = Path(__file__).parent / "fixtures" / "predictions"


def cases(malformed: bool) -> list:
    """Files of other tools with their right tubes, or with the complaint that is due: ours, and those beside us."""
    found = {
        f"{p.parts[-3]}/{p.parts[-2]}": p.parent
        for root in (SHARED / "cases" / "formats", OWN)
        for p in root.glob("pred_*/*/case.json")
    }
    about = {name: json.loads((path / "case.json").read_text()) for name, path in found.items()}
    return [pytest.param(found[name], id=name) for name in sorted(found) if ("complaint" in about[name]) == malformed]


def test_boxes_of_mot_without_a_track_are_not_linked(tmp_path):
    lines = [f"{frame},-1,{x},10,20,40,0.9,1,-1,-1\n" for frame, x in ((1, 10), (2, 200), (2, 50))]
    (tmp_path / "v.txt").write_text("".join(lines) + "1,0,0,0,9,9,0.5,1\n2,0,0,0,9,9,0.5,1\n")
    tubes = convert("mot", tmp_path / "v.txt", {"names": ["walk"]})["videos"]["v"]["tubes"]
    assert sorted(tube["frames"] for tube in tubes) == [[0], [0, 1], [1], [1]]


def by_content(tube: dict) -> tuple:
    return tube["video"], tube["label"], tube["frames"], tube["boxes"]


@pytest.mark.parametrize("case", cases(False))
def test_every_format_gives_the_right_tubes(case):
    about = json.loads((case / "case.json").read_text())
    name = about["format"].removeprefix("pred_")
    got = convert(name, case / about["input"], about["options"])["videos"]
    got = sorted(({"video": v, **tube} for v, c in got.items() for tube in c["tubes"]), key=by_content)
    expected = sorted(json.loads((case / "expected.json").read_text()), key=by_content)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a["video"], a["label"], a["frames"]) == (b["video"], b["label"], b["frames"])
        np.testing.assert_allclose(a["boxes"], b["boxes"], atol=0.02)
        np.testing.assert_allclose([a["score"], *a["scores"]], [b["score"], *b["scores"]], atol=1e-6)
    assert recognise(case / about["input"]) == name


@pytest.mark.parametrize("case", cases(True))
def test_a_malformed_file_is_one_line(case):
    about = json.loads((case / "case.json").read_text())
    with pytest.raises(InputError) as error:
        convert(about["format"].removeprefix("pred_"), case / about["input"], about["options"])
    assert "\n" not in str(error.value)
    said = str(error.value).replace("refused as a file of predictions: it ", "")
    assert about["complaint"].removesuffix("; refused") in said


def test_the_line_at_fault_is_named_after_blank_ones(tmp_path):
    (tmp_path / "v_00001.txt").write_text("\n1 0.5 0 0 9 9\n\n7 0.5 0 0 9 9\n")
    with pytest.raises(InputError, match=r"v_00001.txt, line 4: class 7, but there are 4 classes"):
        convert("yowo", tmp_path, {"videos": ["v"], "labels": LABELS})
    (tmp_path / "ava.csv").write_text("v,900,0,0,1,1,1,0.5\n\nv,900,0,0,1,1,5,0.5\n")
    with pytest.raises(InputError, match=r"ava.csv: line 3: class 5, but there are 4 classes"):
        convert("ava_csv", tmp_path / "ava.csv", {"labels": LABELS, "sizes": {"v": SIZE}})
    with pytest.raises(InputError, match="cannot be read"):
        convert("ava_csv", tmp_path, {"labels": LABELS})


def test_two_videos_of_one_name_with_underscores_are_refused(tmp_path):
    (tmp_path / "a_b_00001.txt").write_text("1 0.5 0 0 9 9\n")
    for format in ("yowo", "tuber"):
        with pytest.raises(InputError, match="a/b and a_b have one name here, with _ for /"):
            convert(format, tmp_path, {"videos": ["a/b", "a_b"], "labels": LABELS, "sizes": {"a/b": SIZE, "a_b": SIZE}})


def test_every_format_says_which_options_it_has():
    assert {key for format in FORMATS.values() for key in format.defaults} <= USER_OPTIONS.keys()


def damaged(data: bytes, rs: random.Random) -> bytes:
    at, kind = rs.randrange(len(data)), rs.randrange(4)
    new = rs.choice([b"nan", b"-1", b"1e400", b",", b"\n", b"\0", b"9" * 20]) if kind < 2 else b""
    return data[:at] + new + (b"" if kind == 3 else data[at + kind :])


@pytest.mark.filterwarnings("error")
def test_a_damaged_file_is_one_line_or_read(tmp_path):
    rs = random.Random(0)
    for case in sorted(OWN.glob("*/*/case.json")):
        about = json.loads(case.read_text())
        copy = shutil.copytree(case.parent, tmp_path / case.parts[-3] / case.parts[-2]) / about["input"]
        files = [file for file in (copy, *copy.rglob("*")) if file.is_file() and file.stat().st_size]
        for _ in range(20 * bool(files)):
            file = rs.choice(files)
            whole = file.read_bytes()
            file.write_bytes(damaged(whole, rs))
            name = about["format"].removeprefix("pred_")
            for read in (partial(convert, name, copy, about["options"]), partial(recognise, copy)):
                try:
                    read()
                except InputError as error:
                    assert "\n" not in str(error)
            file.write_bytes(whole)
