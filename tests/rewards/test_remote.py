"""The reward `remote` with the real server: scores, traffic, and failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from servers import Scripted, reply, serving
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Need, Pair, Reward
from customized_grpo.rewards import RewardError, build_reward
from customized_grpo.rewards.endpoint import _is_local
from customized_grpo.rewards.remote import Remote
from customized_grpo.rewards.wire import PROTOCOL, PROTOCOL_HEADER, TOKEN_VARIABLE, Description, Limits, Offer
from customized_grpo.serve.app import build_app

MakePair = Callable[..., Pair]
TOKEN = "a-shared-token-0123456789"
HEADERS = {PROTOCOL_HEADER.replace("-", "_"): str(PROTOCOL)}
PAIR = Pair("a", "a cat", (), ())


class Recorder:
    """Records its arguments; scores by `rule`, by default the mean brightness."""

    name = "seen"

    def __init__(self, rule: Callable[[Tensor, Sequence[Pair]], Tensor] | None = None) -> None:
        self.images: list[Tensor] = []
        self.pairs: list[Pair] = []
        self._rule = rule or (lambda images, pairs: images.mean((1, 2, 3)))

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        self.images.append(images)
        self.pairs += pairs
        return self._rule(images, pairs)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)


def app(
    *rewards: Reward,
    limits: Limits | None = None,
    keep: int = 2**28,
    needs: list[Need] | None = None,
    kind: str = "dino",
) -> Any:
    offered = [(Offer(name=reward.name, kind=kind, role="identity", needs=needs), reward) for reward in rewards]
    return build_app(offered, TOKEN, limits or Limits(), keep)


def scripted(behave: Callable[[BaseHTTPRequestHandler, int, bytes], None]) -> Scripted:
    described = Description(rewards=[Offer(name="seen", kind="dino", role="identity")], limits=Limits())
    return Scripted(behave, get=lambda handler: reply(handler, 200, described.model_dump_json(), **HEADERS))


def remote(url: str, **options: Any) -> Remote:
    options = {"url": url, "reward": "seen", "backoff": 0.01, **options}
    reward = build_reward(RewardConfig(kind="remote", role="identity", options=options), "cpu")
    assert isinstance(reward, Remote)
    return reward


@pytest.fixture(scope="module")
def served(dino_folder: Path, clip_folder: Path) -> Iterator[tuple[list[Reward], str]]:
    kinds = {
        "dino": {"path": str(dino_folder), "options": {"segmenter": None}},
        "clip": {"path": str(clip_folder)},
        "copy-paste": {},
    }
    built = [build_reward(RewardConfig(kind=k, role="guard", **given), "cpu") for k, given in kinds.items()]
    with serving(app(*built)) as url:
        yield built, url


def test_scores_are_those_of_the_same_reward_here(served: tuple[list[Reward], str], make_pair: MakePair) -> None:
    built, url = served
    images = torch.rand(7, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    pairs = [make_pair("a", 1), make_pair("b", 2, ((30, 20), (40, 50))), make_pair("c", 3, masked=False)]
    shown = [pairs[i] for i in (0, 1, 1, 2, 0, 2, 1)]
    quantised = (images.clamp(0, 1) * 255).round() / 255
    for reward in built:
        # Batches of the same images, so that equal means equal to the bit.
        here = torch.cat([reward(quantised[:4], shown[:4]), reward(quantised[4:], shown[4:])])
        there = remote(url, reward=reward.name, batch_size=4, concurrency=1)(images, shown)
        assert there.dtype == torch.float32 and torch.equal(there, here), reward.name
        assert not torch.equal(there, reward(images, shown))


def test_images_pairs_and_columns_arrive_unchanged(make_pair: MakePair) -> None:
    images = torch.arange(256).float().div(255).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    images[1] = images[1].flip(-1)
    shown = make_pair("x", 5, ((9, 7),))
    columns = {"target": [0.5, None], "note": "“x”", "photo": Image.new("RGB", (2, 2)), "score": math.nan}
    odd = Pair("ü/1", "ein Hündchen\nim “Schnee”", shown.references, shown.masks, "dog", columns)
    pairs = [odd, make_pair("none", 2, masked=False)]
    for kind, sent_columns in (("own.py:f", {"target": [0.5, None], "note": "“x”"}), ("dino", {})):
        seen = Recorder()
        with serving(app(seen, kind=kind)) as url:
            scores = remote(url)(images, pairs)
        assert torch.equal(torch.cat(seen.images), images), "all 256 levels"
        assert torch.equal(scores, images.mean((1, 2, 3)))
        assert seen.pairs[0].columns == sent_columns
        for sent, pair in zip(seen.pairs, pairs, strict=True):
            assert (sent.key, sent.prompt, sent.subject) == (pair.key, pair.prompt, pair.subject)
            for got, given in zip((*sent.references, *sent.masks), (*pair.references, *pair.masks), strict=True):
                assert (got is None) == (given is None)
                assert got is None or (got.mode, got.size, got.tobytes()) == (given.mode, given.size, given.tobytes())


def test_references_are_sent_once_and_again_when_the_server_lacks_them(make_pair: MakePair) -> None:
    bodies: list[dict[str, Any]] = []
    missing = {"detail": {"missing": []}}

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        bodies.append(json.loads(body))
        missing["detail"]["missing"] = bodies[-1]["pairs"][0]["references"]
        scores = json.dumps({"scores": [1.0] * len(bodies[-1]["images"])})
        reply(handler, 409, json.dumps(missing), **HEADERS) if number == 2 else reply(handler, 200, scores, **HEADERS)

    images, pairs = torch.rand(3, 3, 8, 8), [make_pair("a", 1), make_pair("b", 2), make_pair("a", 1)]
    with scripted(behave) as server:
        reward = remote(server.url)
        for _ in range(3):
            assert reward(images, pairs).tolist() == [1.0] * 3
    assert [len(body["photos"]) for body in bodies] == [3, 0, 0, 1], "two references and the mask of both; one again"


def test_a_server_that_caches_nothing_still_scores(make_pair: MakePair) -> None:
    seen = Recorder()
    images, pairs = torch.rand(2, 3, 8, 8), [make_pair("a", 1), make_pair("b", 2)]
    with serving(app(seen, keep=0)) as url:
        reward = remote(url, batch_size=1)
        assert torch.equal(reward(images, pairs), reward(images, pairs))
    shown = {pair.key: pair.references[0].tobytes() for pair in seen.pairs[2:]}
    assert shown == {pair.key: pair.references[0].tobytes() for pair in pairs}


@pytest.mark.parametrize(("needs", "sent"), [(["prompt"], 0), (["mask"], 1), (None, 1)])
def test_references_are_only_sent_to_a_reward_that_uses_them(
    needs: list[Need] | None, sent: int, make_pair: MakePair
) -> None:
    seen = Recorder()
    with serving(app(seen, needs=needs)) as url:
        remote(url)(torch.rand(1, 3, 8, 8), [make_pair("a", 1)])
    (pair,) = seen.pairs
    assert pair.prompt == "a cat 1" and len(pair.references) == len(pair.masks) == sent


def test_a_server_on_this_machine_is_asked_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        reply(handler, 502, "")

    with Scripted(lambda handler, number, body: get(handler), get) as proxy, serving(app(Recorder())) as url:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for address in (url, url.replace("127.0.0.1", "localhost")):
            assert remote(address)(torch.zeros(1, 3, 4, 4), [PAIR]).tolist() == [0]
        assert not asked
        with pytest.raises(RewardError, match="HTTP 502"):
            remote("http://rewards.example.com", retries=0)
    assert asked == ["http://rewards.example.com/rewards"]


def test_which_hosts_are_this_machine() -> None:
    assert all(map(_is_local, ("127.8.9.1", "::1", "localhost", "a.localhost")))
    assert not any(map(_is_local, ("10.0.0.1", "localhost.example.com", "example.com")))


@pytest.mark.parametrize(
    ("first", "answer", "requested"),
    [
        ((503, "busy", {}), None, 2),
        ((200, '{"scores": [1]}', HEADERS), "1 scores for 2 images", 2),
        ((200, '{"scores": [1, NaN]}', HEADERS), "finite number", 2),
        ((409, '{"detail": {"missing": 3}}', HEADERS), "a malformed list of missing images", 1),
    ],
)
def test_busy_servers_and_malformed_answers_are_retried(
    first: tuple[int, str, dict[str, str]], answer: str | None, requested: int, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        status, text, headers = first
        good = number and answer is None
        reply(handler, 200, '{"scores": [2.5, null]}', **HEADERS) if good else reply(handler, status, text, **headers)

    with scripted(behave) as server:
        scores = remote(server.url, retries=1)(torch.rand(2, 3, 4, 4), [PAIR] * 2)
    assert len(server.times) == requested and scores.isnan().tolist() == [answer is not None, True]
    if answer is not None:
        (line,) = [record.getMessage() for record in caplog.records]
        assert f"2 of 2 images have no score from {server.url}" in line and answer in line and "\n" not in line


def test_limits_of_the_server_are_kept(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    seen = Recorder()
    with serving(app(seen, limits=Limits(images=2, pixels=100, bytes=2500))) as url:
        reward = remote(url)
        reward(torch.rand(5, 3, 4, 4), [PAIR] * 5)
        assert sorted(len(images) for images in seen.images) == [1, 2, 2]
        with pytest.raises(RewardError, match=r"11 x 10 pixels, above the server's limit of 100; .*--max-pixels"):
            reward(torch.rand(1, 3, 10, 11), [make_pair("a")])
        with pytest.raises(RewardError, match=r"bytes, above the server's limit of 2500.*lower options.batch_size"):
            reward(torch.rand(1, 3, 4, 4), [make_pair("a", 1, ((10, 10),) * 9)])
        large = Pair("a", "a cat", (Image.new("RGB", (40, 30)),), (None,))
        assert math.isnan(reward(torch.rand(1, 3, 4, 4), [large]).item())
        assert "an image of 40 x 30 pixels; at most 100" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://127.0.0.1:9"}, "no reward is served by http://127.0.0.1:9 .*start the server"),
        ({"token_variable": "WRONG"}, "HTTP 401: wrong or missing token.*set WRONG in the environment"),
        ({"reward": "other"}, "has no reward 'other'; set options.reward to one of seen"),
    ],
)
def test_wrong_options_are_refused_when_built(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRONG", "another-token")
    with serving(app(Recorder())) as url, pytest.raises(RewardError, match=message) as caught:
        remote(**{"url": url, **options})
    assert TOKEN not in str(caught.value)


def test_other_servers_and_protocols_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Scripted(lambda *_: None) as server, pytest.raises(RewardError, match="no cgrpo serve-reward answers there"):
        remote(server.url)
    with serving(app(Recorder())) as url:
        monkeypatch.setattr("customized_grpo.rewards.remote.PROTOCOL", PROTOCOL + 1)
        with pytest.raises(RewardError, match=f"uses protocol {PROTOCOL}, this client {PROTOCOL + 1}.*same version"):
            remote(url)
    assert f"the client uses protocol {PROTOCOL + 1}, this server {PROTOCOL}" in caplog.text
