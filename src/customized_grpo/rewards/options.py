"""Options of a reward as a configuration has them, held against the judge's own annotations before it is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from customized_grpo.rewards.errors import RewardError

#: How many pictures, prompts or pairs at a time.
Count = Annotated[int, Field(ge=1)]


def check_options(judge: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
    """Raises RewardError where an option's value is not of the type that the judge's constructor declares.

    As strict as JSON: no "3" for 3, no true for 1.
    """
    declared = get_type_hints(getattr(judge, "__init__", judge), include_extras=True)
    for option, value in options.items():
        try:
            TypeAdapter(declared[option]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            message = str(error.errors(include_url=False)[0]["msg"])
            raise RewardError(
                f"reward {name!r}: options.{option} is {value!r}; {message[0].lower()}{message[1:]}"
            ) from error
