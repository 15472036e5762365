"""A headless Chromium for the tests of the page, where one is installed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.report_page import open_browser


@contextmanager
def chromium() -> Iterator:
    """A driver of Debian's `chromium`; skips the test where browser, driver or selenium is missing."""
    running = open_browser()
    if running is None:
        pytest.skip("no browser (apt install chromium chromium-driver) or no selenium (pip install selenium)")
    running.set_script_timeout(30)
    try:
        yield running
    finally:
        running.quit()


def requested(driver) -> list[str]:
    """The addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("data:", "blob:"))]
