"""What the sections of a configuration share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)


class ConfigError(ValueError):
    """A configuration that cannot be run: `problems`, one line each, that name the key and the remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type is, or may be; not that of a list's entries."""
    is_list = getattr(annotation, "__origin__", None) is list
    for candidate in (annotation, *(() if is_list else get_args(annotation))):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _size_or_auto(value: object, inner: ValidatorFunctionWrapHandler) -> object:
    # One line for the key, where pydantic would give one for each of the two types.
    try:
        size = inner(value)
    except ValidationError:
        size = 0
    if size != "auto" and size < 1:
        raise ValueError("should be a number of at least 1, or auto")
    return size


# Files are read strictly, and YAML has neither tuples nor paths.
T = TypeVar("T")
TupleOrList = Annotated[T, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
PathOrText = Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]

#: Items of one forward pass, or as many as memory is free for.
SizeOrAuto = Annotated[int | Literal["auto"], WrapValidator(_size_or_auto)]
