"""Judges of the user's own: a class or a function, from a module or a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
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
    try:
        found = find(config.kind)
    except NamedError as error:
        raise RewardError(f"reward {name!r}: {error}") from error
    if not isinstance(found, type):
        _check_call(found, config.options, name, config.kind)
        return CustomReward(name, found, dict(config.options))
    arguments = dict(config.options)
    accepted = inspect.signature(found).parameters
    offered = {"path": config.path, "name": name, "device": device}
    arguments |= {key: value for key, value in offered.items() if key in accepted and value is not None}
    try:
        judge = found(**arguments)
    except Exception as error:
        raise RewardError(
            f"reward {name!r}: {config.kind} could not be constructed ({told(error)}); "
            "its options come from the reward's `options`"
        ) from error
    if not callable(judge):
        raise RewardError(f"reward {name!r}: {config.kind} has no __call__(images, pairs); define one")
    _check_call(judge, {}, name, config.kind)
    return CustomReward(name, judge, {})


def _check_call(judge: Callable[..., Any], options: dict[str, Any], name: str, kind: str) -> None:
    """Fail now, not after the first hour, where (images, pairs, **options) does not fit."""
    try:
        inspect.signature(judge).bind(None, None, **options)
    except TypeError as error:
        raise RewardError(f"reward {name!r}: {kind} cannot be called as (images, pairs, **options): {error}") from error
    except ValueError:  # some compiled callables have no signature to check
        return
