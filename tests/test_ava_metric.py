"""The official figure of AVA: the answers of the official code, and of a loop that follows its rules row by row."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ava_map import loop_ap
from utils.ava_files import read_label_map, read_rows
from utils.metrics import ava
from utils.misc import InputError

SETS = ["real_sample", "edge_cases", "kinetics_style", "ties"]
MAP = 'item {\n  name: "a \\"b\\""\n  id: 1\n}\nlabel {\n    name: "c"\n    label_id: 3\n    label_type: OBJECT\n}\n'


def check(folder: Path, tmp_path: Path, shuffled: bool = False) -> int:
    """Compare every class of every version with `expected.json`; how many were compared."""
    compared = 0
    for version, expected in json.loads((folder / "expected.json").read_text()).items():
        if not version.startswith("official"):
            continue
        files = {kind: folder / name for kind, name in expected["inputs"].items()}
        if shuffled:
            random = np.random.default_rng(len(folder.name))
            for kind, path in files.items():
                lines = path.read_text().splitlines()
                files[kind] = tmp_path / f"{folder.name}-{kind}.csv"
                files[kind].write_text("".join(f"{lines[i]}\r\n" for i in random.permutation(len(lines))))
        rule = "2019" if "2019" in version else "2020"
        result = ava.evaluate_files(**files, label_map=folder / "labelmap.pbtxt", rule=rule)
        assert result["AP"].keys() == {int(number) for number in expected["classes"]}
        for number, values in expected["classes"].items():
            ap, compared = result["AP"][int(number)], compared + 1
            if values["ap"] is None:
                assert math.isnan(ap)
            elif "ap_range" in values:
                assert values["ap_range"][0] - 1e-9 <= ap <= values["ap_range"][1] + 1e-9
            else:
                assert ap == pytest.approx(values["ap"], abs=1e-9)
        if "mAP_range" not in expected:
            assert result["mAP"] == pytest.approx(expected["mAP@0.5IOU"], abs=1e-9)
    return compared


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_every_class_is_the_official_code_s(name: str, shuffled: bool, fixtures: Path, tmp_path: Path) -> None:
    assert check(fixtures / "ava" / name, tmp_path, shuffled) >= 5


@pytest.mark.parametrize("name", ["random_60", "mmaction2_sample"])
def test_every_class_of_the_large_sets(name: str, shared: Path, tmp_path: Path) -> None:
    assert check(shared / "oracles" / "ava" / name, tmp_path) >= 3


def test_equal_scores_give_one_figure_in_every_order(fixtures: Path, tmp_path: Path) -> None:
    folder = fixtures / "ava" / "ties"
    lines = {kind: (folder / f"{kind}.csv").read_text().splitlines() for kind in ("groundtruth", "detections")}
    figures = set()
    for seed in range(4):
        for kind, rows in lines.items():
            mixed = np.random.default_rng(seed).permutation(len(rows))
            (tmp_path / f"{kind}.csv").write_text("".join(f"{rows[i]}\n" for i in mixed))
        files = tmp_path / "groundtruth.csv", tmp_path / "detections.csv", folder / "labelmap.pbtxt"
        figures.add(repr(ava.evaluate_files(*files)))
    assert len(figures) == 1


def test_crowded_frames_agree_with_the_obvious_loop(tmp_path: Path) -> None:
    """More rows than the cap, boxes that several share, scores of two digits: as in few of the official sets."""
    random = np.random.default_rng(5)
    for kind, n, last in (("groundtruth", 400, "{:.0f}"), ("detections", 3000, "{:.2f}")):
        corner, size = random.integers(0, 6, (n, 2)) / 10, random.integers(0, 5, (n, 2)) / 10
        rows = [
            f"v{random.integers(3)},{random.integers(8)},{x:.1f},{y:.1f},{x + w:.1f},{y + h:.1f},"
            + f"{random.integers(1, 6)},{last.format(random.random())}"
            for (x, y), (w, h) in zip(corner, size, strict=True)
        ]
        (tmp_path / f"{kind}.csv").write_text("\n".join(rows))
    (tmp_path / "map.pbtxt").write_text("".join(f'item {{\n  name: "{i}"\n  id: {i}\n}}\n' for i in range(1, 5)))
    files = [tmp_path / name for name in ("groundtruth.csv", "detections.csv", "map.pbtxt")]
    expected = loop_ap(*files)
    assert 0 < min(expected.values()) < max(expected.values()) < 1
    assert ava.evaluate_files(*files)["AP"] == pytest.approx(expected, abs=1e-12)


def test_lines_are_read_alike_whether_plain_or_not(tmp_path: Path) -> None:
    plain = "a-_1,0902,0.1,0.25,.5,1.,12,0\nb,0903.5,0,0,1,0.987654321012345678,1,1\n"
    other = '"a-_1", 902.0,1e-1,0.25,0.5,1,12,0\r\n\r\nb,9035e-1,-0,0,1,0.987654321012345678,1,1'
    for text, name in ((plain, "plain.csv"), (other, "other.csv"), ("\ufeff" + plain, "bom.csv")):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    first, *others = (read_rows(tmp_path / name) for name in ("plain.csv", "other.csv", "bom.csv"))
    for rows in others:
        assert rows.videos == first.videos == ["a-_1", "b"]
        for column in ("video", "time", "boxes", "classes", "last"):
            np.testing.assert_array_equal(getattr(rows, column), getattr(first, column))
    assert others[0].lines.tolist() == [1, 3]
    assert first.boxes[1, 3] == float("0.987654321012345678")


def test_an_empty_field_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,0902,0.1,0.25,0.5,1,12,0\na,0902,0.1,0.25,0.5,1,,0\n")
    with pytest.raises(InputError, match=r"a.csv, line 2: '' is not a number"):
        read_rows(tmp_path / "a.csv")


def test_a_quote_that_nothing_ends_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"' + "a,0902,0.1,0.25,0.5,1,12,0\n" * 9999)
    with pytest.raises(InputError, match=r"a.csv, line \d+: field larger than"):
        read_rows(tmp_path / "a.csv")


def test_numbers_of_every_form_are_read_as_python_reads_them(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    forms = ("{:.3f}", "{:.15f}", "{!r}", "{:e}", "{:.0f}", "{:+.2f}")
    texts = [
        [forms[random.integers(6)].format(x) for x in row] for row in (10.0 ** random.uniform(-4, 3, (300, 5))).tolist()
    ]
    (tmp_path / "a.csv").write_text("".join(f"v,{','.join(row)},3,1e-3\n" for row in texts))
    rows = read_rows(tmp_path / "a.csv")
    np.testing.assert_array_equal(rows.boxes, [[float(text) for text in row[1:]] for row in texts])
    assert set(rows.last) == {1e-3}
    np.testing.assert_array_equal(rows.time, [round(float(row[0]) * 1e6) for row in texts])


def test_label_maps_of_both_syntaxes(tmp_path: Path) -> None:
    (tmp_path / "map.pbtxt").write_text(MAP)
    assert read_label_map(tmp_path / "map.pbtxt") == {1: 'a "b"', 3: "c"}


GT, DET = "v,0902,0.1,0.1,0.5,0.5,1,0\n", "v,0902,0.1,0.1,0.5,0.5,1,0.9\n"


@pytest.mark.parametrize(
    ("gt", "det", "label_map", "message"),
    [
        (
            "video,time,x1,y1,x2,y2,id,person\n" + GT,
            DET,
            MAP,
            r"gt.csv, line 1: 'time' is not a number \(a header line",
        ),
        (GT + "v,0903,0.1,0.1,0.5,0.5\n", DET, MAP, r"gt.csv, line 2: 6 columns, not 7 or 8"),
        (GT + "v,0903,0.1,0.1,0.5,0.5,1,anna\n", DET, MAP, r"gt.csv, line 2: 'anna' is not a number"),
        (GT + "v,0903,nan,0.1,0.5,0.5,1,0\n", DET, MAP, r"gt.csv, line 2: 'nan' is not a number"),
        (GT + "v,0903,0.5,0.1,0.1,0.5,1,0\n", DET, MAP, r"gt.csv, line 2: ground truth .* is reversed"),
        (GT, DET.replace(",1,", ",1.5,"), MAP, r"det.csv, line 1: class 1.5 is not a whole number"),
        ("v,0902,100,100,500,500,1,0\n", DET, MAP, r"gt.csv: boxes in pixels, but those of .*det.csv are shares"),
        (GT, DET.replace("v,", "v.mp4,"), MAP, r"det.csv: no video of .*'v.mp4'.*'v'.*extension"),
        (GT, DET.replace("0902", "2"), MAP, r"det.csv: not one of its seconds is a key frame"),
        (GT, DET.replace(",1,", ",0,"), MAP, r"det.csv: classes 0 to 0, none in the label map \(ids 1 to 3\)"),
        (GT, DET, "", r"map.pbtxt: not a label map: no class in it"),
        (GT, DET, 'item {\n name: "a"\n id: 0\n}', r"map.pbtxt, line 3: id 0 is below 1"),
        (GT, DET, MAP + MAP, r"map.pbtxt, line \d+: id 1 is there twice"),
        ("", DET, MAP, r"gt.csv: an empty file"),
        ("\n", DET, MAP, r"gt.csv: an empty file"),
    ],
)
def test_what_gives_a_silent_zero_elsewhere_is_one_line(
    gt: str, det: str, label_map: str, message: str, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("gt.csv", "det.csv", "map.pbtxt")]
    for path, text in zip(files, (gt, det, label_map), strict=True):
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        ava.evaluate_files(*files)


def test_the_command_writes_what_it_prints(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fixtures / "ava" / "real_sample"
    files = [str(folder / name) for name in ("groundtruth.csv", "detections.csv", "labelmap.pbtxt")]
    flags = ["--exclusions", str(folder / "exclusions.csv"), "--out", str(tmp_path / "ap.json")]
    monkeypatch.setattr("sys.argv", ["ava", *files, *flags])
    ava.main()
    result = json.loads((tmp_path / "ap.json").read_text())
    assert result["mAP"] == pytest.approx(0.8333333333333334, abs=1e-9)  # the rule of 2019, as exclusions are given
    assert result["AP"]["74"] is None
    printed = capsys.readouterr().out
    assert "stand" in printed and "rule of 2019" in printed


def test_80_classes_in_place_of_60_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {i: f"class {i}" for i in range(1, 81)} | {12: "stand", 80: "watch (a person)"}
    label_map = "".join(f'label {{\n  name: "{name}"\n  label_id: {i}\n}}\n' for i, name in names.items())
    for name, text in (("gt.csv", GT), ("det.csv", DET), ("map.pbtxt", label_map)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("sys.argv", ["ava", *(str(tmp_path / name) for name in ("gt.csv", "det.csv", "map.pbtxt"))])
    ava.main()
    assert "map.pbtxt: a label map of 80 classes; published figures of AVA are over 60" in capsys.readouterr().err
