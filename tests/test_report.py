"""The page of `--report`: its files, and what it does in a browser."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from tests.browser import chromium, requested
from utils.drawing.draw import PALETTE
from utils.drawing.report import page as page_module
from utils.drawing.report.page import _compact, safe_json, write_report
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
    views = Views(lambda _: [], lambda *_: report(), lambda _: [], unreadable, lambda _: tmp_path)
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

    made = {"tubes.png", "predictions.json", "mot/a.txt", "notes.md"}
    assert evaluate(0.5, {}) == {"metrics.jsonl"}
    for name in made:
        file = tmp_path / "results" / "eval_map-val-th0.5" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    assert evaluate(0.5, {"errors": {}}) == made | {"metrics.jsonl"}  # the same metrics, and more
    assert evaluate(0.25, {}) == {"metrics.jsonl", "notes.md"}


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


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A browser, and in `.page` the address of a report on the disk."""
    with chromium() as running:
        running.page = write_report(tmp_path_factory.mktemp("a page") / "r", report(), frames_of, 3).as_uri()
        yield running


@pytest.fixture
def page(driver) -> Iterator:
    """The report, opened at its first video, with that video's first frame shown; no error in the console after."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(driver.page)
    until(driver, "state.tubes.length && player.picture")
    yield driver
    assert [entry for entry in driver.get_log("browser") if "willReadFrequently" not in entry["message"]] == []


def js(driver, code: str):
    return driver.execute_script(f"return {code}")


def until(driver, condition: str) -> None:
    end = time.monotonic() + 15
    while not js(driver, f"Boolean({condition})"):
        assert time.monotonic() < end, f"never: {condition}"
        time.sleep(0.02)


def press(driver, key: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    ActionChains(driver).send_keys(getattr(Keys, key, key)).perform()


def click(driver, selector: str, n: int = 0, x: float | None = None) -> None:
    """Click the n-th element, at a share `x` of its width from the left."""
    from selenium.webdriver import ActionChains

    element = driver.find_elements("css selector", selector)[n]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    offset = 0 if x is None else round((x - 0.5) * element.size["width"])
    ActionChains(driver).move_to_element_with_offset(element, offset, 0).click().perform()


READ = """
const read = () => {
  const scale = screen_.width / WIDTH;
  let number = 0;
  for (let bit = 0; bit < BITS; bit++) {
    number += context.getImageData(8 * scale, (16 * bit + 8) * scale, 1, 1).data[0] > 127 ? 1 << bit : 0;
  }
  return number;
};
""".replace("WIDTH", str(SIZE[0])).replace("BITS", str(BITS))


@pytest.mark.slow
def test_boxes_stay_on_their_frames_at_any_rate(page) -> None:
    """The number in the picture is that of the boxes in everything painted: while playing, and after jumps."""
    watch = READ + "window.seen = []; const draw = player.draw;"
    page.execute_script(watch + "player.draw = (f, p) => { draw(f, p); seen.push([f, read()]); }")
    for rate, least in (("0.5", N // 2), ("2", N // 4), ("4", 4)):
        page.execute_script("seen.length = 0; player.setRate(arguments[0]); player.seek(0); player.play()", float(rate))
        until(page, "player.media.ended && !player.playing")
        seen = js(page, "seen")
        assert len({frame for frame, _ in seen}) >= least
        assert [pair for pair in seen if pair[0] != pair[1]] == [], rate
    page.execute_script("seen.length = 0")
    for frame in (7, 8, 9, 0, N - 1, 20):
        page.execute_script("player.seek(arguments[0])", frame)
        until(page, f"player.frame === {frame} && player.wanted === null")
        assert js(page, "seen.at(-1)") == [frame, frame]


@pytest.mark.slow
def test_without_presentation_times_frames_are_right_after_every_step(driver) -> None:
    hide = "delete HTMLVideoElement.prototype.requestVideoFrameCallback"
    held = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": hide})
    try:
        driver.get("about:blank")
        driver.get(driver.page)
        until(driver, "state.tubes.length && player.picture")
        for _ in range(3):
            press(driver, "ARROW_RIGHT")
        until(driver, "player.frame === 3 && player.wanted === null")
        assert driver.execute_script(READ + "return read()") == 3
        press(driver, " ")
        until(driver, f"!player.playing && player.frame === {N - 1}")
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", held)


@pytest.mark.parametrize(("suffix", "largest"), [(".webm", 2**25), (".mp4", 0)])
@pytest.mark.slow
def test_other_forms_of_video_are_played(driver, tmp_path: Path, monkeypatch, suffix: str, largest: int) -> None:
    """VP9, where FFmpeg lacks x264; and a video that is too large for a script, a file beside the page."""
    monkeypatch.setattr(page_module, "browser_suffix", lambda: suffix)
    monkeypatch.setattr(page_module, "LARGEST_SCRIPT", largest)
    index = write_report(tmp_path, report(1), frames_of)
    assert [p.suffix for p in tmp_path.rglob("*00000*") if "video" in p.name or p.suffix != ".js"] == [
        ".js" if largest else suffix
    ]
    driver.get(index.as_uri())
    until(driver, "state.tubes.length && player.picture")
    for _ in range(5):
        press(driver, "ARROW_RIGHT")
    until(driver, "player.frame === 5 && player.wanted === null")
    if largest:  # pixels of a file beside the page cannot be read back
        assert driver.execute_script(READ + "return read()") == 5
    press(driver, " ")
    until(driver, "player.media.ended && !player.playing")


@pytest.mark.slow
def test_a_box_is_where_its_number_says(page) -> None:
    bare = "const draw = drawBoxes; drawBoxes = (c, e, ...more) => draw(c, e.map((x) => ({...x, text: ''})), ...more)"
    page.execute_script(bare)  # captions are fields of the same colour
    for frame in (0, 16, 28):
        page.execute_script("player.seek(arguments[0])", frame)
        until(page, f"player.frame === {frame} && player.wanted === null")
        boxes = [
            (t, t["boxes"][t["frames"].index(frame)]) for t in report()["videos"][0]["pred"] if frame in t["frames"]
        ]
        assert boxes or frame == 0
        for person, (x0, y0, x1, y1) in [(t["colour"], box) for t, box in boxes]:
            scale = js(page, "screen_.width") / SIZE[0]
            across = f"[...context.getImageData(0, {round((y0 + y1) / 2 * scale)}, screen_.width, 1).data]"
            down = f"[...context.getImageData({round((x0 + x1) / 2 * scale)}, 0, 1, screen_.height).data]"
            for line, edges in ((across, (x0, x1)), (down, (y0, y1))):
                pixels = np.reshape(js(page, line), (-1, 4))[:, :3].astype(int)
                places = np.flatnonzero(np.abs(pixels - PALETTE[person]).max(1) < 60) + 0.5
                for edge in edges:
                    near = places[np.abs(places - edge * scale) < 4]
                    assert len(near) and abs(near.mean() - edge * scale) <= 1, (frame, person, edge)


@pytest.mark.slow
def test_keys_and_clicks_do_what_they_say(page) -> None:
    press(page, "ARROW_RIGHT")
    press(page, "ARROW_RIGHT")
    press(page, "ARROW_LEFT")
    until(page, "player.frame === 1")
    stops = []
    for _ in range(3):
        press(page, "n")
        until(page, "player.wanted === null")
        stops.append(js(page, "player.frame"))
    assert stops == [10, 20, 33]
    press(page, "p")
    until(page, "player.frame === 20")
    press(page, " ")
    until(page, "player.playing && byId('play').textContent === 'pause'")
    press(page, " ")
    until(page, "!player.playing && byId('play').textContent === 'play'")
    click(page, ".lanes", 0, 0.51)
    until(page, f"player.frame === {N // 2}")
    click(page, "#errors button", 0)
    until(page, "player.frame === 10")
    first = js(page, "state.clip.index")
    assert first == 2, "most errors first"
    press(page, "j")
    until(page, "state.clip.index === 1 && state.tubes.length")
    press(page, "k")
    until(page, "state.clip.index === 2 && state.tubes.length && player.picture")
    click(page, "#list thead button")
    names = page.find_elements("css selector", "#list tbody button")
    assert [name.text for name in names] == sorted(NAMES)
    page.find_element("id", "search").send_keys("公園")
    assert js(page, "[...document.querySelectorAll('#list tbody tr')].filter((row) => !row.hidden).length") == 1
    press(page, "n")
    assert page.find_element("id", "search").get_property("value") == "公園n"


@pytest.mark.slow
def test_switches_hide_what_they_name(page) -> None:
    page.execute_script("player.seek(22)")
    until(page, "player.frame === 22 && player.wanted === null")
    shown = "boxesAt(state.tubes.filter(visible), 22, caption).map((entry) => entry.text)"
    everything = ["gt 0 walk", f"gt 1 {LABELS[2]}", f"pred 0 {LABELS[1]} 0.80", "pred 2 walk 0.30"]
    assert js(page, shown) == everything
    for selector, n, left in (
        ("#classes input", 0, everything[1:3]),
        ("#timeline input", 1, [everything[i] for i in (0, 1, 3)]),
        ("#gt", 0, everything[2:]),
        ("#pred", 0, everything[:2]),
    ):
        click(page, selector, n)
        assert js(page, shown) == left, selector
        click(page, selector, n)
    assert js(page, shown) == everything and js(page, "state.errors.length") == 3
    page.execute_script("byId('score').value = 0.5; byId('score').dispatchEvent(new Event('input'))")
    assert js(page, shown) == everything[:3] and js(page, "state.errors.length") == 2


@pytest.mark.slow
def test_a_person_has_one_colour_in_picture_and_timeline(page) -> None:
    rows = "[...document.querySelectorAll('#timeline .row')].map((row) => [row.querySelector('label').textContent, "
    rows += "row.querySelector('.lane button').style.getPropertyValue('--colour')])"
    hexes = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE]
    expected = [["gt 0", hexes[0]], ["pred 0", hexes[0]], ["gt 1", hexes[1]], ["pred 2", hexes[2]]]
    assert js(page, rows) == expected and js(page, "palette") == hexes


@pytest.mark.slow
def test_names_are_text_and_nothing_is_fetched_from_outside(page) -> None:
    requested(page)
    page.get(page.page)
    until(page, "state.tubes.length && player.picture")
    assert sorted(b.text for b in page.find_elements("css selector", "#list tbody button")) == sorted(NAMES)
    assert page.title == NAMES[0] == page.find_element("tag name", "h1").text
    assert js(page, "byId('facts').textContent") == "subset<i>val</i>"
    until(page, "document.querySelectorAll('img, script').length === 2")  # data and code: what is loaded is removed
    asked = requested(page)
    assert len(asked) == 3 and all(url.startswith(page.page.rpartition("/")[0]) for url in asked)


@pytest.mark.slow
def test_a_phone_and_a_dark_room(page) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    try:
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        until(page, "screen_.width === 2 * screen_.clientWidth")
        assert js(page, "document.documentElement.scrollWidth") <= 360
        ground, text = (js(page, f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        luma = [sum(map(int, re.findall(r"\d+", colour))) for colour in (ground, text)]
        assert luma[0] < 150 and luma[1] > 600
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
def test_a_video_that_is_not_in_the_report_is_played_without(page) -> None:
    page.execute_script("choose(3, 5)")
    until(page, "state.tubes.length === 4 && player.frame === 5")
    assert "not in the report" in page.find_element("id", "message").text
    press(page, "ARROW_RIGHT")
    page.execute_script("player.setRate(4); player.play()")
    until(page, f"!player.playing && player.frame === {N - 1}")


@pytest.mark.slow
def test_seconds_are_those_of_a_known_rate_and_an_interval_ends_where_it_does(driver, tmp_path: Path) -> None:
    page = report(2)
    page["videos"][0]["fps"], page["videos"][1]["fps"] = 10.0, None
    page["charts"][0]["rows"] = [{"name": "AP", "value": 0.1, "low": -0.1, "high": 0.2}]
    driver.get(write_report(tmp_path, page).as_uri())
    for number, text in enumerate((f"frame 5 of {N}, 0.50 s", f"frame 5 of {N}")):
        driver.execute_script("choose(arguments[0], 5)", number)
        until(driver, "state.tubes.length === 4 && player.frame === 5")
        assert driver.find_element("id", "time").text == text
    whisker = "document.querySelector('.whisker').style"
    assert js(driver, f"[{whisker}.left, {whisker}.width]") == ["0%", "20%"]
