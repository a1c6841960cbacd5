"""Rewards and segmentation models of the user's own: a class or a function, from a module or a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from customized_grpo.config import RewardConfig
from customized_grpo.rewards.base import CallableReward
from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.named import NamedError, find, told


def load_custom(config: RewardConfig, name: str, device: torch.device) -> CallableReward:
    """Load the reward that `config.kind`, `package.module:Name` or `file.py:name`, names.

    A function gets `options` at each call; a class gets them when constructed, and `path`, `name` and `device` if its
    constructor takes them. The named code is run: it is the user's own. Raises RewardError.
    """
    offered = {"path": config.path, "name": name, "device": device}
    function, options = load_own(config.kind, config.options, offered, name, "images, ...")
    given = {"path": config.path, "device": config.device, **config.options}
    return CallableReward(function, name=name, kind=config.kind, options=options, given=given)


def load_own(
    place: str, options: Mapping[str, Any], offered: Mapping[str, Any], name: str, call: str
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Load the callable that `place` names, and the options that remain for its calls.

    A class is constructed with the options, and with those of `offered` that its constructor takes; no options remain.
    `call` lists the arguments of a call, for error messages. Raises RewardError, which names the reward `name`.
    """
    try:
        found = find(place)
    except NamedError as error:
        raise RewardError(f"reward {name!r}: {error}") from error
    if not isinstance(found, type):
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
        raise RewardError(f"reward {name!r}: {place} has no __call__({call}); define one")
    return made, {}
