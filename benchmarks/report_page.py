"""The page of `--report` with 1,000 videos and 20,000 tubes, opened in headless Chromium: seconds, beside the two that
are allowed, until the list, the first video's tubes and its first frame are painted."""

import shutil
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.rows import Row, show, timed
from utils.box_ops import Tube
from utils.drawing.report.contents import TubeError, evaluation_page, video_entry
from utils.drawing.report.page import write_report

VIDEOS, TUBES, FRAMES, LABELS = 1000, 20, 100, 24  # tubes a video, half of them annotated
ALLOWED = 2.0  # seconds
ROUNDS = 3


def open_browser() -> Any | None:
    """A headless Chromium driven by selenium, or None where one of the two is missing."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if not browser or not driver:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1300,950"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def _videos() -> list[dict]:
    rng = np.random.default_rng(0)
    videos = []
    for v in range(VIDEOS):
        tubes = []
        for person in range(TUBES):
            corner = rng.uniform(0, 200, 2) + np.outer(np.arange(FRAMES), rng.normal(0, 0.5, 2))
            boxes = np.concatenate([corner, corner + rng.uniform(20, 60, 2)], 1)
            tubes.append(Tube(np.arange(FRAMES), boxes, int(rng.integers(LABELS)), rng.random(), person % (TUBES // 2)))
        errors = [TubeError("pred", i, "false positive") for i in range(rng.integers(TUBES // 2))]
        size = (320, 240, FRAMES)
        videos.append(video_entry(f"video {v:04d}", size, tubes[::2], tubes[1::2], errors, fps=25.0))
    return videos


def measure() -> list[Row]:
    """The benchmark's row; none without a browser."""
    driver = open_browser()
    if driver is None:
        print("report_page: no chromium, chromedriver or selenium here", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder:
        page = evaluation_page("benchmark", {}, [f"class {c}" for c in range(LABELS)], {}, [], _videos())
        frames = [np.full((240, 320, 3), 128, np.uint8)] * 10
        index = write_report(folder, page, lambda _: frames, 1).as_uri()

        def open_page() -> None:
            driver.get(index)
            while not driver.execute_script("return Boolean(state.tubes.length && player.picture)"):
                time.sleep(0.005)

        took = []
        for _ in range(ROUNDS + 1):  # the first warms the browser up
            driver.get("about:blank")
            took.append(timed(open_page)[1])
    driver.quit()
    what = f"page of {VIDEOS:,} videos and {VIDEOS * TUBES:,} tubes: opened within"
    return [Row(what, float(np.median(took[1:])), ALLOWED, "s", at_most=1.0)]


if __name__ == "__main__":
    show(__doc__, measure)
