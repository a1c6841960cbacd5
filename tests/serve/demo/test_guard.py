"""Only requests with the token reach the demo, with limited bytes and time. Gradio is not needed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
from servers import serving
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from customized_grpo.config import ConfigError
from customized_grpo.serve.demo.guard import TOKEN_VARIABLE, Guard, read_token

TOKEN = "token-of-the-demo-1234"
OPEN = ("/gradio_api/startup-events", "/manifest.json")
COOKIE = {"Cookie": f"cgrpo-demo-7860={TOKEN}"}


async def length(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def events(request: Request) -> StreamingResponse:
    """Stream for longer than a request may take to arrive."""

    async def parts() -> AsyncIterator[str]:
        for i in range(3):
            await asyncio.sleep(0.2)
            yield str(i)

    return StreamingResponse(parts())


async def accept(socket: WebSocket) -> None:
    await socket.accept()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    paths = ("/", "/page", "/gradio_api/upload", *OPEN, "/file/manifest.json")
    app = Starlette(
        routes=[
            *(Route(path, length, methods=["GET", "POST"]) for path in paths),
            Route("/events", events),
            WebSocketRoute("/socket", accept),
        ],
        middleware=[Middleware(Guard, token=TOKEN, port=7860, most=1000, arrival=0.4)],
    )
    with serving(app) as address:
        yield address


def raw(url: str, request: str) -> bytes:
    """Send text as it is, and return the first line of the answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        return connection.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "cookie", ["", f"cgrpo-demo-7860={TOKEN}x", f"cgrpo-demo-7861={TOKEN}", 'a="b; cgrpo-demo-7860']
)
@pytest.mark.parametrize("path", ["/", "/gradio_api/upload", "/?token=no", "/nowhere", "/file/manifest.json"])
def test_requests_without_the_token_are_refused(url: str, path: str, cookie: str) -> None:
    for method in ("GET", "POST"):
        answer = httpx2.request(method, url + path, headers={"Cookie": cookie, "Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 401 and "open the address that cgrpo demo has printed" in answer.text
        assert TOKEN not in answer.text and "set-cookie" not in answer.headers


def test_the_token_in_the_address_becomes_a_cookie(url: str) -> None:
    first = httpx2.get(f"{url}/page?a=1&token={TOKEN}&b=x%26y")
    assert first.status_code == 303 and first.headers["location"] == "/page?a=1&b=x%26y"
    cookie = first.headers["set-cookie"]
    assert f"cgrpo-demo-7860={TOKEN}" in cookie and "HttpOnly" in cookie and "SameSite=lax" in cookie
    page = httpx2.get(f"{url}/page", headers={"Cookie": cookie.partition(";")[0]})
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert httpx2.get(f"{url}//elsewhere.example/?token={TOKEN}").headers["location"] == "/elsewhere.example/"
    assert httpx2.post(f"{url}/?token={TOKEN}").status_code == 401, "a form of another site"
    assert all(httpx2.get(url + path).status_code == 200 for path in OPEN)
    upgrade = "Upgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n"
    upgrade += "Sec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\n"
    assert b" 101 " not in raw(url, f"GET /socket HTTP/1.1\nHost: x\n{upgrade}\n")


def test_requests_are_limited_in_bytes_and_time(url: str) -> None:
    assert httpx2.post(f"{url}/", content=b"x" * 1000, headers=COOKIE).text == "1000"
    answer = httpx2.post(f"{url}/", content=b"x" * 1001, headers=COOKIE)
    assert answer.status_code == 413 and answer.text == "more than 1000 bytes"
    assert httpx2.post(f"{url}/gradio_api/upload", content=b"x" * 5000, headers=COOKIE).text == "5000"
    head = f"POST / HTTP/1.1\nHost: x\nCookie: {COOKIE['Cookie']}\nContent-Length: 9\n\nx"
    assert b" 408 " in raw(url, head)
    assert httpx2.get(f"{url}/events", headers=COOKIE).text == "012", "an answer may take longer"


def test_a_token_is_long_and_new_at_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token() != read_token() and len(read_token()) >= 32
    monkeypatch.setenv(TOKEN_VARIABLE, f" {TOKEN}\n")
    assert read_token() == TOKEN
    for bad in ("short", "with spaces in it, and long", "naïve-token-of-letters", "semicolon;semicolon;"):
        monkeypatch.setenv(TOKEN_VARIABLE, bad)
        with pytest.raises(ConfigError, match=TOKEN_VARIABLE) as caught:
            read_token()
        assert bad not in str(caught.value)
