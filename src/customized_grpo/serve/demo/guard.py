"""Who may use the page, and how much and how long a request may be; before Gradio sees any of it."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
from urllib.parse import parse_qsl, urlencode

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from customized_grpo.config import ConfigError

#: Environment variable of the token; without it each start has one of its own.
TOKEN_VARIABLE = "CGRPO_DEMO_TOKEN"  # noqa: S105 - a name
MOST_BYTES = 2**20  #: of a request that is no upload: the page sends texts and names of files
ARRIVAL = 60.0  #: seconds that a request may take to arrive
_SHORTEST = 16  # letters of a token that someone has chosen
_UPLOADS = "/upload"  # the end of their path; Gradio bounds their bytes
#: What Gradio asks itself as it starts, and what a browser asks for without cookies; they tell and change nothing.
_OPEN = ("/gradio_api/startup-events", "/manifest.json")
_REFUSAL = "open the address that cgrpo demo has printed, with its token"


class _Late(Exception):
    pass


class _TooLong(Exception):
    pass


def read_token() -> str:
    """The token of the environment, else a new one. Raises ConfigError where it is short, or holds odd letters."""
    given = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not given:
        return secrets.token_urlsafe(24)
    if len(given) < _SHORTEST or not given.isascii() or not given.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"{TOKEN_VARIABLE}: give {_SHORTEST} letters, digits, - and _ or more, or unset it")
    return given


class Guard:
    """Lets those in who bring the token, by `?token=` in the address once, then by a cookie; no other request.

    Of those, what is longer than `most` bytes or takes longer than `arrival` seconds to come is refused.
    """

    def __init__(
        self, app: ASGIApp, token: str, port: int, *, most: int = MOST_BYTES, arrival: float = ARRIVAL
    ) -> None:
        self._app, self._token, self._most, self._arrival = app, token, most, arrival
        self._cookie = f"cgrpo-demo-{port}"  # cookies know of no ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        given = asked.query_params.get("token")
        if given is not None and scope["type"] == "http" and scope["method"] == "GET" and self._fits(given):
            await self._welcome(scope)(scope, receive, send)
        elif self._fits(asked.cookies.get(self._cookie, "")) or scope["path"] in _OPEN:
            await self._bounded(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008, _REFUSAL)(scope, receive, send)
        else:
            await PlainTextResponse(_REFUSAL, 401)(scope, receive, send)

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _welcome(self, scope: Scope) -> Response:
        """The same address without the token, which is a cookie now: neither history nor referrer keep it."""
        rest = [(key, value) for key, value in parse_qsl(scope["query_string"].decode("latin-1")) if key != "token"]
        path = "/" + scope["path"].lstrip("/")  # "//host" would lead elsewhere
        answer = RedirectResponse(path + (f"?{urlencode(rest)}" if rest else ""), 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
        return answer

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        end = asyncio.get_running_loop().time() + self._arrival
        left = float("inf") if scope["path"].endswith(_UPLOADS) else self._most
        arriving, answered = scope["type"] == "http", False

        async def received() -> Message:
            nonlocal left, arriving
            if not arriving:  # what comes now is that the client is gone
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise _Late from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLong
            arriving = bool(message.get("more_body"))
            return message

        async def sent(message: Message) -> None:
            nonlocal answered
            answered = answered or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, received, sent)
        except (_Late, _TooLong) as error:
            if not answered:
                late = isinstance(error, _Late)
                told = f"not here within {self._arrival:g} s" if late else f"more than {self._most} bytes"
                await PlainTextResponse(told, 408 if late else 413)(scope, receive, send)
