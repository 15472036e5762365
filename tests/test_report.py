"""The files of the page of `--report`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from utils.drawing.report.page import _compact, safe_json, write_report
from utils.drawing.side_by_side import tubes_panel
from utils.misc import InputError
from utils.results import Views, write_results
from utils.run_log import RunLog

N, SIZE, BITS = 36, (320, 240), 6
NAMES = ["</script><script>alert(1)</script>", "公園 'two' & \"three\"", "<img src=x onerror=alert(2)>", "last"]
LABELS = ["walk", "<b>sit</b>", "走る"]


def tube(side: str, person: int, frames, label: int = 0, score: float = 1.0, **more) -> dict:
    boxes = [[20.3 + 40 * person + 3 * f, 60.7 - f / 2, 60.3 + 40 * person + 3 * f, 160.2 + f] for f in frames]
    held = {"person": person, "name": f"{side} {person}", "colour": person, "label": label, "score": score}
    return {**held, "frames": list(frames), "boxes": boxes, **more}


def report(n_videos: int = 4) -> dict:
    gt = [tube("gt", 0, range(N)), tube("gt", 1, range(10, 30), 2, error="missed")]
    gaps = [*range(4, 12), *range(15, N)]
    pred = [tube("pred", 0, gaps, 1, 0.8), tube("pred", 2, range(20, 25), 0, 0.3, error="background")]
    videos = [
        {"name": name, "width": SIZE[0], "height": SIZE[1], "fps": 25.0, "n_frames": N, "gt": gt, "pred": pred}
        | {"counts": {"errors": i % 3}, "events": [{"frame": 33, "text": "switch"}]}
        for i, name in enumerate(NAMES[:n_videos])
    ]
    curve = {"name": LABELS[1], "note": "AP 0.5", "x": [0, 0.5], "y": [1, 0.8]}
    charts = [
        {"kind": "bars", "title": "AP", "rows": [{"name": LABELS[1], "value": 0.5, "low": 0.4, "high": 0.7}]},
        {
            "kind": "bars",
            "title": "R",
            "rows": [{"name": "s", "value": v, "series": s} for s, v in (("a", 1), ("b", None))],
        },
        {"kind": "curves", "title": "PR", "x": "recall", "y": "precision", "curves": [curve]},
        {
            "kind": "matrix",
            "title": "C",
            "rows": LABELS,
            "columns": LABELS,
            "counts": [[1, 2, 3], [0, 0, 0], [9, 0, 1]],
        },
    ]
    metrics = [{"name": "v-mAP@0.5", "value": 0.5, "low": 0.4, "high": None}]
    head = {"title": NAMES[0], "facts": {"subset": "<i>val</i>"}, "labels": LABELS, "columns": ["errors"]}
    return {**head, "metrics": metrics, "charts": charts, "videos": videos}


def frames_of(_: str) -> Iterator[np.ndarray]:
    """Grey frames, each with its number as black and white blocks at the left edge."""
    for f in range(N):
        frame = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
        for bit in range(BITS):
            frame[bit * 16 : bit * 16 + 16, :16] = 255 * (f >> bit & 1)
        yield frame


def test_a_report_is_replaced_whole_or_left(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    first = write_report(folder, report(), frames_of, 2, 2).read_text()
    assert len(list(folder.rglob("*.js"))) == 6 and len(list(folder.rglob("*.video.js"))) == 2
    (folder / "files-mine").mkdir()

    def broken(name: str) -> Iterator[np.ndarray]:
        yield from frames_of(name)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_report(folder, report(), broken)
    assert (folder / "index.html").read_text() == first and len(list(folder.iterdir())) == 3
    index = write_report(folder, report(1))
    data = json.loads(re.search(r'id="data">(.*)</script>', index.read_text())[1])
    assert [video["name"] for video in data["videos"]] == NAMES[:1] and data["videos"][0]["src"] is None
    assert sorted(p.suffix for p in folder.rglob("*") if p.is_file()) == [".html", ".js"]
    index.write_text("<title>My own page</title>")
    with pytest.raises(InputError, match="is no report"):
        write_report(folder, report())
    assert index.read_text() == "<title>My own page</title>"


def test_a_video_has_the_size_and_length_of_its_frames(tmp_path: Path) -> None:
    class Frames:
        size, fps = SIZE, 25.0

        def __iter__(self) -> Iterator[np.ndarray]:
            return frames_of("")

    guessed = report(1)
    guessed["videos"][0] |= {"width": 201, "height": 180, "n_frames": 30}  # as the tubes alone say
    text = write_report(tmp_path, guessed, lambda _: Frames()).read_text()
    (video,) = json.loads(re.search(r'id="data">(.*)</script>', text)[1])["videos"]
    assert (video["width"], video["height"], video["n_frames"]) == (*SIZE, N)


def test_a_video_that_cannot_be_read_is_shown_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def unreadable(name: str) -> Iterator[np.ndarray]:
        yield from frames_of(name)
        raise InputError(f"{name}: broken")

    index = write_report(tmp_path, report(2), unreadable)
    assert not list(tmp_path.rglob("*.video.js")) and '"src":null' in index.read_text()
    assert "note: 2 videos of the page cannot be read, the first: 公園" in capsys.readouterr().err


def test_a_worst_video_that_cannot_be_read_is_left_out_on_comet_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(name: str) -> Iterator[np.ndarray]:
        raise InputError(f"{name}: broken")

    calls = Mock()
    monkeypatch.setattr(RunLog, "_start_comet", lambda _: calls)
    views = Views(lambda _: [], lambda *_: report(), lambda _: [], unreadable)
    flags = {"comet": "online", "plot": False, "report": True, "report_videos": 1, "workers": 1, "side_by_side": []}
    path = write_results(tmp_path, "eval_map", "val", "one", flags, {"v-mAP@0.5": 0.5}, 1, views)
    assert path.is_file() and calls.log_asset.called and not calls.log_video.called
    with pytest.raises(InputError, match="last: broken"):
        write_results(tmp_path, "eval_map", "val", "one", flags | {"side_by_side": ["last"]}, {}, 1, views)


def test_plots_and_predictions_of_other_metrics_do_not_stay_beside_results(tmp_path: Path) -> None:
    def evaluate(ap: float, more: dict) -> set[str]:
        metrics = {"v-mAP@0.5": ap, "AP@0.5": {"walk": None}, **more}
        path = write_results(tmp_path, "eval_map", "val", "th0.5", {"comet": "disabled"}, metrics, 1)
        return {str(file.relative_to(path.with_suffix(""))) for file in path.with_suffix("").rglob("*.*")}

    page = {"report/index.html", "report/files-0a1b2c3d/00000.js", "report.zip"}
    shown = {"tubes.png", "precision_recall@0.5.pdf", "predictions.json", "mot/a.txt", "mot/a/b.txt", *page}
    made = {*shown, "side_by_side/a/b.mp4", "notes.md", "my figure.png", "draft.pdf", "talk.mp4"}
    assert evaluate(0.5, {}) == {"metrics.jsonl"}
    for name in made:
        file = tmp_path / "results" / "eval_map-val-th0.5" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    assert evaluate(0.5, {"errors": {}}) == made | {"metrics.jsonl"}  # the same metrics, and more
    assert evaluate(0.25, {}) == {"metrics.jsonl", "notes.md", "my figure.png", "draft.pdf", "talk.mp4"}


def test_videos_side_by_side_have_a_file_each(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "b"]
    frames = [np.zeros((32, 32, 3), np.uint8)] * 2
    video = type("Frames", (list,), {"size": (32, 32), "fps": 10})(frames)
    views = Views(Mock(), Mock(), lambda name: [tubes_panel(name, [])], lambda name: video)
    flags = dict.fromkeys(("plot", "report"), False) | {"comet": "disabled", "side_by_side": names}
    path = write_results(tmp_path, "eval_map", "val", "one", flags, {}, 1, views)
    written = path.with_suffix("") / "side_by_side"
    assert {str(file.relative_to(written)) for file in written.rglob("*.mp4")} == {f"{name}.mp4" for name in names}


def test_the_page_is_small_and_names_nothing_outside(tmp_path: Path) -> None:
    text = write_report(tmp_path, report()).read_text()
    assert len(text.encode()) < 60_000
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
    assert text.count("</script>") == 2


def test_tubes_are_the_same_after_compaction() -> None:
    draw = np.random.default_rng(0)
    for n in (0, 1, 2, 30):
        frames = np.sort(draw.choice(60, n, replace=False))
        boxes = draw.normal(100, 50, (n, 4))
        held = json.loads(safe_json(_compact({"frames": frames, "boxes": boxes, "label": 1})))
        assert [f for first, k in held["runs"] for f in range(first, first + k)] == frames.tolist()
        assert all(b[0] > a[0] + a[1] for a, b in zip(held["runs"], held["runs"][1:], strict=False))
        np.testing.assert_allclose(np.reshape(held["boxes"], (-1, 4)), boxes, atol=0.0501)
