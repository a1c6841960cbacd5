"""HTTP client of rewards that are computed elsewhere. Failed requests are retried; no message shows the key."""

import asyncio
import ipaddress
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, TypeVar

import httpx2
from pydantic import Field
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from customized_grpo.rewards.base import run_in_loop
from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.named import error_text

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: Types of the options that every reward with an endpoint has.
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Retries = Annotated[int, Field(ge=0)]

_LONGEST_WAIT = 300.0  # seconds between two attempts
_SERVER = "start the server, correct options.url or raise options.timeout"
_REQUEST = "correct the reward's options, or look at the server's log"


@dataclass(eq=False)
class CallError(Exception):
    """A failed request.

    Its text, without the key, and its remedy are shown. `retry`: another attempt may succeed, after `wait` seconds if
    the server asks for it. `fatal`: all other requests will fail, too. `own`: the server works, but could not score the
    images of this request.
    """

    message: str
    remedy: str
    status: int | None = None
    answer: bytes = field(default=b"", repr=False)  # may quote the key
    retry: bool = False
    wait: float | None = None
    fatal: bool = False
    own: bool = False

    def __str__(self) -> str:
        return " ".join(self.message.split())[:500]


class Endpoint:
    """A server that scores images, at an address without password and query, which would show up in logs.

    The key in the environment variable is sent as a bearer token. `timeout` seconds bound each attempt as a whole.
    After `backoff` seconds comes the first retry; each further one waits twice as long, or as `Retry-After` says.
    `check` gets the headers of each answer that will not be retried, and raises CallError. RewardError if URL or key
    cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        key_variable: str,
        key_required: bool = False,
        timeout: float,
        retries: int,
        backoff: float,
        concurrency: int,
        requests_per_minute: float | None = None,
        headers: dict[str, str] | None = None,
        check: Callable[[httpx2.Headers], None] = lambda headers: None,
    ) -> None:
        self.url = _checked_url(url, name)
        self._name, self._variable, self._check = name, key_variable, check
        self._key = read_key(key_variable, f"reward {name!r}", required=key_required)
        self._timeout, self._backoff = timeout, backoff
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._slots = asyncio.Semaphore(concurrency)
        self._attempts = AsyncRetrying(
            stop=stop_after_attempt(retries + 1),
            wait=self._wait,
            retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.retry),
            reraise=True,
        )
        bearer = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # A proxy of the environment must neither get the key for a server of this machine, nor could it reach it.
        self._client = httpx2.AsyncClient(
            headers={**(headers or {}), **bearer}, timeout=timeout, trust_env=not _is_local(httpx2.URL(self.url).host)
        )

    def get(self, path: str, read: Callable[[bytes], T]) -> T:
        """Return `read` of the answer to one GET request. Raises CallError."""
        return run_in_loop(self._request("GET", path, None, read))

    async def post(self, path: str, body: bytes, read: Callable[[bytes], T]) -> T:
        """Return `read` of the answer to a JSON body. A ValueError of `read` is a failed attempt. Raises CallError."""
        attempts = self._attempts.copy()  # its state is that of one call
        return await attempts(self._request, "POST", path, body, read)

    def scores(self, calls: Sequence[Coroutine[Any, Any, list[float]]], sizes: Sequence[int]) -> list[float]:
        """Run calls concurrently and return their scores in order; `sizes` are the numbers of scores.

        A call that fails by CallError leaves NaN for its images; one warning reports all failures. Raises RewardError
        if a failure is fatal, or no call succeeds and the server is at fault.
        """
        return run_in_loop(self._scores(calls, sizes))

    def error(self, error: CallError, what: str = "nothing is scored") -> RewardError:
        """Return the error of a reward that cannot use this endpoint."""
        return RewardError(f"reward {self._name!r}: {what} by {self.url} ({error}); {error.remedy}")

    async def _scores(self, calls: Sequence[Coroutine[Any, Any, list[float]]], sizes: Sequence[int]) -> list[float]:
        failures: list[tuple[CallError, int]] = []

        async def attempt(call: Coroutine[Any, Any, list[float]], size: int) -> list[float]:
            try:
                return await call
            except CallError as error:
                if error.fatal:
                    raise
                failures.append((error, size))
                return [math.nan] * size

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(attempt(*one)) for one in zip(calls, sizes, strict=True)]
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            raise self.error(first) if isinstance(first, CallError) else first from None
        scores = [score for task in tasks for score in task.result()]
        if failures:
            error = failures[0][0]
            # A resumed run may request only the one image that the server cannot score: the server itself works.
            if len(failures) == len(calls) and not any(failure.own for failure, _ in failures):
                raise self.error(error)
            _log.warning(
                "reward %r: %d of %d images have no score from %s (%s); %s",
                *(self._name, sum(size for _, size in failures), len(scores), self.url, error, error.remedy),
            )
        return scores

    async def _request(self, method: str, path: str, body: bytes | None, read: Callable[[bytes], T]) -> T:
        async with self._slots:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._interval
            await asyncio.sleep(start - now)
            try:
                async with asyncio.timeout(self._timeout):  # httpx limits the time between two bytes only
                    response = await self._client.request(
                        method, f"{self.url}/{path}", content=body, headers={"Content-Type": "application/json"}
                    )
            except TimeoutError:
                raise CallError(f"no whole answer within {self._timeout:g} s", _SERVER, retry=True) from None
            except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
                raise CallError(self._redacted(error_text(error)), _SERVER, retry=True) from error
        again = response.status_code in (408, 425, 429) or response.status_code >= 500
        if not again:
            self._check(response.headers)
        if not response.is_success:
            raise self._refusal(response, again)
        try:
            return read(response.content)
        except ValueError as error:
            remedy = "correct the reward's options, or look at the server's answer"
            raise CallError(self._redacted(error_text(error)), remedy, retry=True, own=True) from error

    def _refusal(self, response: httpx2.Response, again: bool) -> CallError:
        status, text = response.status_code, self._redacted(_error_text(response.content))
        fatal = status in (401, 403, 404)
        return CallError(
            f"HTTP {status}: {text[:300]}" if text else f"HTTP {status}",
            f"set {self._variable} in the environment to the right key" if status in (401, 403) else _REQUEST,
            status=status,
            answer=response.content,
            retry=again,
            wait=_retry_after(response.headers.get("Retry-After")),
            fatal=fatal,
            own=not again and not fatal,
        )

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        wait = error.wait if isinstance(error, CallError) else None
        if wait is None:  # the system's random source, which changes no seed of the training
            wait = self._backoff * 2 ** (state.attempt_number - 1) * random.SystemRandom().uniform(0.5, 1)
        return min(wait, _LONGEST_WAIT)

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, f"[{self._variable}]") if self._key else text


def read_key(variable: str, who: str, *, required: bool) -> str:
    """Return the key in an environment variable, "" if there is none. Raises RewardError, which never shows it."""
    key = os.environ.get(variable, "").strip()
    if not key and required:
        raise RewardError(f"{who}: the environment variable {variable} is not set; set it to the shared token")
    if not (key.isascii() and key.isprintable()) or " " in key:  # the header's own error would show it
        raise RewardError(f"{who}: {variable} contains characters that no key has; set it again")
    return key


def _is_local(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _checked_url(url: str, name: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        raise RewardError(f"reward {name!r}: options.url is no address; give one such as http://host:8000") from None
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise RewardError(
            f"reward {name!r}: options.url may hold no password and no query; put the key into the environment"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RewardError(f"reward {name!r}: options.url is {url!r}; give one such as http://host:8000")
    return str(parsed).rstrip("/")


def _error_text(answer: bytes) -> str:
    """Return the message of an error, which OpenAI's API and FastAPI put into JSON."""
    text = answer[:10_000].decode("utf-8", "replace").strip()
    with suppress(ValueError, RecursionError):
        error = json.loads(text)
        for key in ("error", "detail", "message"):
            error = error.get(key, error) if isinstance(error, dict) else error
        return str(error)
    return text


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or a date."""
    with suppress(ValueError, TypeError):
        return max(0.0, float(text or ""))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text or "").timestamp() - time.time())
    return None
