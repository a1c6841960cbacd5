"""Base class and types that all sections of a configuration share."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from customized_grpo.config.presets import fill

Location = tuple[str | int, ...]


class ConfigError(ValueError):
    """A configuration that cannot be used: `problems` holds one line each, with the key and the remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    """A group of settings. Unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return defaults that depend on the given values, by dotted key."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return fill(values, cls.defaults(values)) if isinstance(values, Mapping) else values

    def conflicts(self) -> Iterator[tuple[Location, str]]:
        """Yield (key, message) for each setting that does not fit the others."""
        yield from ()

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        """Report conflicts at their own keys, so that errors name the line of the setting."""
        details = [
            InitErrorDetails(
                type=PydanticCustomError("value_error", "{message}", {"message": message}),
                loc=location,
                input=getattr(self, str(location[0])) if len(location) == 1 else None,
            )
            for location, message in self.conflicts()
        ]
        if details:
            raise ValidationError.from_exception_data(type(self).__name__, details)
        return self


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field of this type holds, if it holds one itself and not a list or mapping of them."""
    inner = () if get_origin(annotation) in (list, dict, tuple) else get_args(annotation)
    for candidate in (annotation, *inner):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


_LARGEST_BATCH = 2**20


def _size_or_auto(value: object, inner: ValidatorFunctionWrapHandler) -> object:
    # One line for the key, where pydantic would give one for each of the two types.
    try:
        size = inner(value)
    except ValidationError:
        size = 0
    if size != "auto" and not 1 <= size <= _LARGEST_BATCH:
        raise ValueError(f"should be a number from 1 to {_LARGEST_BATCH}, or auto")
    return size


# Files are read strictly, and YAML has neither tuples nor paths.
T = TypeVar("T")
TupleOrList = Annotated[T, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
PathOrText = Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]

#: Items of one forward pass, or `auto` for as many as fit into free memory.
SizeOrAuto = Annotated[int | Literal["auto"], WrapValidator(_size_or_auto)]
