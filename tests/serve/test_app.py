"""Refusals of the reward server: strangers, other versions, too much of anything, and damaged images."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest
from PIL import Image, PngImagePlugin
from servers import bomb, serving
from torch import Tensor

from customized_grpo.protocols import Pair
from customized_grpo.rewards.wire import PROTOCOL, PROTOCOL_HEADER, Budget, Limits, Offer, decode, digest, encode
from customized_grpo.serve.app import build_app

TOKEN = "the-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}", PROTOCOL_HEADER: str(PROTOCOL)}
LIMITS = Limits(images=3, pixels=64 * 64, bytes=20_000)
FLAT = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(4)]  # too many pixels together
IMAGE_FILE = Image.linear_gradient("L").resize((8, 6)).convert("RGB")


class Counting:
    name = "mean"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        self.calls += 1
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Counting, str]]:
    reward = Counting()
    offer = Offer(name="mean", kind="custom", role="prompt")
    with serving(build_app([(offer, reward)], TOKEN, LIMITS, keep=10_000, arrival=1.0)) as url:
        yield reward, url


def png(image: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return base64.b64encode(buffer.getvalue()).decode()


def large(side: int) -> str:
    return base64.b64encode(bomb(side)).decode()


def request(**changed: Any) -> dict[str, Any]:
    name = digest(IMAGE_FILE)
    pair = {"key": "a", "prompt": "a cat", "references": [name], "masks": [None], "subject": None}
    whole = {
        "reward": "mean",
        "images": [encode(IMAGE_FILE)],
        "pairs": [pair],
        "pair_of": [0],
        "photos": {name: encode(IMAGE_FILE)},
    }
    return {**whole, **changed}


def pair_with(**changed: Any) -> list[dict[str, Any]]:
    return [{**request()["pairs"][0], **changed}]


def post(url: str, body: Any, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{url}/score", content=content, headers={**HEADERS, **headers}, timeout=60)


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ({"Authorization": f"Bearer {TOKEN}x"}, 401, "wrong or missing token"),
        ({"Authorization": f"Basic {TOKEN}"}, 401, "wrong or missing token"),
        ({PROTOCOL_HEADER: "99"}, 400, f"the client uses protocol 99, this server {PROTOCOL}"),
    ],
)
def test_strangers_and_other_versions_are_refused(
    given: dict[str, str], status: int, message: str, served: tuple[Counting, str]
) -> None:
    reward, url = served
    before = reward.calls
    headers = {**HEADERS, **given}
    asked = [httpx2.get(f"{url}/{path}", headers=headers) for path in ("rewards", "x")]
    for answer in (post(url, request(), **given), *asked):
        assert answer.status_code == status and message in answer.json()["detail"]
        assert TOKEN not in answer.text and answer.headers[PROTOCOL_HEADER] == str(PROTOCOL)
    assert reward.calls == before


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"[" * 9000, 400, "no request of protocol"),
        (request(extra=1), 400, "extra: Extra inputs"),
        (request(reward="other"), 404, "no reward 'other'; there are mean"),
        (request(images=[], pair_of=[]), 400, "images: List should have at least 1 item"),
        (request(images=[encode(IMAGE_FILE)] * 4, pair_of=[0] * 4), 413, "4 images; at most 3 are accepted"),
        (request(pair_of=[-1]), 400, "pair_of"),
        (request(pairs=pair_with(masks=[])), 400, "as many masks"),
        (request(pairs=pair_with(references=["../../etc/passwd"])), 400, "should match pattern"),
        (request(pairs=pair_with(references=["0" * 64])), 409, None),
        (request(images=["no base64!"]), 400, "not a PNG in base64"),
        (request(images=[png(IMAGE_FILE, format="GIF")]), 400, "not a PNG in base64"),
        (request(images=[png(IMAGE_FILE.convert("RGBA"))]), 400, "a PNG of mode RGBA"),
        (request(images=[encode(IMAGE_FILE), encode(IMAGE_FILE.resize((4, 4)))], pair_of=[0, 0]), 400, "of one size"),
        (request(images=[large(65)]), 400, "an image of 65 x 65 pixels; at most 4096"),
        (request(images=[large(50_000)]), 400, "not a PNG in base64 \\(Decompression|50000 x 50000"),
        (request(photos={digest(IMAGE_FILE): large(3000)}), 400, "an image of 3000 x 3000"),
        (request(photos={"0" * 64: encode(IMAGE_FILE)}), 400, "do not match its name"),
        (request(photos={digest(one): encode(one) for one in FLAT}), 400, "; at most "),
    ],
)
def test_wrong_or_large_requests_are_refused(
    body: Any, status: int, message: str | None, served: tuple[Counting, str]
) -> None:
    answer = post(served[1], body)
    assert answer.status_code == status, answer.text
    if message is None:
        assert answer.json() == {"detail": {"missing": ["0" * 64]}}
    else:
        assert re.search(message, answer.json()["detail"]) and "\n" not in answer.json()["detail"]


def begin(url: str, length: int, body: str = "") -> socket.socket:
    """A connection with a request that promises a body of that length, and has sent the beginning of it."""
    host, port = url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=60)
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    line.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {length}\r\n\r\n{body}".encode())
    return line


def test_a_body_of_too_many_bytes_is_refused_without_reading_it(served: tuple[Counting, str]) -> None:
    url = served[1]
    chunked = httpx2.post(f"{url}/score", content=(b" " * 1000 for _ in range(21)), headers=HEADERS, timeout=60)
    assert chunked.status_code == 413 and "more than 20000" in chunked.json()["detail"]
    with begin(url, 999999) as line:
        assert b" 413 " in line.recv(1000).split(b"\r\n")[0]


def test_a_body_that_does_not_arrive_blocks_nobody(served: tuple[Counting, str]) -> None:
    lines = [begin(served[1], 100, "{") for _ in range(4)]
    try:
        assert post(served[1], request()).status_code == 200
        assert b" 408 " in lines[0].recv(1000).split(b"\r\n")[0]
    finally:
        for line in lines:
            line.close()


def test_text_in_a_image_does_not_unpack_without_bound() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 80_000_000, zip=True)
    with pytest.raises(ValueError, match="not a PNG in base64"):
        decode(png(Image.new("L", (1, 1)), pnginfo=info), Budget(4096, 4096))
