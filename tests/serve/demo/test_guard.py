"""The demo's page is for those who have its token, and takes requests of bounded bytes and time. Without Gradio."""

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
    """Goes on for longer than a request may take to arrive."""

    async def parts() -> AsyncIterator[str]:
        for i in range(5):
            await asyncio.sleep(0.2)
            yield str(i)

    return StreamingResponse(parts())


async def line(socket: WebSocket) -> None:
    await socket.accept()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    paths = ("/", "/page", "/gradio_api/upload", *OPEN, "/file/manifest.json")
    routes = [Route(path, length, methods=["GET", "POST"]) for path in paths]
    app = Starlette(
        routes=[*routes, Route("/events", events), WebSocketRoute("/line", line)],
        middleware=[Middleware(Guard, token=TOKEN, port=7860, most=1000, arrival=0.4)],
    )
    with serving(app) as address:
        yield address


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Cookie": "cgrpo-demo-7860="},
        {"Cookie": f"cgrpo-demo-7860={TOKEN}x"},
        {"Cookie": f"cgrpo-demo-7861={TOKEN}"},
        {"Cookie": 'a="b; cgrpo-demo-7860'},
        {"Authorization": f"Bearer {TOKEN}"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/page", "/gradio_api/upload", "/?token=", "/?token=no", "/nowhere",
                                  "/file/manifest.json"])  # fmt: skip
def test_strangers_see_nothing(url: str, path: str, headers: dict[str, str]) -> None:
    for answer in (httpx2.get(url + path, headers=headers), httpx2.post(url + path, content=b"x", headers=headers)):
        assert answer.status_code == 401 and "open the address that cgrpo demo has printed" in answer.text
        assert TOKEN not in answer.text and "set-cookie" not in answer.headers


def test_the_token_in_the_address_becomes_a_cookie(url: str) -> None:
    first = httpx2.get(f"{url}/page?a=1&token={TOKEN}&b=x%26y")
    assert first.status_code == 303 and first.headers["location"] == "/page?a=1&b=x%26y"
    cookie = first.headers["set-cookie"]
    assert f"cgrpo-demo-7860={TOKEN}" in cookie and "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert httpx2.get(f"{url}/page", headers={"Cookie": cookie.partition(";")[0]}).status_code == 200
    assert httpx2.get(f"{url}//elsewhere.example/?token={TOKEN}").headers["location"] == "/elsewhere.example/"
    assert httpx2.post(f"{url}/?token={TOKEN}").status_code == 401, "a form of another site"


@pytest.mark.parametrize("path", OPEN)
def test_what_is_asked_without_a_cookie_is_answered(url: str, path: str) -> None:
    assert httpx2.get(url + path).status_code == 200


def test_requests_are_bounded_and_uploads_are_gradios(url: str) -> None:
    assert httpx2.post(f"{url}/", content=b"x" * 1000, headers=COOKIE).text == "1000"
    answer = httpx2.post(f"{url}/", content=b"x" * 1001, headers=COOKIE)
    assert answer.status_code == 413 and answer.text == "more than 1000 bytes"
    assert httpx2.post(f"{url}/gradio_api/upload", content=b"x" * 5000, headers=COOKIE).text == "5000"


def test_a_request_that_does_not_come_is_not_waited_for(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nCookie: {COOKIE['Cookie']}\r\nContent-Length: 9\r\n\r\n"
        slow.sendall(head.encode() + b"x")
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]


def test_an_answer_may_take_longer(url: str) -> None:
    assert httpx2.get(f"{url}/events", headers=COOKIE).text == "01234"


def test_a_line_is_refused_too(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as asking:
        asking.sendall(f"GET /line HTTP/1.1\r\nHost: x\r\n{upgrade}\r\n".encode())
        assert b" 101 " not in asking.recv(1000).split(b"\r\n")[0]


def test_a_token_is_long_and_another_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token() != read_token() and len(read_token()) >= 32
    monkeypatch.setenv(TOKEN_VARIABLE, f" {TOKEN}\n")
    assert read_token() == TOKEN
    for bad in ("short", "with spaces in it, and long", "naïve-token-of-letters", "semicolon;semicolon;"):
        monkeypatch.setenv(TOKEN_VARIABLE, bad)
        with pytest.raises(ConfigError, match=TOKEN_VARIABLE) as told:
            read_token()
        assert bad not in str(told.value)
