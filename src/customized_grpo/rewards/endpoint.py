"""JSON over HTTP for rewards that are worked out elsewhere: retried with back-off, paced, silent about the key."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2

from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.named import told

T = TypeVar("T")
_log = logging.getLogger(__name__)

_LONGEST_WAIT = 300.0  # seconds between two attempts, whatever Retry-After says
_LARGEST_ANSWER = 8 * 2**20  # bytes
_AGAIN = frozenset({408, 425, 429})  # and all from 500: worth another attempt
_HOPELESS = frozenset({401, 403, 404})  # no other request will fare better


class CallError(Exception):
    """A request that failed for good; its text is one line without the key.

    `status` and `answer` are what the server said, where it said anything. `hopeless` means that every other
    request would fail alike; `own`, that the server is at work and got no score out of this one. `remedy` is known
    to whoever raises it, or follows from the status.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        answer: bytes = b"",
        hopeless: bool = False,
        own: bool = False,
        remedy: str | None = None,
    ) -> None:
        super().__init__(" ".join(message.split())[:500])
        self.status, self.answer, self.remedy = status, answer, remedy
        self.hopeless, self.own = hopeless, own


class Endpoint:
    """A server by its base `url`, and how patiently it is asked.

    Args:
        url: http or https; it may hold neither a password nor a query, which would end up in logs.
        name: the reward's, for messages.
        key_variable: environment variable whose value is sent as a bearer token.
        key_required: whether a variable that is not set is an error; else nothing is sent.
        timeout: seconds of one attempt, from its first byte to the answer's last.
        retries: attempts after the first; each waits twice as long as the one before, or as Retry-After says.
        backoff: seconds before the first of them, drawn between half and all of it.
        concurrency: requests under way at a time.
        requests_per_minute: requests begun at most; null for as many as there are.
        check: looks at the headers of an answer that is no refusal of the moment, and raises CallError.

    Raises RewardError, one line, where an argument cannot be.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        key_variable: str,
        key_required: bool = False,
        timeout: float = 120.0,
        retries: int = 4,
        backoff: float = 0.5,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        headers: dict[str, str] | None = None,
        check: Callable[[httpx2.Headers], None] = lambda headers: None,
    ) -> None:
        self.url = _address(url, name)
        self._name = name
        self._variable = key_variable
        self._key = read_key(key_variable, f"reward {name!r}", required=key_required)
        for option, value, least in (
            ("timeout", timeout, 0.001),
            ("retries", retries, 0),
            ("backoff", backoff, 0),
            ("concurrency", concurrency, 1),
            ("requests_per_minute", 1 if requests_per_minute is None else requests_per_minute, 0.001),
        ):
            check_number(name, option, value, least)
        self._timeout, self._retries, self._backoff = timeout, int(retries), backoff
        self._concurrency = int(concurrency)
        self._pace = _Pace(60 / requests_per_minute if requests_per_minute else 0.0)
        self._check = check
        self._stop = threading.Event()
        # httpx2's own repr of headers hides this one.
        bearer = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(
            headers={**(headers or {}), **bearer},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=self._concurrency),
        )

    def get(self, path: str, read: Callable[[bytes], T]) -> T:
        """`read` of what GET answers, asked once. Raises CallError."""
        return self._persist("GET", path, None, read, 0)

    def post(self, path: str, body: bytes, read: Callable[[bytes], T]) -> T:
        """`read` of what POST of a JSON body answers.

        A ValueError of `read` counts as a failed attempt. Raises CallError where the last attempt fails, or
        the server says that the request itself is wrong.
        """
        return self._persist("POST", path, body, read, self._retries)

    def scores(self, calls: Sequence[Callable[[], list[float]]], sizes: Sequence[int]) -> list[float]:
        """What all calls return, side by side, `sizes[i]` scores of the i-th; NaN for those of a call that fails.

        One warning tells how many failed, why the first did and what may help. Raises RewardError where all do and
        none by a fault of its own (it may be the only call because its siblings' scores are kept), and at once where
        one is hopeless.
        """
        self._stop = stop = threading.Event()

        def made(call: Callable[[], list[float]]) -> list[float]:
            try:
                return call()
            except CallError as error:
                if error.hopeless:
                    stop.set()  # here, or this thread would begin another before it is looked at
                raise

        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix=self._name)
        scores: list[float] = []
        failures: list[tuple[CallError, int]] = []
        try:
            for future, size in zip([pool.submit(made, call) for call in calls], sizes, strict=True):
                try:
                    scores += future.result()
                except CallError as error:
                    if error.hopeless:
                        raise self.failed(error, "nothing is scored") from error
                    failures.append((error, size))
                    scores += [math.nan] * size
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            first = failures[0][0]
            if len(failures) == len(calls) and not any(error.own for error, _ in failures):
                raise self.failed(first, "nothing is scored")
            count = sum(size for _, size in failures)
            _log.warning(
                "reward %r: %d of %d pictures have no score from %s (%s); %s",
                *(self._name, count, len(scores), self.url, first, self._remedy(first)),
            )
        return scores

    def failed(self, error: CallError, what: str) -> RewardError:
        """The RewardError of a reward that gets nothing from here."""
        return RewardError(f"reward {self._name!r}: {what} by {self.url} ({error}); {self._remedy(error)}")

    def _remedy(self, error: CallError) -> str:
        if error.remedy is not None:
            return error.remedy
        if error.status in (401, 403):
            return f"set {self._variable} in the environment to the right key"
        if error.status is None:
            return "start the server, correct options.url or raise options.timeout"
        return "correct the reward's options, or look at the server's log"

    def _persist(self, method: str, path: str, body: bytes | None, read: Callable[[bytes], T], retries: int) -> T:
        stop = self._stop
        for attempt in range(retries + 1):
            self._pace.wait(stop)
            if stop.is_set():
                raise CallError("given up")
            wait = None
            try:
                status, headers, answer = self._once(method, path, body)
                if 200 <= status < 300:
                    return read(answer)
                failure = self._refusal(status, answer)
                if status not in _AGAIN and status < 500:
                    raise failure
                wait = _retry_after(headers.get("Retry-After"))
            except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
                failure = CallError(self._redacted(told(error)))
            except ValueError as error:  # of `read`: something came, but nothing of use
                failure = CallError(
                    self._redacted(told(error)),
                    own=True,
                    remedy="correct the reward's options, or look at what the server says",
                )
            if wait is not None:
                self._pace.pause(min(wait, _LONGEST_WAIT))
            if attempt == retries:
                raise failure
            if wait is None:
                # The system's own source, so that waiting moves no seed of the training.
                share = random.SystemRandom().uniform(0.5, 1.0)
                stop.wait(min(self._backoff * 2**attempt * share, _LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body of one attempt."""
        end = time.monotonic() + self._timeout
        kind = {} if body is None else {"Content-Type": "application/json"}
        with self._client.stream(method, f"{self.url}/{path}", content=body, headers=kind) as response:
            if response.status_code < 500 and response.status_code not in _AGAIN:
                self._check(response.headers)
            answer = bytearray()
            for part in response.iter_bytes():
                answer += part
                if len(answer) > _LARGEST_ANSWER:
                    raise ValueError(f"an answer of more than {_LARGEST_ANSWER} bytes")
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout(f"no whole answer within {self._timeout:g} s")
            return response.status_code, response.headers, bytes(answer)

    def _refusal(self, status: int, answer: bytes) -> CallError:
        said = self._redacted(_said(answer))
        return CallError(
            f"HTTP {status}: {said[:300]}" if said else f"HTTP {status}",
            status=status,
            answer=answer,
            hopeless=status in _HOPELESS,
            own=400 <= status < 500 and status not in _HOPELESS | _AGAIN,
        )

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, f"[{self._variable}]") if self._key else text


class _Pace:
    """Requests begin at least `interval` seconds apart, and none while a server has asked to wait."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._interval
        stop.wait(start - now)

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def read_key(variable: str, who: str, *, required: bool) -> str:
    """The key that an environment variable holds, "" where it holds none. Raises RewardError, which never shows it."""
    key = os.environ.get(str(variable), "").strip()
    if not key and required:
        raise RewardError(f"{who}: the environment variable {variable} is not set; set it to the shared token")
    # Others break the header, in an error that quotes it.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RewardError(f"{who}: {variable} holds characters that no key has; set it anew")
    return key


def check_number(name: str, option: str, value: object, least: float) -> None:
    """Raises RewardError where an option is no number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise RewardError(f"reward {name!r}: options.{option} is {value!r}; give a number from {least:g}")


def _address(url: str, name: str) -> str:
    try:
        parsed = httpx2.URL(url)
        fits = parsed.scheme in ("http", "https") and bool(parsed.host)
    except (httpx2.InvalidURL, TypeError):
        raise RewardError(f"reward {name!r}: options.url is no address; give one such as http://host:8000") from None
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise RewardError(
            f"reward {name!r}: options.url may hold no password and no query; a key belongs in the environment"
        )
    if not fits:
        raise RewardError(f"reward {name!r}: options.url is {url!r}; give one such as http://host:8000")
    return str(parsed).rstrip("/")


def _said(answer: bytes) -> str:
    """What the body of a refusal says: its error's message where it has one, as ours and OpenAI's do."""
    text = answer[:10_000].decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def _retry_after(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
