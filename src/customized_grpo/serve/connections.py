"""HTTP connections that are closed if no request begins in time."""

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0  #: until the headers of a request are complete


class TimedProtocol(H11Protocol):
    """Uvicorn's protocol with a time limit on the beginning of a request: silent clients take no place for good."""

    _timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; the time limit ends with its headers."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        self._cancel()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        cycle: Any = self.cycle  # of the newest request, None before the first one
        return cycle is None or cycle.response_complete

    def _watch(self) -> None:
        if not self._waits:
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(SECONDS, self._close)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self._waits and not self.transport.is_closing():
            self.transport.close()
