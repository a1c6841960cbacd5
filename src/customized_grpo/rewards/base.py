"""Base class of the built-in rewards, and the requirements and the event loop of all rewards."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_type_hints

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from customized_grpo.protocols import Need, Pair
from customized_grpo.rewards.errors import RewardError
from customized_grpo.utils.devices import device_of, same_accelerator

T = TypeVar("T")

#: Settings of a reward that are keys of their own in a config, not options.
KEYS = ("path", "name", "device", "role")
#: Type of an option that counts images, prompts or requests.
Count = Annotated[int, Field(ge=1)]
_REMEDIES: dict[Need, str] = {
    "prompt": "give one",
    "reference": "give a photo of the subject",
    "mask": "give one with each reference",
}


class _ConstructorSignature:
    """Signature of a class by its `__init__`; Python before 3.11.3 takes that of `__new__`. Instances have none."""

    def __get__(self, instance: object | None, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        own = inspect.signature(owner.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])


class BuiltinReward:
    """Base class of the built-in rewards. `given` holds the arguments that an object was constructed with.

    Raises RewardError if an option has another type than the constructor declares. Types are strict: no "3" for 3.
    """

    __signature__ = _ConstructorSignature()
    kind: ClassVar[str]
    name: str
    given: Mapping[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Check the options' types before the subclass's constructor runs."""
        declared = get_type_hints(cls.__init__, include_extras=True)
        for option, value in options.items():
            if option in declared and option not in KEYS:
                try:
                    TypeAdapter(declared[option]).validate_python(value, strict=True)
                except ValidationError as error:
                    message = str(error.errors(include_url=False)[0]["msg"])
                    raise RewardError(
                        f"reward {options.get('name') or cls.kind!r}: options.{option} is {value!r}; "
                        f"{message[0].lower()}{message[1:]}"
                    ) from error
        self = super().__new__(cls)
        try:
            self.given = inspect.signature(cls).bind_partial(*args, **options).arguments
        except TypeError:  # __init__ raises the same, with its own name
            self.given = {}
        return self

    def __init__(self, name: str | None, device: torch.device | str | None) -> None:
        self.name = name or self.kind
        self._device = device_of(device, f"reward {self.name!r}: device")

    def __call__(self, images: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Return scores float32 (B,) of images (B, 3, H, W) in [0, 1]."""
        raise NotImplementedError


def needs_of(reward: object, name: str) -> frozenset[Need] | None:
    """Return the attribute `needs` of a reward, None if it has none and may use anything. Raises RewardError."""
    declared = getattr(reward, "needs", None)
    if declared is None:
        return None
    known = get_args(Need)
    if isinstance(declared, str) or not all(one in known for one in declared):
        raise RewardError(f"reward {name!r}: needs is {declared!r}; give a tuple of {', '.join(map(repr, known))}")
    return frozenset(declared)


def check_needs(reward: object, name: str, pairs: Sequence[Pair]) -> None:
    """Raise RewardError, which names reward and pair, if a pair lacks what the reward needs."""
    for need in sorted(needs_of(reward, name) or ()):
        for pair in pairs:
            masked = bool(pair.masks) and None not in pair.masks
            if not {"prompt": pair.prompt.strip(), "reference": pair.references, "mask": masked}[need]:
                raise RewardError(f"reward {name!r} needs a {need}, and pair {pair.key!r} has none; {_REMEDIES[need]}")


@functools.cache
def event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return the event loop of that name, in a thread that lives on: clients keep connections, notebooks their loop."""
    loop, use_accelerator = asyncio.new_event_loop(), same_accelerator()

    def run() -> None:
        use_accelerator()
        torch.set_grad_enabled(False)
        loop.run_forever()

    threading.Thread(target=run, name=name, daemon=True).start()
    return loop


def run_in_loop(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the event loop of all endpoints and return its result; an interrupt cancels it."""
    future = asyncio.run_coroutine_threadsafe(call, event_loop("endpoints"))
    try:
        return future.result()
    finally:
        future.cancel()
