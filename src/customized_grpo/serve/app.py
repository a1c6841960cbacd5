"""Reward server as a FastAPI application; see rewards/wire.py for the protocol."""

import asyncio
import hmac
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated

import torch
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards.cache import LruCache
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.scores import checked_scores
from customized_grpo.rewards.wire import (
    PROTOCOL,
    PROTOCOL_HEADER,
    Budget,
    Description,
    Limits,
    Offer,
    ScoreRequest,
    ScoreResponse,
    digest,
)
from customized_grpo.utils.pixels import to_tensor

_log = logging.getLogger(__name__)


def build_app(
    rewards: Sequence[tuple[Offer, Reward]], token: str, limits: Limits, keep: int, arrival: float = 60.0
) -> FastAPI:
    """Return the application that serves rewards.

    Args:
        rewards: Rewards and their descriptions.
        token: Shared token that every request must have.
        limits: Largest request.
        keep: Bytes of references and masks that are cached.
        arrival: Seconds within which the body of a request must arrive.
    """
    by_name = {offer.name: reward for offer, reward in rewards}
    bearer = f"Bearer {token}".encode()
    slots = asyncio.Semaphore(2)  # requests in memory: one is scored while the next arrives
    turn = threading.Lock()  # rewards and caches are not thread-safe
    cache: LruCache[str, Image.Image] = LruCache(keep, lambda image: image.width * image.height * len(image.getbands()))
    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def admit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Check token and version before the body is read."""
        version = request.headers.get(PROTOCOL_HEADER)
        refusal = None
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode("utf-8"), bearer):
            refusal = 401, "wrong or missing token"
        elif version != str(PROTOCOL):
            refusal = 400, f"the client uses protocol {version}, this server {PROTOCOL}; use the same version on both"
        if refusal is not None:
            _log.warning("%s: refused, %s", request.client.host if request.client else "a client", refusal[1])
            response: Response = JSONResponse({"detail": refusal[1]}, refusal[0])
        else:
            response = await call_next(request)
        response.headers[PROTOCOL_HEADER] = str(PROTOCOL)
        return response

    async def read(request: Request) -> AsyncIterator[ScoreRequest]:
        async with slots:
            body = bytearray()
            try:
                async with asyncio.timeout(arrival):
                    if int(request.headers.get("Content-Length", 0)) > limits.bytes:
                        raise HTTPException(413, f"a request of more than {limits.bytes} bytes")
                    async for part in request.stream():
                        body += part
                        if len(body) > limits.bytes:
                            raise HTTPException(413, f"a request of more than {limits.bytes} bytes")
            except (TimeoutError, ClientDisconnect):
                raise HTTPException(408, f"the request did not arrive within {arrival:g} s") from None
            budget = Budget(limits.pixels, limits.images * limits.pixels)
            try:
                yield await run_in_threadpool(ScoreRequest.model_validate_json, bytes(body), context=budget)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(map(str, first["loc"]))
                raise HTTPException(400, f"no request of protocol {PROTOCOL}: {where}: {first['msg']}") from None

    @app.get("/rewards")
    def describe() -> Description:
        return Description(rewards=[offer for offer, _ in rewards], limits=limits)

    @app.post("/score")
    def score(request: Annotated[ScoreRequest, Depends(read)]) -> ScoreResponse:
        if request.reward not in by_name:
            raise HTTPException(404, f"no reward {request.reward!r}; there are {', '.join(by_name)}")
        if len(request.images) > limits.images:
            raise HTTPException(413, f"{len(request.images)} images; at most {limits.images} are accepted")
        if len({(image.mode, image.size) for image in request.images}) > 1 or request.images[0].mode != "RGB":
            raise HTTPException(400, "the images are not RGB of one size; send others in a request of their own")
        with turn:
            pairs = _pairs(request, cache)
            try:
                images = torch.stack([to_tensor(image) for image in request.images])
                scores = checked_scores(by_name[request.reward], images, [pairs[i] for i in request.pair_of]).tolist()
            except RewardError as error:
                _log.warning("%s", error)
                raise HTTPException(422, str(error)) from None
        return ScoreResponse(scores=[None if score != score else score for score in scores])

    return app


def _pairs(request: ScoreRequest, cache: LruCache[str, Image.Image]) -> list[Pair]:
    """Return the pairs with their images, and cache these. Raises HTTPException."""
    for name, image in request.photos.items():
        if digest(image) != name:  # it would change the scores of others
            raise HTTPException(400, f"the pixels of image {name} do not match its name")
        cache.put(name, image)
    names = {name for pair in request.pairs for name in (*pair.references, *pair.masks) if name is not None}
    found = {name: request.photos.get(name) or cache.get(name) for name in names}
    images = {name: image for name, image in found.items() if image is not None}
    if missing := sorted(names - images.keys()):
        raise HTTPException(409, {"missing": missing})
    return [
        Pair(
            key=pair.key,
            prompt=pair.prompt,
            references=tuple(images[name] for name in pair.references),
            masks=tuple(None if name is None else images[name] for name in pair.masks),
            subject=pair.subject,
            columns=pair.columns,
        )
        for pair in request.pairs
    ]
