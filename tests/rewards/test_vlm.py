"""The reward `vlm` with servers that answer by a script, and one of a tiny model."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tiny_rewards
import torch
from PIL import Image, ImageColor
from servers import Scripted, completion, hang_up, reply
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.vlm import IDENTITY_INSTRUCTION, PROMPT_INSTRUCTION, Vlm

MakePair = Callable[..., Pair]
KEY = "sk-do-not-tell-0123456789"
COLOURS = ("red", "blue", "white", "purple", "orange", "teal")
PAIR = Pair("a", "a cat", (), ())


@pytest.fixture(autouse=True)
def _no_real_cache_or_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def colours(*names: str) -> Tensor:
    shown = [np.array(Image.new("RGB", (40, 32), name), np.float32) / 255 for name in names]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)


def build(url: str, role: str = "prompt", path: str = "tiny", **options: Any) -> Vlm:
    config = RewardConfig(kind="vlm", role=role, path=path, options={"url": url, "backoff": 0.01, **options})
    reward = build_reward(config, "cpu")
    assert isinstance(reward, Vlm)
    return reward


def shown_in(request: dict[str, Any]) -> tuple[list[Image.Image], str]:
    """Return the images of a request and all its text."""
    decoded, texts = [], []
    for message in request["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                decoded.append(Image.open(io.BytesIO(base64.b64decode(data))))
    return decoded, "\n".join(texts)


def is_red(body: bytes) -> bool:
    return shown_in(json.loads(body))[0][0].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("role", ["identity", "prompt"])
def test_each_image_has_the_score_of_its_answer(role: str, make_pair: MakePair) -> None:
    requests: list[dict[str, Any]] = []
    scores = {ImageColor.getrgb(colour): i % 5 for i, colour in enumerate(COLOURS)}

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        request = json.loads(body)
        requests.append(request)
        colour = shown_in(request)[0][-1].getpixel((0, 0))
        reply(handler, 200, completion(json.dumps({"score": scores[colour]})))

    pair = make_pair("a", 1, ((48, 40), (20, 30)))
    with Scripted(behave) as server:
        found = build(server.url, role)(colours(*COLOURS), [pair] * len(COLOURS))
    assert found.dtype == torch.float32 and found.tolist() == list(scores.values())
    schema = requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"]["enum"] == [0, 1, 2, 3, 4]
    decoded, text = shown_in(requests[0])
    if role == "identity":
        assert IDENTITY_INSTRUCTION in text and pair.prompt not in text and len(decoded) == 3
        for sent, reference in zip(decoded[:2], pair.references, strict=True):  # the subject on white
            assert sent.size == reference.size and sent.getpixel((0, 0)) == (255, 255, 255)
            middle = (reference.width // 2, reference.height // 2)
            assert sent.getpixel(middle) == reference.getpixel(middle)
    else:
        assert PROMPT_INSTRUCTION in text and pair.prompt in text and len(decoded) == 1


def test_logprobs_give_the_expectation_over_the_digits(caplog: pytest.LogCaptureFixture) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        request = json.loads(body)
        assert request["logprobs"] is True and request["top_logprobs"] == 20 and request["max_tokens"] == 1
        chances = {"3": 0.01} if is_red(body) else {" 3": 0.3, "3": 0.1, "4": 0.2, "x": 0.4}
        listed = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
        reply(handler, 200, json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}))

    with Scripted(behave) as server:
        reward = build(server.url, answer="logprobs", retries=0, question="{prompt}?", instruction="Rate.")
        found = reward(colours("red", "blue"), [PAIR] * 2).tolist()
    assert found == pytest.approx([math.nan, (3 * 0.4 + 4 * 0.2) / 0.6], nan_ok=True)
    assert "the digits 0 to 4 have 1.0% of the first token's probability together" in caplog.text


@pytest.mark.slow
def test_transformers_serve_is_read_as_text(tmp_path: Path) -> None:
    folder = tiny_rewards.llava(tmp_path / "llava")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "log").open("wb") as out:
        server = subprocess.Popen([*command, *options], stdout=out, stderr=out)
    try:
        for _ in range(3000):
            assert server.poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            time.sleep(0.1)
        options = {"answer": "text", "request": {"max_tokens": 1}, "timeout": 60.0}
        reward = build(f"http://127.0.0.1:{port}/v1", path=str(folder), **options)
        assert set(reward(colours(*COLOURS), [PAIR] * len(COLOURS)).tolist()) <= {0, 1, 2, 3, 4}
    finally:
        server.kill()
        server.wait()


def test_answers_are_cached_by_content(tmp_path: Path, make_pair: MakePair) -> None:
    cache = tmp_path / "cache"
    with Scripted(lambda handler, number, _: reply(handler, 200, completion(f'{{"score": {number % 5}}}'))) as server:
        options = {"concurrency": 1, "cache": str(cache)}
        reward, pairs = build(server.url, **options), [make_pair("a", 1), make_pair("b", 2)]
        images = colours("red", "red", "blue")
        assert reward(images, [pairs[0], pairs[0], pairs[1]]).tolist() == [0, 0, 1] and len(server.times) == 2
        again = build(server.url, **options)
        assert again(images, [make_pair("other key", 1), pairs[0], pairs[1]]).tolist() == [0, 0, 1]
        assert len(server.times) == 2, "equal content under another key"
        files = sorted(cache.rglob("*.json"))
        assert len(files) == 2
        for damage in (b"", b'{"score": "3"}', b"[]", b'{"score": 7}', b"\xff"):
            for file in files:
                file.write_bytes(damage)
            requested = len(server.times)
            scores = again(images, [pairs[0], pairs[0], pairs[1]]).tolist()
            assert len(server.times) == requested + 2 and scores == [requested % 5, requested % 5, (requested + 1) % 5]
        changes: list[dict[str, Any]] = [{"question": "{prompt}!"}, {"instruction": "Rate."}, {"request": {"seed": 1}}]
        for changed in (*changes, {"path": "other"}, {"role": "identity"}):
            requested = len(server.times)
            build(server.url, **{**options, **changed})(images[:1], pairs[:1])
            assert len(server.times) == requested + 1, changed


def test_a_cache_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with Scripted(lambda handler, number, body: reply(handler, 200, completion('{"score": 2}'))) as server:
        reward = build(server.url, cache=str(tmp_path / "file"))
        assert reward(colours("red", "blue"), [PAIR] * 2).tolist() == [2, 2]
    assert len(caplog.records) == 1 and "cannot be cached" in caplog.text


@pytest.mark.parametrize(
    ("failure", "least"),
    [
        (lambda handler: reply(handler, 429, "{}", Retry_After="0.2"), 0.2),
        (lambda handler: reply(handler, 429, "{}", Retry_After=formatdate(time.time() + 2, usegmt=True)), 0.9),
        (lambda handler: reply(handler, 500, "no"), 0.0),
        (lambda handler: reply(handler, 200, completion("I would say 3 or 4")), 0.0),
        (lambda handler: reply(handler, 200, completion('{"score": 7}')), 0.0),
        (hang_up, 0.0),
    ],
    ids=["429", "429-date", "500", "prose", "out of range", "closed"],
)
def test_a_failed_request_is_retried(failure: Callable[[BaseHTTPRequestHandler], None], least: float) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        failure(handler) if number == 0 else reply(handler, 200, completion('```json\n{"score": 3}\n```'))

    with Scripted(behave) as server:
        assert build(server.url)(colours("red"), [PAIR]).tolist() == [3]
        assert len(server.times) == 2 and server.times[1] - server.times[0] >= least


def test_each_attempt_has_a_timeout_for_the_whole_answer() -> None:
    """The first attempt gets no byte, the second one byte after the other."""
    done = threading.Event()

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        if number == 0:
            done.wait(60)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has closed the connection
            while not done.wait(0.02):
                handler.wfile.write(b" ")

    with Scripted(behave) as server:
        with pytest.raises(RewardError, match=r"no whole answer within 0.5 s"):
            build(server.url, timeout=0.5, retries=1)(colours("red"), [PAIR])
        assert len(server.times) == 2
        done.set()


@pytest.mark.parametrize(
    ("answer", "status", "text", "message"),
    [
        ("logprobs", 200, completion("3"), r"no token probabilities; set options\.answer to json or text"),
        ("json", 200, completion("a fine picture"), r"JSONDecodeError: .*; correct the reward's options"),
        ("text", 200, completion("3 or 4"), "'3 or 4' is not one digit from 0 to 4"),
        ("json", 400, '{"error": {"message": "cannot identify image"}}', "HTTP 400: cannot identify image"),
    ],
)
def test_an_image_without_a_usable_answer_has_no_score(
    answer: str, status: int, text: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also alone, as in a resumed run whose other answers are cached."""
    good = {"logprobs": [{"token": "1", "logprob": 0.0}]}
    logprobs = {"content": [{"top_logprobs": good["logprobs"]}]}
    content = '{"score": 1}' if answer == "json" else "1"
    scored = json.dumps({"choices": [{"message": {"content": content}, "logprobs": logprobs}]})

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        reply(handler, status, text) if is_red(body) else reply(handler, 200, scored)

    with Scripted(behave) as server:
        for requested in (2, 1):
            caplog.clear()
            reward = build(server.url, answer=answer, retries=0, cache=str(tmp_path / "cached"))
            refused, score = reward(colours("red", "blue"), [PAIR] * 2).tolist()
            assert math.isnan(refused) and score == 1
            (line,) = [record.getMessage() for record in caplog.records]
            assert re.search(f"{1} of {requested} images have no score from {server.url} .*{message}", line), line
            assert "\n" not in line


@pytest.mark.parametrize("status", [429, 0], ids=["429", "closed"])
def test_a_server_that_fails_for_all_ends_the_run(status: int, caplog: pytest.LogCaptureFixture) -> None:
    own = False

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        if own and is_red(body):
            reply(handler, 400, "cannot identify image")
        else:
            reply(handler, status, "no") if status else hang_up(handler)

    with Scripted(behave) as server:
        reward = build(server.url, retries=0)
        with pytest.raises(RewardError, match=f"nothing is scored by {server.url}"):
            reward(colours("blue", "red"), [PAIR] * 2)
        own = True
        assert all(map(math.isnan, reward(colours("blue", "red"), [PAIR] * 2).tolist()))
    assert "2 of 2 images have no score" in caplog.text


def test_a_refused_key_ends_all_at_once() -> None:
    with Scripted(lambda handler, number, body: reply(handler, 401, '{"error": {"message": "who?"}}')) as server:
        with pytest.raises(RewardError, match=r"HTTP 401: who\?.*set OPENAI_API_KEY in the environment"):
            build(server.url, concurrency=1)(colours("red", "blue", "teal"), [PAIR] * 3)
        assert len(server.times) == 1


def test_requests_are_concurrent_and_limited() -> None:
    together = threading.Barrier(3, timeout=60)  # breaks, and no answer comes, if there are never three requests
    lock, now, most = threading.Lock(), 0, 0

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()
        with lock:
            now -= 1  # before the answer, after which the next request may come
        reply(handler, 200, completion('{"score": 4}'))

    with Scripted(behave) as server:
        build(server.url, concurrency=3)(colours(*COLOURS), [PAIR] * len(COLOURS))
        assert most == 3 and len(server.times) == len(COLOURS)
        began = time.monotonic()
        build(server.url, requests_per_minute=1200, cache=None)(colours(*COLOURS), [PAIR] * len(COLOURS))
        assert server.times[-1] - began >= 5 * 0.05, "1200 a minute are 50 ms apart"


def test_the_key_is_sent_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        # Servers quote the key that they refuse.
        reply(handler, (200, 500, 403)[number], completion('{"score": 1}') if number == 0 else f"bad {KEY}")

    with Scripted(behave) as server:
        options = {"key_variable": "MY_KEY", "cache": str(tmp_path / "cached"), "retries": 0, "concurrency": 1}
        reward = build(server.url, **options)
        shown = [str(reward(colours("red", "blue"), [PAIR] * 2).tolist())]
        with pytest.raises(RewardError) as caught:
            reward(colours("orange"), [PAIR])
        shown += [str(caught.value), str(caught.getrepr(showlocals=True)), repr(reward)]
        shown += [repr(reward._endpoint._client.headers)]
        assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 3
    cached = [file.read_text() for file in (tmp_path / "cached").rglob("*.json")]
    assert cached and "[MY_KEY]" in caplog.text + "".join(shown)
    assert KEY not in "".join([*shown, *cached, caplog.text])


@pytest.mark.parametrize(
    ("role", "path", "options", "message"),
    [
        ("guard", "m", {}, "scores identity or prompt, not the role 'guard'"),
        ("prompt", None, {}, "no path; give the model's name"),
        ("prompt", "m", {"url": "ftp://host"}, "give one such as http://host:8000"),
        ("prompt", "m", {"url": f"http://host/v1?key={KEY}"}, "may hold no password and no query"),
        ("prompt", "m", {"question": "Good?"}, "options.question lacks {prompt}"),
        ("prompt", "m", {"key_variable": "BAD_KEY"}, "BAD_KEY contains characters that no key has"),
        ("prompt", "m", {"url": "http://127.0.0.1:9"}, "no model is served by http://127.0.0.1:9 .*start the server"),
    ],
)
def test_wrong_options_are_refused_when_built(
    role: str, path: str | None, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEY", f"{KEY}\nX-Other: 1")
    config = RewardConfig(kind="vlm", role=role, path=path, options={"url": "http://127.0.0.1:9", **options})
    with pytest.raises(RewardError, match=message) as caught:
        build_reward(config, "cpu")
    assert KEY not in str(caught.value)


def test_the_request_has_reduced_images_the_prompt_as_it_is_and_own_fields() -> None:
    bodies: list[dict[str, Any]] = []

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        bodies.append(json.loads(body))
        reply(handler, 200, completion('{"score": 1}'))

    with Scripted(behave) as server:
        reward = build(server.url, longest=16, request={"max_tokens": None, "max_completion_tokens": 9})
        reward(torch.rand(1, 3, 64, 32), [Pair("a", "a {subject} in {prompt}", (), (), "cat")])
        with pytest.raises(RewardError, match="pair 'a' has no reference"):
            build(server.url, "identity")(colours("red"), [PAIR])
    decoded, text = shown_in(bodies[0])
    assert decoded[0].size == (8, 16) and '"a {subject} in {prompt}"' in text and len(bodies) == 1
    assert "max_tokens" not in bodies[0] and bodies[0]["max_completion_tokens"] == 9
