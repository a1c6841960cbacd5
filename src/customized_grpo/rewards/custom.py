"""Judges, and segmenters, of the user's own: a class or a function, from a module or a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.named import NamedError, find, told
from customized_grpo.protocols import Pair
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.needs import needs_of


class CustomReward:
    """Whatever takes (images, pairs) and returns one score per image, as a tensor or anything torch
    makes one of.
    """

    def __init__(self, name: str, judge: Callable[..., Any], options: dict[str, Any]) -> None:
        self.name = name
        self.judge = judge
        self.needs = needs_of(judge, name)
        self._options = options

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        scores = self.judge(images, pairs, **self._options)
        return scores if isinstance(scores, Tensor) else torch.as_tensor(scores, dtype=torch.float32)


def load_custom(config: RewardConfig, name: str, device: torch.device) -> CustomReward:
    """The judge that `config.kind`, `package.module:Name` or `file.py:name`, leads to.

    A function gets `options` at each call; a class gets them when constructed, and `path`, `name`
    and `device` if its constructor takes them. The code that is named is run: it is the user's own.
    Raises RewardError.
    """
    offered = {"path": config.path, "name": name, "device": device}
    judge, options = load_own(config.kind, config.options, offered, name, "pairs")
    return CustomReward(name, judge, options)


def load_own(
    place: str, options: Mapping[str, Any], offered: Mapping[str, Any], name: str, second: str
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What `place` leads to, to be called as (images, `second`, **options), and those options.

    A class is constructed with the options, and with what is `offered` as far as it takes it; its object then needs
    none. Raises RewardError, which names the reward `name`.
    """
    try:
        found = find(place)
    except NamedError as error:
        raise RewardError(f"reward {name!r}: {error}") from error
    if not isinstance(found, type):
        _check_call(found, options, name, place, second)
        return found, dict(options)
    accepted = inspect.signature(found).parameters
    arguments = {**options, **{k: value for k, value in offered.items() if k in accepted and value is not None}}
    try:
        made = found(**arguments)
    except Exception as error:
        raise RewardError(
            f"reward {name!r}: {place} could not be constructed ({told(error)}); "
            "its options come from the reward's `options`"
        ) from error
    if not callable(made):
        raise RewardError(f"reward {name!r}: {place} has no __call__(images, {second}); define one")
    _check_call(made, {}, name, place, second)
    return made, {}


def _check_call(called: Callable[..., Any], options: Mapping[str, Any], name: str, place: str, second: str) -> None:
    """Fail now, not after the first hour, where (images, second, **options) does not fit."""
    try:
        inspect.signature(called).bind(None, None, **options)
    except TypeError as error:
        raise RewardError(
            f"reward {name!r}: {place} cannot be called as (images, {second}, **options): {error}"
        ) from error
    except ValueError:  # some compiled callables have no signature to check
        return
