"""The server's application: who may ask, how much, and the answer. What travels is in rewards/wire.py."""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.scores import judged
from customized_grpo.rewards.wire import (
    PROTOCOL,
    PROTOCOL_HEADER,
    Description,
    Limits,
    Missing,
    Offer,
    ScoreRequest,
    ScoreResponse,
    WirePair,
    decode,
    digest,
)
from customized_grpo.serve.store import PictureStore
from customized_grpo.utils.pixels import to_tensor

_log = logging.getLogger(__name__)

_AT_A_TIME = 2  # requests in memory: one is scored while the next arrives
_ARRIVAL = 60.0  # seconds that a request's body may take to arrive


class _Refused(Exception):
    """A request that is not answered; its text is one line for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def build_app(
    rewards: Sequence[tuple[Offer, Reward]], token: str, limits: Limits, keep: int, arrival: float = _ARRIVAL
) -> Starlette:
    """The application that serves `rewards` to whoever has the `token`, and keeps `keep` bytes of references."""
    service = _Service(rewards, token, limits, PictureStore(keep), arrival)
    return Starlette(
        routes=[
            Route("/rewards", service.describe, methods=["GET"]),
            Route("/score", service.score, methods=["POST"]),
        ],
        exception_handlers={_Refused: _refuse},
    )


class _Service:
    def __init__(
        self, rewards: Sequence[tuple[Offer, Reward]], token: str, limits: Limits, store: PictureStore, arrival: float
    ) -> None:
        self._offers = [offer for offer, _ in rewards]
        self._rewards = {offer.name: reward for offer, reward in rewards}
        self._bearer = f"Bearer {token}".encode()
        self._limits = limits
        self._store = store
        self._arrival = arrival
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._turn = threading.Lock()  # a reward's own caches know of one caller

    async def describe(self, request: Request) -> Response:
        self._admit(request)
        return _reply(Description(rewards=self._offers, limits=self._limits))

    async def score(self, request: Request) -> Response:
        self._admit(request)
        async with self._slots:
            return await run_in_threadpool(self._answer, await self._body(request))

    def _admit(self, request: Request) -> None:
        """Raises _Refused, before a byte of the body is read, for a wrong token or protocol."""
        client = request.client.host if request.client else "a client"
        given = request.headers.get("Authorization", "").encode("utf-8")
        if not hmac.compare_digest(given, self._bearer):
            _log.warning("%s: refused, without the right token", client)
            raise _Refused(401, "wrong token, or none")
        spoken = request.headers.get(PROTOCOL_HEADER)
        if spoken != str(PROTOCOL):
            line = f"the client speaks protocol {spoken}, this server {PROTOCOL}"
            _log.warning("%s: refused, %s; install the same version of customized-grpo on both", client, line)
            raise _Refused(400, f"{line}; install the same version of customized-grpo on both")

    async def _body(self, request: Request) -> bytes:
        most = self._limits.bytes
        announced = request.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > most:
            raise _Refused(413, f"a request of {announced} bytes; at most {most} are taken")
        body = bytearray()
        try:
            async with asyncio.timeout(self._arrival):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise _Refused(413, f"a request of more than {most} bytes")
        except TimeoutError:
            raise _Refused(408, f"the request did not arrive within {self._arrival:g} s") from None
        except ClientDisconnect:
            raise _Refused(400, "the client went away") from None
        return bytes(body)

    def _answer(self, body: bytes) -> Response:
        try:
            request = ScoreRequest.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise _Refused(400, f"not a request of protocol {PROTOCOL}: {where}: {first['msg']}") from None
        reward = self._rewards.get(request.reward)
        if reward is None:
            raise _Refused(404, f"no reward {request.reward!r}; there are {', '.join(self._rewards)}")
        self._check_counts(request)
        try:
            images = self._decoded(request.images)
            sent = dict(zip(request.pictures, self._decoded(list(request.pictures.values())), strict=True))
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        if len({(image.mode, image.size) for image in images}) > 1 or images[0].mode != "RGB":
            raise _Refused(400, "the images are not RGB of one size; send others in a request of their own")
        for name, image in sent.items():
            # Whoever sends a picture under another's name would change what others are scored by.
            if digest(image) != name:
                raise _Refused(400, f"the picture {name} has other pixels than its name says")
            self._store.put(name, image)
        pairs = self._pairs(request.pairs, sent)
        if isinstance(pairs, Missing):
            return _reply(pairs, 409)
        try:
            with self._turn:
                scores = judged(
                    reward, torch.stack([to_tensor(one) for one in images]), [pairs[i] for i in request.pair_of]
                )
        except RewardError as error:
            _log.warning("%s", error)
            raise _Refused(422, str(error)) from None
        return _reply(ScoreResponse(scores=[None if score != score else score for score in scores.tolist()]))

    def _check_counts(self, request: ScoreRequest) -> None:
        count = len(request.images)
        if not 1 <= count <= self._limits.images:
            raise _Refused(413, f"{count} images; 1 to {self._limits.images} are taken")
        if len(request.pair_of) != count or not all(0 <= i < len(request.pairs) for i in request.pair_of):
            raise _Refused(400, "pair_of does not name one of the pairs for each image")
        if any(len(pair.references) != len(pair.masks) for pair in request.pairs):
            raise _Refused(400, "a pair has not as many masks, or nulls, as references")

    def _decoded(self, texts: list[str]) -> list[Image.Image]:
        """Pictures, all together of no more pixels than as many images as are taken. Raises ValueError."""
        left = self._limits.images * self._limits.pixels
        images = []
        for text in texts:
            images.append(decode(text, min(left, self._limits.pixels)))
            left -= images[-1].width * images[-1].height
        return images

    def _pairs(self, described: list[WirePair], sent: dict[str, Image.Image]) -> list[Pair] | Missing:
        """The pairs with their pictures, or the names of those that neither came along nor are kept."""
        names = {name for one in described for name in (*one.references, *one.masks) if name is not None}
        found = {name: sent.get(name) or self._store.get(name) for name in names}
        if missing := sorted(name for name, image in found.items() if image is None):
            return Missing(missing=missing)
        images = {name: image for name, image in found.items() if image is not None}
        return [
            Pair(
                key=one.key,
                prompt=one.prompt,
                references=tuple(images[name] for name in one.references),
                masks=tuple(None if name is None else images[name] for name in one.masks),
                subject=one.subject,
                columns=one.columns,
            )
            for one in described
        ]


def _reply(message: BaseModel, status: int = 200) -> Response:
    return Response(message.model_dump_json(), status, {PROTOCOL_HEADER: str(PROTOCOL)}, media_type="application/json")


async def _refuse(request: Request, error: Any) -> Response:
    return JSONResponse({"error": str(error)}, error.status, {PROTOCOL_HEADER: str(PROTOCOL)})
