"""The page of `--report` in a browser."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import chromium, requested
from tests.test_report import BITS, LABELS, NAMES, SIZE, N, frames_of, report
from utils.drawing.draw import PALETTE
from utils.drawing.report import page as page_module
from utils.drawing.report.page import write_report


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
    page.execute_script("choose(3); player.seek(5)")
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
        driver.execute_script("choose(arguments[0]); player.seek(5)", number)
        until(driver, "state.tubes.length === 4 && player.frame === 5")
        assert driver.find_element("id", "time").text == text
    whisker = "document.querySelector('.whisker').style"
    assert js(driver, f"[{whisker}.left, {whisker}.width]") == ["0%", "20%"]
