"""The VLM judge against real servers: two of a tiny model, and one that misbehaves on purpose."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from servers import Scripted, completion, hang_up, reply, serving
from tiny_vlm import TinyCompletions, save_vlm
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.vlm import IDENTITY_INSTRUCTION, PROMPT_INSTRUCTION, Vlm

MakePair = Callable[..., Pair]
Behaviour = Callable[[BaseHTTPRequestHandler, int, bytes], None]
KEY = "sk-do-not-tell-0123456789"
COLOURS = ("red", "blue", "white", "purple", "orange", "teal")


@pytest.fixture(autouse=True)
def _no_real_cache_or_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[tuple[TinyCompletions, str]]:
    completions = TinyCompletions(folder)
    with serving(completions.app) as url:
        yield completions, f"{url}/v1"


def pictures(*colours: str) -> Tensor:
    shown = [np.array(Image.new("RGB", (40, 32), colour), np.float32) / 255 for colour in colours]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)


def judge(url: str, role: str = "prompt", path: str = "tiny", **options: Any) -> Vlm:
    config = RewardConfig(kind="vlm", role=role, path=path, options={"url": url, "backoff": 0.01, **options})
    reward = build_reward(config, "cpu")
    assert isinstance(reward, Vlm)
    return reward


def shown_in(request: dict[str, Any]) -> tuple[list[Image.Image], str]:
    """The pictures of a request, decoded, and all its text."""
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


@pytest.mark.parametrize("role", ["identity", "prompt"])
def test_a_schemas_answer_is_the_models_own(role: str, tiny: tuple[TinyCompletions, str], make_pair: MakePair) -> None:
    completions, url = tiny
    pair = make_pair("a", 1, ((48, 40), (20, 30)))
    completions.requests.clear()
    scores = judge(url, role)(pictures(*COLOURS), [pair] * len(COLOURS))
    assert scores.dtype == torch.float32 and scores.shape == (len(COLOURS),)
    asked = {shown_in(request)[0][-1].getpixel((0, 0)): request for request in completions.requests}
    for colour, score in zip(COLOURS, scores.tolist(), strict=True):
        request = asked[Image.new("RGB", (1, 1), colour).getpixel((0, 0))]
        digits = completions.logprobs(request["messages"], '{"score": ')[completions.digits]
        assert score == int(digits.argmax())
    decoded, text = shown_in(completions.requests[0])
    if role == "identity":
        assert IDENTITY_INSTRUCTION in text and pair.prompt not in text
        # The subject on white: the masks mark the middle half.
        for sent, reference in zip(decoded[:2], pair.references, strict=True):
            assert sent.size == reference.size and sent.getpixel((0, 0)) == (255, 255, 255)
            middle = (reference.width // 2, reference.height // 2)
            assert sent.getpixel(middle) == reference.getpixel(middle)
        assert len(decoded) == 3
    else:
        assert PROMPT_INSTRUCTION in text and pair.prompt in text and len(decoded) == 1


def test_logprobs_give_the_expectation_over_the_digits(tiny: tuple[TinyCompletions, str], make_pair: MakePair) -> None:
    completions, url = tiny
    pair = make_pair("a", 1)
    completions.requests.clear()
    reward = judge(url, answer="logprobs", cache=None, concurrency=1, question="{prompt}?", instruction="Rate.")
    scores = reward(pictures(*COLOURS), [pair] * len(COLOURS))
    expected = []
    for request in completions.requests:
        logprobs = completions.logprobs(request["messages"])
        # Digits outside the likeliest twenty tokens are not told.
        told = logprobs.where(logprobs >= logprobs.topk(20).values[-1], -torch.inf)
        probabilities = told[completions.digits].exp()
        expected.append(float((probabilities * torch.arange(5)).sum() / probabilities.sum()))
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)
    assert any(abs(score - round(score)) > 0.05 for score in expected), "finer than digits"
    assert len({round(score, 3) for score in expected}) > 2, "the pictures matter"


@pytest.fixture(scope="module")
def transformers_serve(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of transformers' own server of that model, on this CPU."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    with log.open("wb") as out:
        options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        server = subprocess.Popen([*command, *options], stdout=out, stderr=out)
    try:
        for _ in range(3000):
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_transformers_serve_is_read_as_text(
    transformers_serve: str, folder: Path, tiny: tuple[TinyCompletions, str], make_pair: MakePair
) -> None:
    completions, _ = tiny
    pair = make_pair("a", 1)
    reward = judge(transformers_serve, path=str(folder), answer="text", request={"max_tokens": 1}, timeout=60)
    scores = reward(pictures(*COLOURS), [pair] * len(COLOURS)).tolist()
    bodies = [json.loads(reward._body(picture, pair, [])) for picture in pictures(*COLOURS)]
    expected = [int(completions.logprobs(body["messages"])[completions.digits].argmax()) for body in bodies]
    assert scores == expected
    assert len(set(expected)) > 1, "the pictures matter"


def test_answers_are_kept_by_content(tmp_path: Path, make_pair: MakePair) -> None:
    with Scripted(
        lambda handler, number, body: reply(handler, 200, completion(f'{{"score": {number % 5}}}'))
    ) as server:
        reward = judge(server.url, concurrency=1, cache=str(tmp_path / "kept"))
        pairs = [make_pair("a", 1), make_pair("b", 2)]
        images = pictures("red", "red", "blue")
        first = reward(images, [pairs[0], pairs[0], pairs[1]])
        assert first.tolist() == [0, 0, 1] and len(server.times) == 2, "one picture is asked about once"
        again = judge(server.url, concurrency=1, cache=str(tmp_path / "kept"))
        assert again(images, [make_pair("other key", 1), pairs[0], pairs[1]]).tolist() == [0, 0, 1]
        assert len(server.times) == 2, "a pair read anew is the same content"
        files = sorted((tmp_path / "kept").rglob("*.json"))
        assert len(files) == 2
        for damage in (b"", b'{"score": 3', b'{"score": "3"}', b"[]", b'{"score": null}', b"\xff"):
            for file in files:
                file.write_bytes(damage)
            asked = len(server.times)
            scores = again(images, [pairs[0], pairs[0], pairs[1]]).tolist()
            assert len(server.times) == asked + 2 and scores == [asked % 5, asked % 5, (asked + 1) % 5]
            assert sorted(json.loads(file.read_bytes())["score"] for file in files) == sorted(set(scores))
        assert sorted((tmp_path / "kept").rglob("*")) == sorted({*files, *(file.parent for file in files)})
        # Whatever is sent is part of the key.
        for changed in ({"question": "{prompt}!"}, {"instruction": "Rate."}, {"request": {"seed": 1}}):
            asked = len(server.times)
            judge(server.url, cache=str(tmp_path / "kept"), **changed)(images[:1], pairs[:1])
            assert len(server.times) == asked + 1, changed
        asked = len(server.times)
        judge(server.url, path="other", cache=str(tmp_path / "kept"))(images[:1], pairs[:1])
        by_identity = judge(server.url, "identity", cache=str(tmp_path / "kept"))
        by_identity(images[:1], pairs[:1])
        by_identity(images[:1], [make_pair("a", 3)])
        assert len(server.times) == asked + 3


def test_a_cache_that_cannot_be_written_is_complained_of_once(
    tmp_path: Path, make_pair: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with Scripted(lambda handler, number, body: reply(handler, 200, completion('{"score": 2}'))) as server:
        reward = judge(server.url, cache=str(tmp_path / "file"))
        assert reward(pictures("red", "blue"), [make_pair("a")] * 2).tolist() == [2, 2]
    assert len(caplog.records) == 1 and "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("failure", "least"),
    [
        (lambda handler: reply(handler, 429, "{}", Retry_After="1"), 1.0),
        (lambda handler: reply(handler, 429, "{}", Retry_After=formatdate(time.time() + 2, usegmt=True)), 0.9),
        (lambda handler: reply(handler, 500, "no"), 0.0),
        (lambda handler: reply(handler, 200, completion("I would say 3 or 4")), 0.0),
        (lambda handler: reply(handler, 200, completion('{"score": 7}')), 0.0),
        (lambda handler: reply(handler, 200, '{"choices": []}'), 0.0),
        (lambda handler: reply(handler, 200, "<html>"), 0.0),
        (hang_up, 0.0),
    ],
    ids=["429", "429-date", "500", "prose", "out of range", "no choice", "html", "closed"],
)
def test_what_fails_once_is_asked_again(
    failure: Callable[[BaseHTTPRequestHandler], None], least: float, make_pair: MakePair
) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        failure(handler) if number == 0 else reply(handler, 200, completion('```json\n{"score": 3}\n```'))

    with Scripted(behave) as server:
        assert judge(server.url)(pictures("red"), [make_pair("a")]).tolist() == [3]
        assert len(server.times) == 2
        assert server.times[1] - server.times[0] >= least


def test_a_server_that_is_slow_is_asked_again(make_pair: MakePair) -> None:
    asked_again = threading.Event()

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        if number == 0:
            asked_again.wait(60)  # no word until then
            return
        asked_again.set()
        reply(handler, 200, completion('{"score": 3}'))

    with Scripted(behave) as server:
        assert judge(server.url, timeout=1.5)(pictures("red"), [make_pair("a")]).tolist() == [3]
        assert asked_again.is_set()


def test_a_server_that_drips_is_given_up(make_pair: MakePair) -> None:
    """Each byte comes in time, the whole answer never would."""
    given_up = threading.Event()

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            while not given_up.wait(0.02):
                handler.wfile.write(b" ")

    with Scripted(behave) as server:
        with pytest.raises(RewardError, match=r"no whole answer within 1 s"):
            judge(server.url, timeout=1.0, retries=0)(pictures("red"), [make_pair("a")])
        given_up.set()


@pytest.mark.parametrize(
    ("answer", "said", "told"),
    [
        ("logprobs", completion("3"), r"tells no probabilities of tokens; set options\.answer to json or text"),
        ("json", completion("a fine picture"), r"JSONDecodeError: .*; correct the reward's options, or look at what"),
        ("text", completion("3 or 4"), "'3 or 4' is not one digit from 0 to 4"),
    ],
)
def test_answers_of_no_use_are_told_with_what_may_help(
    answer: str, said: str, told: str, make_pair: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    with Scripted(lambda handler, number, body: reply(handler, 200, said)) as server:
        (score,) = judge(server.url, answer=answer, retries=0)(pictures("red"), [make_pair("a")]).tolist()
    assert math.isnan(score)
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.search(f"1 of 1 pictures have no score from {server.url} .*{told}", line)
    assert "start the server" not in line and "\n" not in line


UNSCORED: dict[str, tuple[int, str]] = {
    "400": (400, "cannot identify image"),
    "413": (413, "too large"),
    "422": (422, "refused by policy"),
    "prose": (200, completion("I cannot judge this picture")),
}
FAILED = {"408": 408, "429": 429, "500": 500, "503": 503, "closed": 0}


@pytest.mark.parametrize(("status", "said"), UNSCORED.values(), ids=UNSCORED)
def test_a_picture_that_cannot_be_judged_stops_nothing_when_it_alone_is_asked_about_again(
    status: int, said: str, tmp_path: Path, make_pair: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    red: list[bool] = []

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        red.append(shown_in(json.loads(body))[0][0].getpixel((0, 0)) == (255, 0, 0))
        reply(handler, status, said) if red[-1] else reply(handler, 200, completion('{"score": 1}'))

    with Scripted(behave) as server:
        for asked in (2, 1):  # the second is a run that is resumed: its sibling's answer is kept
            red.clear()
            caplog.clear()
            reward = judge(server.url, retries=0, cache=str(tmp_path / "kept"))
            refused, scored = reward(pictures("red", "blue"), [make_pair("a")] * 2).tolist()
            assert math.isnan(refused) and scored == 1
            assert len(red) == asked and sum(red) == 1
            (line,) = [record.getMessage() for record in caplog.records]
            assert f"1 of {asked} pictures have no score from {server.url}" in line and "reward's options" in line


@pytest.mark.parametrize("status", FAILED.values(), ids=FAILED)
def test_a_server_that_fails_ends_the_run_but_not_where_one_picture_failed_by_itself(
    status: int, make_pair: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    own = False

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        if own and shown_in(json.loads(body))[0][0].getpixel((0, 0)) == (255, 0, 0):
            reply(handler, 400, "cannot identify image")
        elif status:
            reply(handler, status, "no")
        else:
            hang_up(handler)

    with Scripted(behave) as server:
        reward = judge(server.url, retries=0)
        with pytest.raises(RewardError, match=f"nothing is scored by {server.url}"):
            reward(pictures("blue", "red"), [make_pair("a")] * 2)
        own = True
        assert all(map(math.isnan, reward(pictures("blue", "red"), [make_pair("a")] * 2).tolist()))
    assert "2 of 2 pictures have no score" in caplog.text


def test_some_failures_are_nan_and_one_warning(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        decoded, _ = shown_in(json.loads(body))
        red = decoded[0].getpixel((0, 0)) == (255, 0, 0)
        reply(handler, 500, "out of memory") if red else reply(handler, 200, completion('{"score": 1}'))

    with Scripted(behave) as server:
        reward = judge(server.url, retries=1)
        scores = reward(pictures("red", "blue", "red", "teal"), [make_pair("a"), *[make_pair("b", 2)] * 3]).tolist()
        assert scores[1::2] == [1, 1] and all(math.isnan(score) for score in scores[::2])
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "'vlm': 2 of 4 pictures have no score" in record.getMessage() and "out of memory" in record.getMessage()
        asked = len(server.times)
        assert asked == 2 + 2 * 2, "each failure is tried twice"
        with pytest.raises(RewardError, match=f"nothing is scored by {server.url} .HTTP 500: out of memory"):
            reward(pictures("red"), [make_pair("a")])


def test_a_refused_key_ends_all_at_once(make_pair: MakePair) -> None:
    with Scripted(lambda handler, number, body: reply(handler, 401, '{"error": {"message": "who?"}}')) as server:
        with pytest.raises(RewardError, match=r"HTTP 401: who\?.*set OPENAI_API_KEY in the environment") as caught:
            judge(server.url, concurrency=1)(pictures("red", "blue", "teal"), [make_pair("a")] * 3)
        assert "\n" not in str(caught.value)
        assert len(server.times) == 1


def test_requests_are_side_by_side_but_no_more_than_allowed(make_pair: MakePair) -> None:
    together = threading.Barrier(3, timeout=60)  # breaks, and no answer comes, where a third is never under way
    lock, now, most = threading.Lock(), 0, 0

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()
        with lock:
            now -= 1  # before the answer, after which the next may come
        reply(handler, 200, completion('{"score": 4}'))

    with Scripted(behave) as server:
        judge(server.url, concurrency=3)(pictures(*COLOURS), [make_pair("a")] * len(COLOURS))
        assert most == 3 and len(server.times) == len(COLOURS)


def test_requests_are_paced_and_still_side_by_side(make_pair: MakePair) -> None:
    together = threading.Barrier(len(COLOURS), timeout=60)

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        together.wait()
        reply(handler, 200, completion('{"score": 4}'))

    with Scripted(behave) as server:
        reward = judge(server.url, requests_per_minute=1200)
        began = time.monotonic()
        reward(pictures(*COLOURS), [make_pair("a")] * len(COLOURS))
        assert server.times[-1] - began >= 5 * 0.05, "1200 a minute are 50 ms apart"


def test_one_servers_wish_to_wait_holds_all_requests(make_pair: MakePair) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        reply(handler, 429, "", Retry_After="0.6") if number == 0 else reply(handler, 200, completion('{"score": 4}'))

    with Scripted(behave) as server:
        # The first is not asked about again: what waits is the request for the second.
        first, second = judge(server.url, concurrency=1, retries=0)(pictures("red", "blue"), [make_pair("a")] * 2)
        assert math.isnan(first) and second == 4 and len(server.times) == 2
        assert server.times[1] - server.times[0] >= 0.6


def test_the_key_is_sent_and_told_nowhere(
    tmp_path: Path, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    told: list[str] = []

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        # Servers quote the key that they refuse.
        status = (200, 500, 200, 400, 500)[number]
        reply(handler, status, completion('{"score": 1}') if number == 0 else f"bad {KEY}")

    with Scripted(behave) as server:
        options = {"key_variable": "MY_KEY", "cache": str(tmp_path / "kept"), "retries": 0, "concurrency": 1}
        reward = judge(server.url, **options)
        told += map(str, reward(pictures("red", "blue"), [make_pair("a")] * 2).tolist())
        for colour in ("white", "teal"):
            told += map(str, reward(pictures(colour), [make_pair("a")]).tolist())
        with pytest.raises(RewardError) as caught:
            reward(pictures("orange"), [make_pair("a")])
        told += [str(caught.value), *map(str, caught.traceback), str(caught.getrepr(showlocals=True))]
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
        assert len(server.headers) == 5
        told += [repr(reward), repr(reward._endpoint._client.headers)]
    kept = [file.read_text() for file in (tmp_path / "kept").rglob("*.json")]
    assert kept and "[MY_KEY]" in "".join(told)
    assert caplog.text and KEY not in "".join([*told, *kept, caplog.text])


def test_the_key_stays_out_of_a_process_output(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        reply(handler, 403, f"the key {KEY} may not")

    with Scripted(behave) as server:
        arguments = ["score", "--reward", "vlm", "--role", "prompt", "--path", "m", "--option", f"url={server.url}"]
        done = subprocess.run(
            [sys.executable, "-m", "customized_grpo", *arguments, "--image", "a.png", "--prompt", "red"],
            cwd=tmp_path,
            env={**os.environ, "OPENAI_API_KEY": KEY, "PYTHONFAULTHANDLER": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2 and "set OPENAI_API_KEY" in done.stderr
    assert KEY not in done.stdout + done.stderr
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert all(KEY.encode() not in file.read_bytes() for file in written)


@pytest.mark.parametrize(
    ("role", "path", "options", "message"),
    [
        ("guard", "m", {}, "judges identity or the prompt, not the role 'guard'"),
        ("prompt", None, {}, "no path; give the model's name"),
        ("prompt", "m", {"url": ""}, "options.url is ''"),
        ("prompt", "m", {"url": 5}, "options.url is 5; input should be a valid string"),
        ("prompt", "m", {"url": "ftp://host"}, "give one such as http://host:8000"),
        ("prompt", "m", {"url": f"http://me:{KEY}@host"}, "may hold no password"),
        ("prompt", "m", {"url": f"http://host/v1?key={KEY}"}, "may hold no password and no query"),
        ("prompt", "m", {"answer": "words"}, "input should be 'json', 'logprobs' or 'text'"),
        ("prompt", "m", {"concurrency": 0}, "options.concurrency is 0; give a number from 1"),
        ("prompt", "m", {"timeout": "fast"}, "options.timeout is 'fast'"),
        ("prompt", "m", {"question": "Good?"}, "options.question lacks {prompt}"),
        ("prompt", "m", {"api_key": "x"}, "unknown option 'api_key'; vlm has answer, backoff"),
        ("prompt", "m", {"role": "identity"}, "unknown option 'role'"),
        ("prompt", "m", {"request": [1]}, "request is \\[1\\]; input should be an object"),
        ("prompt", "m", {"key_variable": "BAD_KEY"}, "BAD_KEY holds characters that no key has"),
        ("prompt", "m", {"url": "http://127.0.0.1:9"}, "no judge is served by http://127.0.0.1:9 .*start the server"),
    ],
)
def test_what_cannot_work_is_told_when_built(
    role: str, path: str | None, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_KEY", f"{KEY}\nX-Other: 1")
    config = RewardConfig(kind="vlm", role=role, path=path, options={"url": "http://127.0.0.1:9", **options})
    with pytest.raises(RewardError, match=message) as caught:
        build_reward(config, "cpu")
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)


def test_identity_needs_a_reference(make_pair: MakePair) -> None:
    with Scripted(lambda handler, number, body: reply(handler, 200, completion('{"score": 1}'))) as server:
        reward = judge(server.url, "identity")
        with pytest.raises(RewardError, match="pair 'none' has no reference"):
            reward(pictures("red"), [Pair("none", "a cat", (), ())])
        assert not server.times


def test_large_pictures_are_reduced_and_braces_of_a_prompt_stay(make_pair: MakePair) -> None:
    bodies: list[dict[str, Any]] = []

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        bodies.append(json.loads(body))
        reply(handler, 200, completion('{"score": 1}'))

    with Scripted(behave) as server:
        reward = judge(server.url, longest=16, request={"max_tokens": None, "max_completion_tokens": 9})
        reward(torch.rand(1, 3, 64, 32), [Pair("a", "a {subject} in {prompt}", (), (), "cat")])
    decoded, text = shown_in(bodies[0])
    assert decoded[0].size == (8, 16) and '"a {subject} in {prompt}"' in text
    assert "max_tokens" not in bodies[0] and bodies[0]["max_completion_tokens"] == 9
