"""Typed YAML files other than a run's configuration: a study, an evaluation's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from customized_grpo.config.reading import describe, read_file
from customized_grpo.config.section import Location, Section

__all__ = ["Section", "read_section"]

S = TypeVar("S", bound=Section)


def read_section(path: Path, section: type[S]) -> S:
    """Read a YAML file as that section. Raises ConfigError, one line per problem, with the nearest known key."""
    values, places = read_file(path)

    def place(location: Location) -> str:
        around = (location[:end] for end in range(len(location), 0, -1))
        return next((places[at] for at in around if at in places), str(path))

    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise describe(error, section, place) from error
