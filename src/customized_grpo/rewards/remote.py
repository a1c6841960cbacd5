"""A reward that another process or machine works out: `cgrpo serve-reward` at the other end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import httpx2
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from torch import Tensor

from customized_grpo.protocols import Pair
from customized_grpo.rewards.base import BuiltinReward
from customized_grpo.rewards.endpoint import CallError, Endpoint, check_number
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.wire import (
    PROTOCOL,
    PROTOCOL_HEADER,
    TOKEN_VARIABLE,
    Description,
    Missing,
    ScoreRequest,
    ScoreResponse,
    WirePair,
    digest,
    encode,
)
from customized_grpo.utils.devices import device_of
from customized_grpo.utils.pixels import to_image

M = TypeVar("M", bound=BaseModel)
_TRIES = 3  # of one request, its references sent as far as the server lacks them


class Remote(BuiltinReward):
    """The reward that a server has under the name `reward` (this one's own name where none is given).

    Pictures travel with 8 bits a channel: the scores are those of the same reward here on
    `round(255 x) / 255`. References and masks are sent once and kept by the server. Requests hold `batch_size`
    pictures at most, `concurrency` of them are under way at a time; more than one helps to hide the sending, as a
    server scores one request after the other. The token is read from the environment (`token_variable`).

    A picture whose request fails for good, or that the server could not score, has the score NaN. Raises
    RewardError where the server cannot be reached, refuses the token, speaks another protocol or has no such
    reward: all of it when built, before anything is drawn.
    """

    kind: ClassVar[str] = "remote"

    def __init__(
        self,
        *,
        url: str = "",
        reward: str = "",
        name: str = "remote",
        device: torch.device | str | None = None,
        batch_size: int = 16,
        concurrency: int = 2,
        timeout: float = 300.0,
        retries: int = 4,
        backoff: float = 0.5,
        token_variable: str = TOKEN_VARIABLE,
    ) -> None:
        self.name = name
        self._device = device_of(device, f"reward {name!r}: device")
        check_number(name, "batch_size", batch_size, 1)
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
            described = self._endpoint.get("rewards", partial(_read, Description))
        except CallError as error:
            raise self._endpoint.failed(error, "no reward is served") from error
        offers = {offer.name: offer for offer in described.rewards}
        if self._reward not in offers:
            raise RewardError(
                f"reward {name!r}: {self._endpoint.url} has no reward {self._reward!r}; "
                f"set options.reward to one of {', '.join(offers)}"
            )
        #: What the reward over there needs; no more is sent.
        self.needs = offers[self._reward].needs
        #: Only code of a user's own looks at columns of the dataset.
        self._columns = ":" in offers[self._reward].kind
        self._limits = described.limits
        self._batch_size = min(int(batch_size), described.limits.images)
        self._sent: set[str] = set()

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Scores float32 (B,) of pictures (B, 3, H, W) in [0, 1]; NaN where there is none."""
        if images.shape[-1] * images.shape[-2] > self._limits.pixels:
            raise RewardError(
                f"reward {self.name!r}: pictures of {images.shape[-1]} x {images.shape[-2]} pixels, above the "
                f"server's bound of {self._limits.pixels}; serve it with a larger --max-pixels"
            )
        seen = self.needs is None or not {"reference", "mask"}.isdisjoint(self.needs)
        shown = _Pictures(pairs, seen=seen, columns=self._columns)
        size = self._batch_size
        parts = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
        calls = [partial(self._score, images, pairs, part, shown) for part in parts]
        scores = self._endpoint.scores(calls, [len(part) for part in parts])
        return torch.tensor(scores, dtype=torch.float32, device=self._device)

    def _score(self, images: Tensor, pairs: Sequence[Pair], part: range, shown: _Pictures) -> list[float]:
        """Scores of one request's pictures. Raises CallError."""
        distinct = list(dict.fromkeys(id(pairs[i]) for i in part))
        described = [shown.described[one] for one in distinct]
        names = {name for pair in described for name in (*pair.references, *pair.masks) if name is not None}
        request: dict[str, Any] = {
            "reward": self._reward,
            "images": [encode(to_image(images[i])) for i in part],
            "pairs": described,
            "pair_of": [distinct.index(id(pairs[i])) for i in part],
        }
        unsent = names - self._sent
        for _ in range(_TRIES):
            pictures = {name: encode(shown.images[name]) for name in unsent}
            body = ScoreRequest(**request, pictures=pictures).model_dump_json().encode("utf-8")
            if len(body) > self._limits.bytes:
                raise CallError(
                    f"a request of {len(body)} bytes, above the server's bound of {self._limits.bytes}",
                    remedy="lower options.batch_size, or serve it with a larger --max-bytes",
                )
            try:
                scores = self._endpoint.post("score", body, partial(_scores, len(part)))
            except CallError as error:
                if error.status != 409:
                    raise
                unsent |= names & _missing(error.answer)
            else:
                self._sent |= names
                return scores
        raise CallError("the server forgets references before they are used", remedy="serve it with a larger --keep")


class _Pictures:
    """References and masks of pairs by their digests, where they are `seen`, and the pairs as they travel, by id.

    Of the columns, where they are wanted, those go along whose value JSON has.
    """

    def __init__(self, pairs: Sequence[Pair], seen: bool, columns: bool) -> None:
        self.images: dict[str, Image.Image] = {}
        self.described: dict[int, WirePair] = {}
        for pair in pairs:
            if id(pair) not in self.described:
                self.described[id(pair)] = WirePair(
                    key=pair.key,
                    prompt=pair.prompt,
                    references=[self._name(one.convert("RGB")) for one in pair.references] if seen else [],
                    masks=[one and self._name(one.convert("L")) for one in pair.masks] if seen else [],
                    subject=pair.subject,
                    columns={name: value for name, value in pair.columns.items() if _is_json(value)} if columns else {},
                )

    def _name(self, image: Image.Image) -> str:
        name = digest(image)
        self.images[name] = image
        return name


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _check_protocol(headers: httpx2.Headers) -> None:
    found = headers.get(PROTOCOL_HEADER)
    if found is None:
        raise CallError("no cgrpo serve-reward answers there", hopeless=True, remedy="correct options.url")
    if found != str(PROTOCOL):
        raise CallError(
            f"it speaks protocol {found}, this client {PROTOCOL}",
            hopeless=True,
            remedy="install the same version of customized-grpo on both machines",
        )


def _scores(count: int, answer: bytes) -> list[float]:
    scores = _read(ScoreResponse, answer).scores
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} pictures")
    return [math.nan if score is None else score for score in scores]


def _missing(answer: bytes) -> set[str]:
    """The names of pictures that the server lacks. Raises CallError."""
    try:
        return set(_read(Missing, answer).missing)
    except ValueError as error:
        raise CallError(str(error), status=409, own=True, remedy="look at the server's log") from error


def _read(message: type[M], answer: bytes) -> M:
    """A message from JSON. Raises ValueError, one line."""
    try:
        return message.model_validate_json(answer)
    except ValidationError as error:
        raise ValueError(f"not what protocol {PROTOCOL} answers: {error.errors()[0]['msg']}") from error
