"""Arguments of a reward that is a callable of the user's own, filled by the names of its parameters."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from torch import Tensor, nn

from customized_grpo.config.loading import nearest
from customized_grpo.protocols import Pair
from customized_grpo.rewards.errors import RewardError

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
_PLAIN = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Parameters:
    """The parameters of a callable, and its arguments for given images and pairs.

    A parameter receives the option of its name, else the value that `STANDARD` names, else the column of the pairs,
    else its default. `**` receives all columns and standard values that no parameter names. If no parameter is called
    `images` and there is no `**`, the first two without a default may have any names: the first one receives the
    images, the second one the pairs.

    Args:
        function: The callable.
        options: Arguments that are the same in every call.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: The callable takes no arguments, or not one of the options.
    """

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any], reward: str) -> None:
        self._options = dict(options)
        self._reward = reward
        parameters = _parameters(function)
        #: None: (images, pairs) is the only call that can be meant.
        self._named = parameters and [p for p in parameters if p.kind in (*_PLAIN, Parameter.KEYWORD_ONLY)]
        self._takes_all = any(p.kind is Parameter.VAR_KEYWORD for p in parameters or ())
        self._by_position: dict[str, str] = {}
        for option in options:
            if option in STANDARD:
                raise RewardError(f"reward {reward!r}: options.{option} would hide the batch's own; rename it")
        if self._named is None:
            return
        names = [p.name for p in self._named]
        if not names and not self._takes_all:
            raise RewardError(f"reward {reward!r}: it takes no arguments; give it a parameter `images`")
        for option in options:
            if option not in names and not self._takes_all:
                raise RewardError(
                    f"reward {reward!r}: it has no parameter {option!r} for that option; "
                    + _remedy(option, [name for name in names if name not in STANDARD])
                )
        required = [p.name for p in self._named if p.kind in _PLAIN and p.default is p.empty and p.name not in options]
        if not self._takes_all and "images" not in names and required and required[0] not in STANDARD:
            self._by_position = dict(zip(required, ("images", "pairs"), strict=False))

    def bind(self, images: Tensor, pairs: Sequence[Pair]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of a call.

        Raises:
            RewardError: There is nothing to fill a parameter without a default with.
        """
        if self._named is None:
            return [images, list(pairs)], dict(self._options)
        columns = list(dict.fromkeys(name for pair in pairs for name in pair.columns))
        left = {**dict.fromkeys(columns), **dict.fromkeys(STANDARD)}
        positional: list[Any] = []
        keywords: dict[str, Any] = dict(self._options) if self._takes_all else {}
        for parameter in self._named:
            name = parameter.name
            left.pop(name, None)
            if name in self._options:
                value = self._options[name]
            elif name in STANDARD or name in columns:
                value = _value(name, images, pairs)
            elif parameter.default is not parameter.empty:
                value = parameter.default
            elif name in self._by_position and not _misspelt(name):
                value = _value(self._by_position[name], images, pairs)
            else:
                known = [*STANDARD, *columns]
                raise RewardError(
                    f"reward {self._reward!r}: nothing to fill its parameter {name!r} with, which is no option and no "
                    f"column of the dataset; {_remedy(name, known)}"
                )
            if parameter.kind is Parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                keywords[name] = value
        if self._takes_all:
            keywords = {name: _value(name, images, pairs) for name in left} | keywords
        return positional, keywords


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    """The parameters in order; None where they cannot be known."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except ValueError:  # some compiled callables have no signature
        return None
    found = list(signature.parameters.values())
    if found and found[0].kind is Parameter.VAR_POSITIONAL and not any(p.kind is Parameter.KEYWORD_ONLY for p in found):
        return None  # (*args, **kwargs): a wrapper that does not name the function inside it
    return found


def _value(name: str, images: Tensor, pairs: Sequence[Pair]) -> Any:
    if name in _BATCH:
        return _BATCH[name](images, pairs)
    return [pair.columns.get(name) for pair in pairs]


def _misspelt(name: str) -> bool:
    """Whether a name is nearly a standard one, such as its singular: filled by position it would mislead."""
    return bool(difflib.get_close_matches(name, STANDARD, 1, 0.85))


def _remedy(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"there are {', '.join(known) or 'none'}"
