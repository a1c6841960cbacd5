"""Base class of the built-in rewards, and a reward made of any callable."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from customized_grpo.config.redaction import hide_secrets
from customized_grpo.protocols import Pair, Reward
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.needs import needs_of
from customized_grpo.rewards.parameters import Parameters

#: Settings of a reward that are keys of their own in a config, not options.
_KEYS = ("path", "name", "device", "role")


class BuiltinReward:
    """Base class of the built-in rewards. `given` holds the arguments that an object was constructed with."""

    kind: ClassVar[str]
    name: str
    given: Mapping[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        self = super().__new__(cls)
        try:
            self.given = inspect.signature(cls).bind_partial(*args, **options).arguments
        except TypeError:  # __init__ raises the same, with its own name
            self.given = {}
        return self

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,) of images (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError


class CallableReward:
    """A reward that calls a function, method or object, synchronous or not.

    Args:
        function: Called with the arguments that `Parameters` describes. It returns one score per image: a tensor, an
            array or a list of numbers, in which None stands for a missing score.
        name: Name in logs, tables and figures.
        kind: `module:qualname` of the function, or the path that it was loaded from.
        options: Arguments of every call.
        given: Settings of the config that it was built from, if there is one.

    Raises:
        RewardError: The function cannot be called so.
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
        self._parameters = Parameters(function, options or {}, name)

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,) of images (B, 3, H, W) in [0, 1]."""
        return self.begin(images, pairs)()

    def begin(self, images: Tensor, pairs: Sequence[Pair]) -> Callable[[], Tensor]:
        """Call the function, and return a callable that waits for its scores.

        An asynchronous function runs meanwhile on the event loop of all asynchronous rewards.
        """
        positional, keywords = self._parameters.bind(images, pairs)
        result = self.function(*positional, **keywords)
        if not inspect.isawaitable(result):
            return lambda: _scores(result, len(images))
        future = asyncio.run_coroutine_threadsafe(_awaited(result), _event_loop())
        return lambda: _scores(future.result(), len(images))

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise RewardError if a parameter could not be filled for these pairs."""
        self._parameters.bind(torch.empty(len(pairs), 3, 0, 0), pairs)


def as_reward(obj: object, *, name: str | None = None) -> Reward:
    """Return a reward that calls `obj`; rewards of this package are returned as they are.

    Args:
        obj: A function, method, lambda or object with `__call__`, synchronous or not. Its parameters are filled by
            name: see `Parameters`. An attribute `needs` names what a pair must have: "prompt", "reference", "mask".
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
    options = {key: value for key, value in known.given.items() if key not in _KEYS}
    return {
        "kind": known.kind,
        "name": known.name,
        "path": path and str(path),
        "device": device and str(device),
        "options": hide_secrets(options),
    }


def _scores(result: object, count: int) -> Tensor:
    """Convert what a callable returned. Raises RewardError where that is no list, array or tensor of numbers."""
    if isinstance(result, Tensor):
        return result
    if isinstance(result, np.ndarray):
        result = result.tolist()
    remedy = f"return one number per image, here a list or tensor of {count}"
    if not isinstance(result, list | tuple):
        raise RewardError(f"it returned a {type(result).__name__}; {remedy}")
    scores = []
    for place, value in enumerate(result):
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
            value = value.item()
        if not isinstance(value, Real | np.bool_ | None):
            raise RewardError(
                f"score {place} of those it returned is {value!r:.60}; {remedy}, None if there is no score"
            )
        scores.append(torch.nan if value is None else float(value))
    return torch.tensor(scores, dtype=torch.float32)


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all asynchronous rewards, in a thread of its own: a notebook's own loop is in use.

    It lives as long as the process, so that clients of endpoints keep their connections.
    """
    loop = asyncio.new_event_loop()

    def run() -> None:
        torch.set_grad_enabled(False)
        loop.run_forever()

    threading.Thread(target=run, name="asynchronous rewards", daemon=True).start()
    return loop


async def _awaited(result: Any) -> Any:
    try:
        return await result
    except (SystemExit, KeyboardInterrupt) as error:  # either would end the loop, and its waiters would wait for ever
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
