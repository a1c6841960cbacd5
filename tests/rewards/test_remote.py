"""A remote reward against the real server: the same scores as here, and what is said where that cannot be."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
from customized_grpo.rewards import RewardError, build_reward, wire
from customized_grpo.rewards.remote import Remote
from customized_grpo.rewards.wire import PROTOCOL, PROTOCOL_HEADER, TOKEN_VARIABLE, Limits, Offer
from customized_grpo.serve.app import build_app

MakePair = Callable[..., Pair]
TOKEN = "a-shared-token-0123456789"
HEADERS = {PROTOCOL_HEADER.replace("-", "_"): str(PROTOCOL)}


class Recorder:
    """Keeps what it is shown; scores by a function, the mean brightness where none is given."""

    name = "seen"

    def __init__(self, judge: Callable[[Tensor, Sequence[Pair]], Tensor] | None = None) -> None:
        self.images: list[Tensor] = []
        self.pairs: list[Pair] = []
        self._judge = judge or (lambda images, pairs: images.mean((1, 2, 3)))

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        self.images.append(images)
        self.pairs += pairs
        return self._judge(images, pairs)


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)


def app(*rewards: Reward, limits: Limits | None = None, keep: int = 2**28, needs: list[Need] | None = None) -> Any:
    offered = [(Offer(name=reward.name, kind="custom", role="identity", needs=needs), reward) for reward in rewards]
    return build_app(offered, TOKEN, limits or Limits(), keep)


def remote(url: str, **options: Any) -> Remote:
    options = {"url": url, "reward": "seen", "backoff": 0.01, **options}
    reward = build_reward(RewardConfig(kind="remote", role="identity", options=options), "cpu")
    assert isinstance(reward, Remote)
    return reward


@pytest.fixture(scope="module")
def judges(dino_folder: Path, clip_folder: Path) -> Iterator[tuple[list[Reward], str]]:
    kinds = {"dino": str(dino_folder), "clip": str(clip_folder), "copy-paste": None}
    built = [build_reward(RewardConfig(kind=k, role="guard", path=p), "cpu") for k, p in kinds.items()]
    with serving(app(*built)) as url:
        yield built, url


def test_scores_are_those_of_the_same_reward_here(judges: tuple[list[Reward], str], make_pair: MakePair) -> None:
    built, url = judges
    images = torch.rand(7, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    pairs = [make_pair("a", 1), make_pair("b", 2, ((30, 20), (40, 50))), make_pair("c", 3, masked=False)]
    shown = [pairs[i] for i in (0, 1, 1, 2, 0, 2, 1)]
    quantised = (images.clamp(0, 1) * 255).round() / 255
    for reward in built:
        # Batches of the same pictures, so that equal means equal to the bit.
        here = torch.cat([reward(quantised[:4], shown[:4]), reward(quantised[4:], shown[4:])])
        there = remote(url, reward=reward.name, batch_size=4, concurrency=1)(images, shown)
        assert there.dtype == torch.float32 and torch.equal(there, here), reward.name
        assert not torch.equal(there, reward(images, shown))


def test_what_is_judged_arrives_as_it_was(make_pair: MakePair) -> None:
    seen = Recorder()
    images = torch.arange(256).float().div(255).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    images[1] = images[1].flip(-1)
    shown = make_pair("x", 5, ((9, 7),))
    odd = Pair("ü/1", "ein Hündchen\nim “Schnee”", shown.references, shown.masks, "dog")
    pairs = [odd, make_pair("none", 2, masked=False)]
    with serving(app(seen)) as url:
        scores = remote(url)(images, pairs)
    assert torch.equal(torch.cat(seen.images), images), "all 256 levels"
    assert torch.equal(scores, images.mean((1, 2, 3)))
    for sent, pair in zip(seen.pairs, pairs, strict=True):
        assert (sent.key, sent.prompt, sent.subject) == (pair.key, pair.prompt, pair.subject)
        for got, given in zip((*sent.references, *sent.masks), (*pair.references, *pair.masks), strict=True):
            assert (got is None) == (given is None)
            assert got is None or (got.mode, got.size, got.tobytes()) == (given.mode, given.size, given.tobytes())


def test_columns_travel_to_code_of_a_user_s_own(make_pair: MakePair) -> None:
    columns = {"target": [0.5, None], "note": "“x”", "photo": Image.new("RGB", (2, 2)), "score": math.nan}
    pair = replace(make_pair("a"), columns=columns)
    for kind, sent in (("own.py:f", {"target": [0.5, None], "note": "“x”"}), ("dino", {})):
        seen = Recorder()
        with serving(
            build_app([(Offer(name="seen", kind=kind, role="identity"), seen)], TOKEN, Limits(), 2**28)
        ) as url:
            remote(url)(torch.rand(1, 3, 8, 8), [pair])
        assert seen.pairs[0].columns == sent


def test_references_travel_once(make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    original = wire.encode
    monkeypatch.setattr(
        "customized_grpo.rewards.remote.encode", lambda image: (sent.append(image.mode), original(image))[1]
    )
    images = torch.rand(3, 3, 8, 8)
    pairs = [make_pair("a", 1), make_pair("b", 2), make_pair("a", 1)]
    with serving(app(Recorder())) as url:
        reward = remote(url)
        for _ in range(2):
            reward(images, pairs)
        assert len(sent) == 2 * 3 + 3, "six pictures, two references and the mask that they share"
        remote(url)(images[:1], pairs[:1])
        assert len(sent) == 9 + 1 + 2, "another client does not know what the server has"


def test_references_stay_here_where_the_reward_does_not_look_at_them(make_pair: MakePair) -> None:
    pair = make_pair("a", 1)
    sent = {}
    for needs in (["prompt"], ["reference"], ["mask"], None):
        seen = Recorder()
        with serving(app(seen, needs=needs)) as url:
            reward = remote(url)
            reward(torch.rand(1, 3, 8, 8), [pair])
        sent[str(reward.needs)] = (seen.pairs[0].prompt, len(seen.pairs[0].references), len(seen.pairs[0].masks))
    some = ("a cat 1", 1, 1)
    assert sent == {"['prompt']": ("a cat 1", 0, 0), "['reference']": some, "['mask']": some, "None": some}


def test_a_server_that_has_forgotten_is_sent_them_again(make_pair: MakePair) -> None:
    seen = Recorder()
    images, pairs = torch.rand(2, 3, 8, 8), [make_pair("a", 1), make_pair("b", 2)]
    with serving(app(seen, keep=0)) as url:
        reward = remote(url, batch_size=1)
        first = reward(images, pairs)
        assert torch.equal(reward(images, pairs), first)
    shown = {pair.key: pair.references[0].tobytes() for pair in seen.pairs[2:]}
    assert shown == {pair.key: pair.references[0].tobytes() for pair in pairs}
    assert len(seen.pairs) == 4


def test_null_is_nan(make_pair: MakePair) -> None:
    judge = Recorder(lambda images, pairs: torch.where(images.mean((1, 2, 3)) > 0.5, torch.nan, 1.5))
    with serving(app(judge)) as url:
        scores = remote(url)(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]), [make_pair("a")] * 2).tolist()
    assert scores[0] == 1.5 and math.isnan(scores[1])


def test_what_a_reward_refuses_is_nan_alone_too(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    def judge(images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        if images.max() > 0.9:
            raise RuntimeError("too bright")
        return images.mean((1, 2, 3))

    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    with serving(app(Recorder(judge))) as url:
        reward = remote(url, batch_size=1, concurrency=1)
        scores = reward(images, [make_pair("a")] * 2).tolist()
        assert scores[0] == 0 and math.isnan(scores[1])
        told = [record.getMessage() for record in caplog.records if "no score" in record.getMessage()]
        assert len(told) == 1 and "'remote': 1 of 2 pictures" in told[0] and "too bright" in told[0]
        caplog.clear()
        assert math.isnan(reward(images[1:], [make_pair("a")]).item())
        told = [record.getMessage() for record in caplog.records if "no score" in record.getMessage()]
        assert len(told) == 1 and "1 of 1 pictures" in told[0] and "HTTP 422: " in told[0] and "too bright" in told[0]


def test_a_server_that_is_gone_is_an_error(make_pair: MakePair) -> None:
    images = torch.zeros(2, 3, 4, 4)
    with serving(app(Recorder())) as url:
        reward = remote(url, batch_size=1, retries=0)
        assert reward(images, [make_pair("a")] * 2).tolist() == [0, 0]
    with pytest.raises(RewardError, match=f"reward 'remote': nothing is scored by {url} .*start the server"):
        reward(images, [make_pair("a")] * 2)


def test_a_busy_server_is_asked_again(make_pair: MakePair) -> None:
    described = wire.Description(rewards=[Offer(name="seen", kind="dino", role="identity")], limits=Limits())

    def behave(handler: BaseHTTPRequestHandler, number: int, body: bytes) -> None:
        headers = HEADERS if number else {}
        reply(handler, 200 if number else 503, '{"scores": [2.5, null]}' if number else "busy", **headers)

    with Scripted(behave, get=lambda handler: reply(handler, 200, described.model_dump_json(), **HEADERS)) as server:
        scores = remote(server.url)(torch.rand(2, 3, 4, 4), [make_pair("a")] * 2).tolist()
    assert scores[0] == 2.5 and math.isnan(scores[1]) and len(server.times) == 2


@pytest.mark.parametrize("answer", ['{"scores": [1]}', '{"scores": [1, "a"]}', '{"scores": [1, NaN]}', "[]", "<html>"])
def test_a_malformed_answer_is_no_score(answer: str, make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    described = wire.Description(rewards=[Offer(name="seen", kind="dino", role="identity")], limits=Limits())
    with Scripted(
        lambda handler, number, body: reply(handler, 200, answer, **HEADERS),
        get=lambda handler: reply(handler, 200, described.model_dump_json(), **HEADERS),
    ) as server:
        scores = remote(server.url, retries=1)(torch.rand(2, 3, 4, 4), [make_pair("a")] * 2)
        assert scores.isnan().all() and len(server.times) == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"2 of 2 pictures have no score from {server.url}" in line and "\n" not in line


@pytest.mark.parametrize("answer", ['{"missing": 3}', "[]", "<html>"])
def test_a_malformed_request_for_references_is_no_score(
    answer: str, make_pair: MakePair, caplog: pytest.LogCaptureFixture
) -> None:
    described = wire.Description(rewards=[Offer(name="seen", kind="dino", role="identity")], limits=Limits())
    with Scripted(
        lambda handler, number, body: reply(handler, 409, answer, **HEADERS),
        get=lambda handler: reply(handler, 200, described.model_dump_json(), **HEADERS),
    ) as server:
        assert remote(server.url)(torch.rand(2, 3, 4, 4), [make_pair("a")] * 2).isnan().all()
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"2 of 2 pictures have no score from {server.url} (not what protocol" in line and "\n" not in line


def test_limits_are_told(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    seen = Recorder()
    with serving(app(seen, limits=Limits(images=2, pixels=100, bytes=2500))) as url:
        reward = remote(url)
        reward(torch.rand(5, 3, 4, 4), [Pair("a", "a cat", (), ())] * 5)
        assert sorted(len(images) for images in seen.images) == [1, 2, 2], "no more than the server takes"
        with pytest.raises(RewardError, match=r"11 x 10 pixels, above the server's bound of 100; .*--max-pixels"):
            reward(torch.rand(1, 3, 10, 11), [make_pair("a")])
        with pytest.raises(RewardError, match=r"bytes, above the server's bound of 2500.*lower options.batch_size"):
            reward(torch.rand(1, 3, 4, 4), [make_pair("a", 1, ((10, 10),) * 9)])
        large = Pair("a", "a cat", (Image.new("RGB", (40, 30)),), (None,))
        assert math.isnan(reward(torch.rand(1, 3, 4, 4), [large]).item()), "no other request is the worse for it"
        assert "a picture of 40 x 30 pixels; at most 100" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": ""}, "options.url is ''"),
        ({"url": "http://127.0.0.1:9"}, "no reward is served by http://127.0.0.1:9 .*start the server"),
        ({"token_variable": "NOT_SET"}, "the environment variable NOT_SET is not set"),
        ({"token_variable": "WRONG"}, "HTTP 401: wrong token, or none.*set WRONG in the environment"),
        ({"reward": "other"}, "has no reward 'other'; set options.reward to one of seen"),
        ({"batch_size": 0}, "options.batch_size is 0"),
        ({"token": TOKEN}, "unknown option 'token'; remote has"),
    ],
)
def test_what_cannot_work_is_told_when_built(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRONG", "another-token")
    with serving(app(Recorder())) as url, pytest.raises(RewardError, match=message) as caught:
        remote(**{"url": url, **options})
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)


def test_another_protocol_is_one_line_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(app(Recorder())) as url:
        monkeypatch.setattr("customized_grpo.rewards.remote.PROTOCOL", PROTOCOL + 1)
        with pytest.raises(RewardError, match=f"speaks protocol {PROTOCOL}, this client {PROTOCOL + 1}.*same version"):
            remote(url)
    (line,) = [record.getMessage() for record in caplog.records if "protocol" in record.getMessage()]
    assert f"the client speaks protocol {PROTOCOL + 1}, this server {PROTOCOL}" in line and "\n" not in line


def test_another_server_is_not_taken_for_ours() -> None:
    with Scripted(lambda *_: None) as server, pytest.raises(RewardError, match="no cgrpo serve-reward answers there"):
        remote(server.url)


def test_the_token_is_told_nowhere(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def judge(images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        raise RuntimeError(f"it knows {TOKEN}")

    with serving(app(Recorder(judge))) as url:
        reward = remote(url, retries=0)
        assert math.isnan(reward(torch.rand(1, 3, 4, 4), [make_pair("a")]).item())
    with pytest.raises(RewardError) as caught:
        reward(torch.rand(1, 3, 4, 4), [make_pair("a")])
    told = [str(caught.value), str(caught.getrepr(showlocals=True)), repr(reward)]
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("customized_grpo.serve")]
    assert "it knows [CGRPO_REWARD_TOKEN]" in "".join(ours) and TOKEN not in "".join(told + ours)
    assert json.dumps(RewardConfig(kind="remote", role="prompt", options={"url": url}).model_dump()).count(TOKEN) == 0
