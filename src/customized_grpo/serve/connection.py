"""Connections that are closed unless a request begins on them in time, so that silent ones take nobody's place."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class PunctualProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type, unused-ignore]
    """uvicorn's own HTTP, which waits for a request's head without end.

    A connection is closed where the head of its first request, or of the next one that has begun, or what is left of
    one that was answered before it had come whole, is not there after `patience` seconds. How long a body may take
    that is being read, its reader says.
    """

    patience = 10.0
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._end is None and not self.transport.is_closing():
            self._end = asyncio.get_running_loop().call_later(self.patience, self.transport.close)

    def _forget(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
