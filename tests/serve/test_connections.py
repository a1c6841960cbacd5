"""Clients that send nothing, or half a request, are disconnected; others are served for as long as they like."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from customized_grpo.serve import connections


async def slow(scope: Any, receive: Any, send: Any) -> None:
    time.sleep(0.6)  # longer than the limit
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connections, "SECONDS", 0.3)
    listening = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(
        slow, http=connections.TimedProtocol, ws="none", lifespan="off", log_config=None, limit_concurrency=3
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(20)


def test_silent_clients_leave_their_places_to_others(port: int) -> None:
    clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(4)]
    clients[0].sendall(b"GET / HTTP/1.1\r\nHost: a")
    assert [client.recv(100) for client in clients] == [b""] * 4, "all are disconnected"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for _ in range(2):  # also the second request of a connection
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                part = client.recv(1000)
                assert part, answer
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HTTP/1.1\r\nHost: a")
        assert client.recv(100) == b"", "half of a third one"
