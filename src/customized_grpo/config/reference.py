"""Reference of all settings: key, allowed values, default, meaning."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from customized_grpo.config.section import Section, section_in
from customized_grpo.config.settings import Config

#: Stands for the number of an entry of a list, in a key.
ENTRY = "N"

_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "multiple_of": "multiple of {}"}
_NAMES = {bool: "true, false", int: "whole number", float: "number", str: "text", Path: "path", NoneType: "null"}


@dataclass(frozen=True)
class Setting:
    """One key. `default` is YAML, and empty if the key is required."""

    key: str
    values: str
    default: str
    meaning: str


def settings() -> list[Setting]:
    """Return all settings in the order of a file. In keys of a list's entries, N stands for the number."""
    return list(_of(Config, Config(), ""))


def _of(section: type[BaseModel], chosen: BaseModel | None, prefix: str) -> Iterator[Setting]:
    """Yield the settings of a section; `chosen` holds defaults that differ from the section's own."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        default = field.get_default(call_default_factory=True) if chosen is None else getattr(chosen, name)
        inner = section_in(field.annotation) or section_in(
            next(iter(get_args(field.annotation)), None)
        )  # of its entries
        if inner is None or isinstance(default, list) or type(None) in get_args(field.annotation):
            yield Setting(key, _values(field), _shown(field, default), " ".join((field.description or "").split()))
        if inner is not None:
            listed = isinstance(default, list)
            if listed and name != "rewards":
                continue  # monitors, whose entries are those of rewards
            part = f"{key}.{ENTRY}." if listed else f"{key}."
            yield from _of(inner, default if isinstance(default, Section) else None, part)


def _shown(field: FieldInfo, default: Any) -> str:
    if field.is_required():
        return ""
    if isinstance(default, Section):
        return "as below"
    if isinstance(default, list) and default and isinstance(default[0], Section):
        return "1 entry" if len(default) == 1 else f"{len(default)} entries"
    return default if isinstance(default, str) and default else json.dumps(default)


def _values(field: FieldInfo) -> str:
    bounds = [
        text.format(_plain(getattr(bound, name)))
        for bound in field.metadata
        for name, text in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join([_named(field.annotation), *bounds])


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _named(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin is list:
        return f"list of {_plural(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} of {_named(inner[0])}"
    if origin is dict:
        return "mapping"
    if inner and hasattr(annotation, "__metadata__"):  # Annotated
        return _named(inner[0])
    if inner:  # a union
        return " or ".join(_named(part) for part in inner)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return _NAMES.get(annotation, str(annotation))


def _plural(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        return f"pairs of {_named(get_args(annotation)[0])}s"
    name = _named(annotation)
    return f"{name}s" if "," not in name and name != "text" else name
