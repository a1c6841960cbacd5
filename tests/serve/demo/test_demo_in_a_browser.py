"""The page as a person meets it, in a real browser. Skipped where there is no Gradio, no Chromium or no selenium."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
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
from contrasts import CONTRASTS
from PIL import Image
from test_studio import bomb

from customized_grpo.serve.demo.guard import TOKEN_VARIABLE

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip
PATIENCE = 600  # seconds; a busy machine has little time for a page
TOKEN = "token-of-this-test-1234"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds all that the server writes."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def page(moved_run: Path, served: Path) -> Iterator[str]:
    """The address of the demo of a run, served by the command itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = served
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "customized_grpo", "demo", "--lora", str(moved_run), "--port", str(port)]
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
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


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
    """The one line of error that the page shows, once it has that word."""
    found = until(browser, lambda: [e.text for e in browser.find_elements(By.CLASS_NAME, "problem") if word in e.text])
    assert len(found) == 1 and "\n" not in found[0]
    return str(found[0])


def test_a_photo_and_a_prompt_become_two_pictures_and_their_scores(opened: Any, page: str, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.radial_gradient("L").convert("RGB").save(photo)
    upload(opened, photo)
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos img"))
    write(opened, "a dog in the snow")
    press_draw(opened)
    pictures = until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#results figure img"))
    assert [element.get_attribute("alt") for element in pictures] == ["base, picture 1", "tuned, picture 1"]
    drawn = [base64.b64decode(element.get_attribute("src").split(",")[1]) for element in pictures]
    assert drawn[0] != drawn[1]
    for data in drawn:
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (64, 64) and len(image.getcolors(4096) or ()) > 50
    rows = [row.text.split() for row in opened.find_elements(By.CSS_SELECTOR, "#results tbody tr")]
    assert [row[0] for row in rows] == ["identity", "prompt", "identity", "prompt", "copy-paste"]
    for row in rows:
        base, tuned, change = map(float, row[-3:])
        assert change == pytest.approx(tuned - base, abs=0.11)
    assert not opened.find_elements(By.CLASS_NAME, "problem")
    asked = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(one).netloc for one in addresses if urlsplit(one).scheme in ("http", "https", "ws", "wss")}
    assert hosts == {urlsplit(page).netloc}
    assert not [entry for entry in opened.get_log("browser") if "Content Security Policy" in entry["message"]]


def test_bad_photos_and_an_empty_prompt_are_one_line(opened: Any, tmp_path: Path) -> None:
    press_draw(opened)
    problem(opened, "There is no photo")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    upload(opened, broken)
    assert problem(opened, "broken.png").startswith("broken.png: ")
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos input[type=file]"))
    upload(opened, bomb(tmp_path / "bomb.png"))
    assert "million" in problem(opened, "bomb.png")
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos input[type=file]"))
    good = tmp_path / "good.png"
    Image.new("RGB", (40, 30), "red").save(good)
    upload(opened, good)
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos img"))
    press_draw(opened)
    problem(opened, "The prompt is empty")


def test_what_is_uploaded_is_written_again(opened: Any, served: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    Image.radial_gradient("L").convert("RGB").save(photo, exif=exif)
    assert b"a secret place" in photo.read_bytes()
    upload(opened, photo)
    (address,) = until(opened, lambda: rewritten(opened, 1))
    content = fetched(address)
    assert content.startswith(b"\x89PNG") and b"a secret place" not in content
    stored = [path for path in served.rglob("*") if path.is_file()]
    assert not [path for path in stored if b"a secret place" in path.read_bytes()]
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 30), "red").save(other)
    upload(opened, other)
    for one in until(opened, lambda: rewritten(opened, 2)):
        with Image.open(io.BytesIO(fetched(one))) as image:
            assert image.size in ((256, 256), (40, 30))


def cookie(address: str) -> dict[str, str]:
    return {"Cookie": f"cgrpo-demo-{urlsplit(address).port}={TOKEN}"}


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, headers=cookie(address))) as answer:
        return bytes(answer.read())


def rewritten(browser: Any, count: int) -> list[str] | None:
    """Where that many photos of the page come from, once all are written again."""
    shown = browser.find_elements(By.CSS_SELECTOR, "#photos .thumbnail-lg img, #photos .gallery-item img")
    found = sorted({element.get_attribute("src") or "" for element in shown})
    return found if len(found) == count and all(one.endswith("/image.png") for one in found) else None


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


def test_a_taken_port_is_one_line(page: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "customized_grpo", "demo", "--port", str(urlsplit(page).port)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "give another --host or --port" in line


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_it_fits_the_screen_and_can_be_read(opened: Any, tmp_path: Path, width: int, dark: bool) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.refresh()
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#photos input[type=file]"))
    left = "return document.querySelector('#heading').getBoundingClientRect().left"
    before = opened.execute_script(left)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), "red").save(photo)
    upload(opened, photo)
    until(opened, lambda: rewritten(opened, 1))
    write(opened, "a dog")
    press_draw(opened)
    until(opened, lambda: opened.find_elements(By.CSS_SELECTOR, "#results figure img"))
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    assert opened.execute_script("return document.body.classList.contains('dark')") is dark
    assert opened.execute_script(left) == before, "nothing moves when pictures arrive"
    lowest = opened.execute_script(CONTRASTS, "#heading, #results")
    assert lowest[0][0] >= 4.5, lowest
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
