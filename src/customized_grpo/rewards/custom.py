"""Judges of the user's own: a class or a function, from a module or a file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from customized_grpo.config import RewardConfig
from customized_grpo.protocols import Pair
from customized_grpo.rewards.errors import RewardError, told


class CustomReward:
    """Whatever takes (images, pairs) and returns one score per image, as a tensor or anything torch
    makes one of.
    """

    def __init__(self, name: str, judge: Callable[..., Any], options: dict[str, Any]) -> None:
        self.name = name
        self.judge = judge
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
    place, _, attribute = config.kind.rpartition(":")
    if not place or not attribute:
        raise RewardError(f"reward {name!r}: {config.kind!r} is not package.module:Class or file.py:function")
    module = _load(place, name)
    found = getattr(module, attribute, None)
    if found is None:
        near = difflib.get_close_matches(attribute, dir(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "; name a class or function that it defines"
        raise RewardError(f"reward {name!r}: {place} has no {attribute!r}{hint}")
    if not callable(found):
        raise RewardError(f"reward {name!r}: {config.kind} is a {type(found).__name__}; name a class or function")
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


def _load(place: str, name: str) -> ModuleType:
    """The module of that name, or that a .py file holds."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).expanduser()
        if not path.is_file():
            raise RewardError(f"reward {name!r}: there is no file {place}; paths start from the working directory")
        spec = importlib.util.spec_from_file_location(f"customized_grpo_reward_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise RewardError(f"reward {name!r}: {place} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except RewardError:
        raise
    except ModuleNotFoundError as error:
        raise RewardError(
            f"reward {name!r}: {place} cannot be imported, for want of {error.name!r}; install it or correct the name"
        ) from error
    except Exception as error:
        raise RewardError(f"reward {name!r}: {place} cannot be imported ({told(error)}); correct it") from error


def _check_call(judge: Callable[..., Any], options: dict[str, Any], name: str, kind: str) -> None:
    """Fail now, not after the first hour, where (images, pairs, **options) does not fit."""
    try:
        inspect.signature(judge).bind(None, None, **options)
    except TypeError as error:
        raise RewardError(f"reward {name!r}: {kind} cannot be called as (images, pairs, **options): {error}") from error
    except ValueError:  # some compiled callables have no signature to check
        return
