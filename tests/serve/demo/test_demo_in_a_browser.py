"""The page in a real browser. Skipped without Gradio, Chromium or selenium."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browsing import chromium
from PIL import Image
from servers import bomb

from customized_grpo.serve.demo.guard import TOKEN_VARIABLE

pytest.importorskip("gradio")
pytest.importorskip("selenium")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 120  # seconds, for a busy machine
TOKEN = "token-of-this-test-1234"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all files that the server writes."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def page(random_run: Path, served: Path) -> Iterator[str]:
    """Address of the demo of a run, served by the command itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = served
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "customized_grpo", "demo", "--run", str(random_run), "--port", str(port)]
        environment = {**os.environ, "TMPDIR": str(folder), TOKEN_VARIABLE: TOKEN}
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)
        address = f"http://127.0.0.1:{port}/"
        try:
            deadline = time.monotonic() + PATIENCE
            while f"open {address}?token={TOKEN}" not in (folder / "log").read_text():
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            server.wait(PATIENCE)
        assert not list(served.glob("cgrpo-demo-*")), "uploads stay behind"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.fixture
def opened(browser: Any, page: str) -> Any:
    browser.get(f"{page}?token={TOKEN}")
    assert browser.current_url == page, "the token does not stay in the address"
    until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#photos input[type=file]"))
    return browser


def until(browser: Any, found: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, PATIENCE, 0.1).until(lambda _: found())


def upload(browser: Any, *paths: Path) -> None:
    browser.find_element(By.CSS_SELECTOR, "#photos input[type=file]").send_keys("\n".join(map(str, paths)))


def write(browser: Any, text: str) -> None:
    browser.find_element(By.CSS_SELECTOR, "#prompt textarea").send_keys(text)


def press_draw(browser: Any) -> None:
    browser.find_element(By.ID, "draw").click()


def problem(browser: Any, word: str) -> str:
    """Return the error that the page shows, once one contains that word."""

    def found() -> list[str]:
        texts = [element.text for element in browser.find_elements(By.CSS_SELECTOR, ".toast-text, .toast-message-text")]
        return [text for text in texts if word in text]

    (text,) = until(browser, found)
    return str(text)


def test_a_photo_and_a_prompt_become_images_of_both_models_with_scores(
    opened: Any, page: str, served: Path, tmp_path: Path
) -> None:
    photo, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x010E] = "a secret place"
    Image.radial_gradient("L").convert("RGB").save(photo, exif=exif)
    upload(opened, photo)
    (shown,) = until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos img"))
    until(opened, lambda: fetched(shown.get_attribute("src")).startswith(b"\x89PNG"))
    stored = [path for path in served.rglob("*") if path.is_file()]
    assert stored and not [path for path in stored if b"a secret place" in path.read_bytes()]
    write(opened, "a dog in the snow")
    press_draw(opened)
    images = until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#results img"))
    assert [element.get_attribute("alt") for element in images] == ["base", "tuned"]
    base, tuned = (fetched(element.get_attribute("src")) for element in images)
    assert base != tuned
    for data in (base, tuned):
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (64, 64) and len(image.convert("RGB").getcolors(4096) or ()) > 50
    rows = until(opened, lambda: [row for row in table(opened) if len(row) > 3])
    assert [row[0] for row in rows] == ["identity", "prompt", "identity", "prompt", "copy-paste"]
    for *_, before, after, change in rows:
        assert float(change) == pytest.approx(float(after) - float(before), abs=0.11)
    requested = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in requested if m["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(one).netloc for one in addresses if urlsplit(one).scheme in ("http", "https", "ws", "wss")}
    assert hosts == {urlsplit(page).netloc}, "nothing is loaded from other hosts"
    assert not [entry for entry in opened.get_log("browser") if "Content Security Policy" in entry["message"]]


def table(browser: Any) -> list[list[str]]:
    """Return the words of each row of the scores."""
    cells = "[...row.querySelectorAll('td')].map(cell => cell.textContent.trim()).join(' ')"
    script = f"return [...document.querySelectorAll('#scores tbody tr')].map(row => {cells})"
    return [text.split() for text in browser.execute_script(script)]


def test_bad_photos_and_an_empty_prompt_are_one_line(opened: Any, tmp_path: Path) -> None:
    press_draw(opened)
    problem(opened, "There is no photo")
    bad = tmp_path / "bomb.png"
    bad.write_bytes(bomb(50_000))
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos input[type=file]"))
    upload(opened, bad)
    assert problem(opened, "million").startswith(bad.name)
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos input[type=file]"))
    good = tmp_path / "good.png"
    Image.new("RGB", (40, 30), "red").save(good)
    upload(opened, good)
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos img"))
    press_draw(opened)
    problem(opened, "The prompt is empty")


def cookie(address: str) -> dict[str, str]:
    return {"Cookie": f"cgrpo-demo-{urlsplit(address).port}={TOKEN}"}


def fetched(address: str) -> bytes:
    """Return the file at the address; nothing while the server is replacing it."""
    with urllib.request.urlopen(urllib.request.Request(address, headers=cookie(address))) as answer:
        try:
            return bytes(answer.read())
        except http.client.IncompleteRead:
            return b""


def test_other_names_other_files_and_large_files_are_refused(page: str) -> None:
    def status(path: str, data: bytes | None = None, **headers: str) -> int:
        request = urllib.request.Request(page + path, data, {**cookie(page), **headers})
        try:
            with urllib.request.urlopen(request) as answer:
                assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status("") == 200
    assert status("", Cookie="") == status("config", Cookie="") == 401
    assert status("gradio_api/queue/join", bytes(2**20 + 1)) in (400, 413)
    assert status("", Host="elsewhere.example") == 400
    assert status("gradio_api/file=/etc/passwd") in (403, 404)
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert status("gradio_api/upload", body % bytes(1000), **form) == 200
    assert status("gradio_api/upload", body % bytes(21 * 2**20), **form) == 413


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen(opened: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.refresh()
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos input[type=file]"))
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
