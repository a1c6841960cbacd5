"""Reward that is computed by `cgrpo serve-reward` in another process or on another machine."""

import json
import math
from collections.abc import Sequence
from typing import ClassVar

import httpx2
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.protocols import Pair
from customized_grpo.rewards.base import BuiltinReward, Count
from customized_grpo.rewards.endpoint import CallError, Endpoint, NotNegative, Positive, Retries
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.wire import (
    PROTOCOL,
    PROTOCOL_HEADER,
    TOKEN_VARIABLE,
    Description,
    ScoreRequest,
    ScoreResponse,
    WirePair,
    digest,
)
from customized_grpo.utils.pixels import to_image

_ATTEMPTS = 3  # of one request, each with the references that the server lacked before


class Remote(BuiltinReward):
    """Reward of a server.

    Images travel with 8 bits per channel: scores are those of the same reward on `round(255 * x) / 255`. References and
    masks are sent once and cached by the server. An image has the score NaN if its request fails, or the server has
    no score for it.

    Args:
        url: Address of the server.
        reward: Name of the reward on the server. Default: `name`.
        name: Name in logs, tables and figures.
        device: Device of the scores.
        batch_size: Largest number of images per request.
        concurrency: Largest number of requests at the same time. The server scores one request after the other; more
            than one hides the time of sending.
        timeout: Seconds per attempt.
        retries: Attempts after the first one.
        backoff: Seconds before the first retry, doubled for each further one.
        token_variable: Environment variable of the shared token.

    Raises:
        RewardError: The server does not answer, refuses the token, speaks another version of the protocol, or has no
            such reward.
    """

    kind: ClassVar[str] = "remote"

    def __init__(
        self,
        *,
        url: str = "",
        reward: str = "",
        name: str = "remote",
        device: torch.device | str | None = None,
        batch_size: Count = 16,
        concurrency: Count = 2,
        timeout: Positive = 300.0,
        retries: Retries = 4,
        backoff: NotNegative = 0.5,
        token_variable: str = TOKEN_VARIABLE,
    ) -> None:
        super().__init__(name, device)
        self._reward = reward or name
        self._endpoint = Endpoint(
            url,
            name=name,
            key_variable=token_variable,
            key_required=True,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            concurrency=concurrency,
            headers={PROTOCOL_HEADER: str(PROTOCOL)},
            check=_check_protocol,
        )
        try:
            described = self._endpoint.get("rewards", Description.model_validate_json)
        except CallError as error:
            raise self._endpoint.error(error, "no reward is served") from error
        offers = {offer.name: offer for offer in described.rewards}
        if self._reward not in offers:
            raise RewardError(
                f"reward {name!r}: {self._endpoint.url} has no reward {self._reward!r}; "
                f"set options.reward to one of {', '.join(offers)}"
            )
        #: What the served reward uses; nothing else is sent.
        self.needs = offers[self._reward].needs
        #: Only a user's own code uses columns of the dataset.
        self._sends_columns = ":" in offers[self._reward].kind
        self._limits = described.limits
        self._batch_size = min(batch_size, described.limits.images)
        self._sent: set[str] = set()

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,) of images (B, 3, H, W) in [0, 1], NaN where there is none."""
        if images.shape[-1] * images.shape[-2] > self._limits.pixels:
            raise RewardError(
                f"reward {self.name!r}: images of {images.shape[-1]} x {images.shape[-2]} pixels, above the server's "
                f"limit of {self._limits.pixels}; serve it with a larger --max-pixels"
            )
        photos: dict[str, Image.Image] = {}
        described = {pair: self._described(pair, photos) for pair in dict.fromkeys(pairs)}
        parts = [range(i, min(i + self._batch_size, len(images))) for i in range(0, len(images), self._batch_size)]
        calls = []
        for part in parts:
            used = list(dict.fromkeys(pairs[i] for i in part))
            request = ScoreRequest(
                reward=self._reward,
                images=[to_image(images[i]) for i in part],
                pairs=[described[pair] for pair in used],
                pair_of=[used.index(pairs[i]) for i in part],
                photos={},
            )
            calls.append(self._score(request, photos))
        return torch.tensor(
            self._endpoint.scores(calls, [len(part) for part in parts]), dtype=torch.float32, device=self._device
        )

    def _described(self, pair: Pair, photos: dict[str, Image.Image]) -> WirePair:
        """Return a pair as it travels; its references and masks go to `photos`, if the reward uses them."""

        def named(image: Image.Image) -> str:
            name = digest(image)
            photos[name] = image
            return name

        seen = self.needs is None or not {"reference", "mask"}.isdisjoint(self.needs)
        columns = pair.columns.items() if self._sends_columns else ()
        return WirePair(
            key=pair.key,
            prompt=pair.prompt,
            references=[named(one.convert("RGB")) for one in pair.references] if seen else [],
            masks=[one and named(one.convert("L")) for one in pair.masks] if seen else [],
            subject=pair.subject,
            columns={name: value for name, value in columns if _is_json(value)},
        )

    async def _score(self, request: ScoreRequest, photos: dict[str, Image.Image]) -> list[float]:
        """Return the scores of a request. Raises CallError."""
        names = {name for pair in request.pairs for name in (*pair.references, *pair.masks) if name is not None}
        unsent = names - self._sent
        for _ in range(_ATTEMPTS):
            whole = request.model_copy(update={"photos": {name: photos[name] for name in unsent}})
            body = whole.model_dump_json().encode("utf-8")
            if len(body) > self._limits.bytes:
                raise CallError(
                    f"a request of {len(body)} bytes, above the server's limit of {self._limits.bytes}",
                    "lower options.batch_size, or serve it with a larger --max-bytes",
                )
            try:
                scores = await self._endpoint.post("score", body, lambda answer: _scores(answer, len(request.images)))
            except CallError as error:
                if error.status != 409:
                    raise
                unsent |= names & _missing(error)
            else:
                self._sent |= names
                return scores
        raise CallError("the server drops references before they are used", "serve it with a larger --keep")


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _check_protocol(headers: httpx2.Headers) -> None:
    found = headers.get(PROTOCOL_HEADER)
    if found is None:
        raise CallError("no cgrpo serve-reward answers there", "correct options.url", fatal=True)
    if found != str(PROTOCOL):
        raise CallError(
            f"it uses protocol {found}, this client {PROTOCOL}",
            "install the same version of customized-grpo on both machines",
            fatal=True,
        )


def _scores(answer: bytes, count: int) -> list[float]:
    scores = ScoreResponse.model_validate_json(answer).scores
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} images")
    return [math.nan if score is None else score for score in scores]


def _missing(error: CallError) -> set[str]:
    """Return the names of the images that the server lacks. Raises CallError."""
    try:
        return set(json.loads(error.answer)["detail"]["missing"])
    except (ValueError, KeyError, TypeError) as malformed:
        raise CallError("a malformed list of missing images", "look at the server's log", own=True) from malformed
