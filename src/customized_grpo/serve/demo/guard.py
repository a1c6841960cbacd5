"""Middleware that checks who may use the page and limits requests, before Gradio reads them."""

import asyncio
import hmac
import os
import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from customized_grpo.config import ConfigError

#: Environment variable of the token. Without it, each start has a new token.
TOKEN_VARIABLE = "CGRPO_DEMO_TOKEN"  # noqa: S105 - a name
MOST_BYTES = 2**20  #: of a request that is no upload: the page sends text and names of files
ARRIVAL = 60.0  #: seconds that a request may take to arrive
_UPLOADS = "/upload"  # end of the path; Gradio limits their bytes
#: Gradio requests the first from itself, and browsers the second without cookies. They change nothing.
_OPEN = ("/gradio_api/startup-events", "/manifest.json")
_REFUSAL = "open the address that cgrpo demo has printed, with its token"
_HEADERS = {
    # All from this server or inline: whatever Gradio or one of its libraries would load from elsewhere is blocked.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def read_token() -> str:
    """Return the token of the environment, or a new one. ConfigError if it is short or has other characters."""
    given = os.environ.get(TOKEN_VARIABLE, "").strip()
    if given and not re.fullmatch(r"[A-Za-z0-9_-]{16,}", given):
        raise ConfigError(f"{TOKEN_VARIABLE}: give 16 or more letters, digits, - and _, or unset it")
    return given or secrets.token_urlsafe(24)


class Guard:
    """Admit requests with the token only: once as `?token=` in the address, then as a cookie.

    The port is part of the cookie's name, because cookies are shared by all ports. A request, except for uploads, has
    at most `most` bytes, and arrives within `arrival` seconds.
    """

    def __init__(
        self, app: ASGIApp, token: str, port: int, *, most: int = MOST_BYTES, arrival: float = ARRIVAL
    ) -> None:
        self._app, self._token, self._most, self._arrival = app, token, most, arrival
        self._cookie = f"cgrpo-demo-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request with the token on to the application; redirect or refuse any other."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        is_get = scope["type"] == "http" and scope["method"] == "GET"
        if is_get and self._fits(request.query_params.get("token", "")):
            # Neither the browser's history nor a referrer gets the token.
            query = request.url.remove_query_params("token").query
            path = "/" + scope["path"].lstrip("/")  # "//host" would lead to another host
            response = RedirectResponse(path + (f"?{query}" if query else ""), 303)
            response.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
            await response(scope, receive, send)
        elif self._fits(request.cookies.get(self._cookie, "")) or scope["path"] in _OPEN:
            await self._app(scope, self._limited(scope, receive), _with_headers(send))
        elif scope["type"] == "websocket":
            await WebSocketClose(1008, _REFUSAL)(scope, receive, send)
        else:
            await PlainTextResponse(_REFUSAL, 401)(scope, receive, send)

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        end = asyncio.get_running_loop().time() + self._arrival
        left = float("inf") if scope["path"].endswith(_UPLOADS) else self._most
        arriving = scope["type"] == "http"

        async def received() -> Message:
            nonlocal left, arriving
            if not arriving:  # the next message is the client's disconnection
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"did not arrive within {self._arrival:g} s") from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"more than {self._most} bytes")
            arriving = bool(message.get("more_body"))
            return message

        return received


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sent
