"""The report in a real browser, used by keyboard only. Skipped without Chromium or selenium."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import chromium
from contrasts import CONTRASTS
from PIL import Image

pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.slow  # a browser takes longer than all other tests of the report


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


def look(browser: Any, page: Path, *, width: int = 1280, dark: bool = False) -> None:
    """Open the page on a screen of that width, with a light or dark color scheme."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


def screenshot(browser: Any) -> np.ndarray:
    with Image.open(BytesIO(browser.get_screenshot_as_png())) as image:
        return np.asarray(image.convert("L"), dtype=float)


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen_and_has_no_errors(browser: Any, trained: Path, width: int) -> None:
    look(browser, trained / "report.html", width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.title.startswith("run"), "no prompt's script has run"
    assert browser.get_log("browser") == []
    unloaded = "return [...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert browser.execute_script(unloaded) == 0
    drawings = browser.find_elements(By.CSS_SELECTOR, "svg")
    assert len(drawings) >= 12
    assert all(width / 5 < drawing.rect["width"] <= width and drawing.rect["height"] > 100 for drawing in drawings)
    assert screenshot(browser).std() > 10, "not a blank page"


def test_light_and_dark_follow_the_system(browser: Any, trained: Path) -> None:
    middles = []
    for dark in (False, True):
        look(browser, trained / "report.html", dark=dark)
        middles.append(float(np.median(screenshot(browser))))
        lowest = browser.execute_script(CONTRASTS, "body")
        assert lowest[0][0] >= 4.5, lowest
    assert middles[0] > 230 and middles[1] < 40


def test_the_slider_moves_all_pairs_by_keyboard(browser: Any, trained: Path) -> None:
    look(browser, trained / "report.html")
    slider = browser.find_element(By.ID, "frame")

    def shown() -> set[str]:
        frames = browser.find_elements(By.CSS_SELECTOR, ".strip figure.frame")
        visible = [frame for frame in frames if frame.is_displayed()]
        assert len(visible) == 2, "one image of each pair"
        return {frame.find_element(By.TAG_NAME, "figcaption").text for frame in visible}

    assert shown() == {"tuned"}
    for key, label in (
        (Keys.ARROW_LEFT, "iteration 2"),
        (Keys.ARROW_LEFT, "iteration 1"),
        (Keys.HOME, "base"),
        (Keys.ARROW_RIGHT, "iteration 1"),
        (Keys.END, "tuned"),
    ):
        slider.send_keys(key)
        assert shown() == {label}
        assert slider.get_attribute("aria-valuetext") == label
        assert browser.find_element(By.ID, "frame-label").text == label


def test_without_scripts_all_images_are_there(browser: Any, trained: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get((trained / "report.html").as_uri())
        frames = browser.find_elements(By.CSS_SELECTOR, ".strip figure.frame")
        assert len(frames) == 8 and all(frame.is_displayed() for frame in frames)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
