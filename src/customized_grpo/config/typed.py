"""Typed YAML files other than a run's configuration: a study, an evaluation's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from customized_grpo.config import ConfigError
from customized_grpo.config.loading import nearest, read_mapping


class Section(BaseModel):
    """A mapping of such a file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


def read_section(path: Path, section: type[S]) -> S:
    """The file's content as that section. Raises ConfigError, one line for each problem, with the nearest known key."""
    values, origin = read_mapping(path)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = ((origin(detail["loc"]) or f"{path}: ") + _problem(detail, section) for detail in error.errors())
        raise ConfigError(*problems) from error


def _problem(detail: Any, section: type[Section]) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        *around, key = detail["loc"]
        known = _keys(section, around)
        near = nearest(str(key), known)
        remedy = f"did you mean {near}?" if near else f"known are {', '.join(known)}"
        return f"{place}: unknown key; {remedy}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}" if place else message


def _keys(section: type[BaseModel], around: Sequence[str | int]) -> list[str]:
    """The keys known at a place of a section: those of the innermost section on the way there."""
    for part in around:
        field = section.model_fields.get(str(part))
        inner = [kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)] if field else []
        section = inner[0] if inner else section
    return list(section.model_fields)


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes that an annotation such as dict[str, Section] | None names."""
    arguments = get_args(annotation)
    if not arguments:
        yield from [annotation] if isinstance(annotation, type) else []
    for argument in arguments:
        yield from _kinds(argument)
