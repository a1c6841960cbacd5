"""Any callable as a reward, and the user's own code by its path."""

from __future__ import annotations

import asyncio
import copy
import difflib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from customized_grpo.config import RewardConfig
from customized_grpo.config.redaction import hide_secrets
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards.base import KEYS, BuiltinReward, event_loop, needs_of
from customized_grpo.rewards.errors import RewardError, did_you_mean
from customized_grpo.utils.isolation import isolated, isolated_coroutine, isolated_task
from customized_grpo.utils.named import NamedError, error_text, find

_BATCH: dict[str, Callable[[Tensor, Sequence[Pair]], Any]] = {
    "images": lambda images, pairs: images,
    "prompts": lambda images, pairs: [pair.prompt for pair in pairs],
    "references": lambda images, pairs: [pair.references for pair in pairs],
    "masks": lambda images, pairs: [pair.masks for pair in pairs],
    "subjects": lambda images, pairs: [pair.subject for pair in pairs],
    "pairs": lambda images, pairs: list(pairs),
}
#: Parameter names with a fixed meaning. All others are options of the reward or columns of the dataset.
STANDARD = tuple(_BATCH)
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class CallableReward:
    """A reward that calls a function, method or object, synchronous or not.

    A parameter receives the option of its name, else the value that `STANDARD` names, else the column of the pairs,
    else its default. `**` receives all columns and standard values that no parameter names. If no parameter is called
    `images` and there is no `**`, the first two without a default may have any names: the first one receives the
    images, the second one the pairs.

    Args:
        function: Returns one score per image: a tensor, an array, a list or a generator of numbers, None for a missing
            score.
        name: Name in logs, tables and figures.
        kind: `module:qualname` of the function, or the path that it was loaded from.
        options: Arguments of every call.
        given: Settings of the config that it was built from, if there is one.

    Raises:
        RewardError: The function takes no arguments, or not one of the options.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        kind: str,
        options: Mapping[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.given: Mapping[str, Any] = given or {}
        self.function = function
        self.needs = needs_of(function, name)
        self.is_async = any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004
        self._options = dict(options or {})
        #: None: (images, pairs) is the only call that can be meant.
        self._signature = _signature(function)
        self._by_position: dict[str, str] = {}
        for option in self._options:
            if option in STANDARD:
                raise RewardError(f"reward {name!r}: options.{option} has the name of a standard argument; rename it")
        if self._signature is None:
            return
        named = [p for p in self._signature.parameters.values() if p.kind is not Parameter.VAR_POSITIONAL]
        takes_all = bool(named) and named[-1].kind is Parameter.VAR_KEYWORD
        names = [p.name for p in named]
        if not names:
            raise RewardError(f"reward {name!r}: it takes no arguments; give it a parameter `images`")
        for option in self._options:
            if option not in names and not takes_all:
                own = [one for one in names if one not in STANDARD]
                raise RewardError(
                    f"reward {name!r}: it has no parameter {option!r} for that option; "
                    + did_you_mean(option, own, f"there are {', '.join(own) or 'none'}")
                )
        required = [p.name for p in named if p.kind in _POSITIONAL and p.default is p.empty]
        required = [one for one in required if one not in self._options]
        if not takes_all and "images" not in names and required and required[0] not in STANDARD:
            # Names that are nearly standard, such as the singular, are misspelt and not meant by position.
            pairs = zip(required, ("images", "pairs"), strict=False)
            self._by_position = {k: v for k, v in pairs if not difflib.get_close_matches(k, STANDARD, 1, 0.85)}

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,) of images (B, 3, H, W) in [0, 1]."""
        return self.begin(images, pairs)()

    def begin(self, images: Tensor, pairs: Sequence[Pair]) -> Callable[[], Tensor]:
        """Call the function, and return a callable that waits for its scores.

        An asynchronous function runs meanwhile on the event loop of all asynchronous rewards.
        """
        positional, keywords = self._arguments(images, pairs)
        result = self.function(*positional, **keywords)
        if not inspect.isawaitable(result):
            return lambda: _scores(result, len(images))
        loop = event_loop("asynchronous rewards")
        loop.set_task_factory(isolated_task)
        future = asyncio.run_coroutine_threadsafe(isolated_coroutine(_awaited(result)), loop)
        return lambda: _scores(future.result(), len(images))

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise RewardError if a parameter could not be filled for these pairs."""
        self._arguments(torch.empty(len(pairs), 3, 0, 0), pairs)

    def _arguments(self, images: Tensor, pairs: Sequence[Pair]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments. Raises RewardError if there is no value for a parameter."""
        if self._signature is None:
            return (images, list(pairs)), self._options
        values: dict[str, Any] = {name: [] for pair in pairs for name in pair.columns}
        values = {name: [pair.columns.get(name) for pair in pairs] for name in values}
        values |= {name: value(images, pairs) for name, value in _BATCH.items()} | self._options
        known = [*STANDARD, *(name for name in values if name not in (*STANDARD, *self._options))]
        arguments: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is Parameter.VAR_POSITIONAL:
                continue
            if parameter.kind is Parameter.VAR_KEYWORD:
                arguments[name] = {key: value for key, value in values.items() if key not in arguments}
            elif name in values:
                arguments[name] = values[name]
            elif parameter.default is not parameter.empty:
                arguments[name] = parameter.default
            elif name in self._by_position:
                arguments[name] = values[self._by_position[name]]
            else:
                raise RewardError(
                    f"reward {self.name!r}: no value for its parameter {name!r}, which is no option and no column of "
                    "the dataset; " + did_you_mean(name, known, f"there are {', '.join(known)}")
                )
        bound = inspect.BoundArguments(self._signature, arguments)
        return bound.args, bound.kwargs


def as_reward(obj: object, *, name: str | None = None) -> Reward:
    """Return a reward that calls `obj`; rewards of this package are returned as they are.

    Args:
        obj: A function, method, lambda or object with `__call__`, synchronous or not. Its parameters are filled by
            name: see `CallableReward`. An attribute `needs` names what a pair must have: "prompt", "reference", "mask".
        name: Name in logs, tables and figures. Default: the object's attribute `name`, else that of the function or
            class.

    Raises:
        RewardError: `obj` cannot be called as a reward.
    """
    if isinstance(obj, BuiltinReward | CallableReward):
        if name is not None and name != obj.name:
            obj = copy.copy(obj)
            obj.name = name
        return obj
    if isinstance(obj, type):
        raise RewardError(f"{obj.__name__} is a class; give an object of it as reward: {obj.__name__}()")
    if not callable(obj):
        raise RewardError(f"{obj!r:.60} is no reward; give a callable that takes images")
    function: Any = obj
    while isinstance(function, functools.partial):
        function = function.func
    source = function if hasattr(function, "__qualname__") else type(function)
    named = getattr(obj, "name", None)
    default = named if isinstance(named, str) and named else source.__name__.strip("<>")
    return CallableReward(obj, name=name or default, kind=f"{source.__module__}:{source.__qualname__}")


def describe(reward: object) -> dict[str, Any]:
    """Return the settings of a reward as a config has them: kind, name, path, device and options, without secrets.

    A reward that was made of a callable has the kind `module:qualname`. A config can build it again if that is the
    name of a function or class in a module.
    """
    known = as_reward(reward)
    assert isinstance(known, BuiltinReward | CallableReward)
    path, device = (known.given.get(key) for key in ("path", "device"))
    options = {key: value for key, value in known.given.items() if key not in KEYS}
    return {
        "kind": known.kind,
        "name": known.name,
        "path": path and str(path),
        "device": device and str(device),
        "options": hide_secrets(options),
    }


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
        with isolated("construct", name):
            made = found(**arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit(0) would pass for success
        raise RewardError(
            f"reward {name!r}: {place} could not be constructed ({error_text(error)}); "
            "its options come from the reward's `options`"
        ) from error
    if not callable(made):
        raise RewardError(f"reward {name!r}: {place} has no __call__({call}); define one")
    return made, {}


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a function, None if it is not known."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except ValueError:  # some compiled callables have none
        return None
    parameters = list(signature.parameters.values())
    wraps = bool(parameters) and parameters[0].kind is Parameter.VAR_POSITIONAL  # (*args, **kwargs)
    return None if wraps and not any(p.kind is Parameter.KEYWORD_ONLY for p in parameters) else signature


def _scores(result: object, count: int) -> Tensor:
    """Convert the return value of a callable. Raises RewardError if it is no list, array or tensor of numbers."""
    remedy = f"return one number per image, here a list or tensor of {count}"
    if isinstance(result, Tensor):
        if result.is_complex():
            raise RewardError(f"it returned a tensor of complex numbers; {remedy}")
        return result
    if isinstance(result, np.ndarray):
        result = result.tolist()
    if isinstance(result, Iterator):
        result = list(itertools.islice(result, count + 1))  # one that never ends is too long
    if isinstance(result, dict):
        raise RewardError(f"it returned a dict with {', '.join(map(repr, list(result)[:4]))}; {remedy}")
    if result is None:
        raise RewardError(f"it returned None, as a function without `return` does; {remedy}")
    if not isinstance(result, list | tuple):
        raise RewardError(f"it returned a {type(result).__name__}; {remedy}")
    scores = []
    for place, value in enumerate(result):
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
            value = value.item()
        if not isinstance(value, Real | np.bool_ | None):
            raise RewardError(f"score {place} that it returned is {value!r:.60}; {remedy}, None if there is no score")
        scores.append(torch.nan if value is None else float(value))
    return torch.tensor(scores, dtype=torch.float32)


async def _awaited(result: Any) -> Any:
    return await result
