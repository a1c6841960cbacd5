"""Connections on which nothing comes, or too slowly, are closed; requests that are under way are not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from servers import serving

from customized_grpo.serve.connection import PunctualProtocol

PATIENCE = 0.3


class Hasty(PunctualProtocol):
    patience = PATIENCE


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answers /slow after four times the patience, and all else at once, whatever is still to come."""
    if scope["path"] == "/slow":
        await asyncio.sleep(4 * PATIENCE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(answer, http=Hasty, lifespan="off", ws="none", timeout_keep_alive=60) as url:
        yield int(url.rpartition(":")[2])


def open_line(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def is_closed(line: socket.socket) -> bool:
    """Whether the other side ends it; the wait for that ends after the line's own 20 seconds."""
    try:
        while line.recv(1000):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["no byte", "half a head"])
def test_what_does_not_come_is_not_waited_for(port: int, sent: bytes) -> None:
    with open_line(port) as line:
        line.sendall(sent)
        assert is_closed(line)


def test_nor_is_a_body_that_nobody_reads(port: int) -> None:
    with open_line(port) as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        line.sendall(b"{")
        assert is_closed(line)


def test_a_head_that_drips_in_is_not_either(port: int) -> None:
    with open_line(port) as line:
        line.sendall(b"GET / HTTP/1.1\r\nX: ")
        end = time.monotonic() + 20
        try:
            while time.monotonic() < end:
                line.sendall(b"x")
                time.sleep(0.05)
        except ConnectionError:
            return
    pytest.fail("it was let in for 20 s")


def test_an_answer_that_takes_long_is_waited_for_and_a_second_request_too(port: int) -> None:
    with open_line(port) as line:
        for path in ("/slow", "/"):
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = b""
            while not got.endswith(b"ok"):
                part = line.recv(1000)
                assert part, path
                got += part
            assert got.startswith(b"HTTP/1.1 200")
