"""Settings of a training as Python code gives them: by section, or directly by name where that is unique."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from customized_grpo.config.loading import problems_of
from customized_grpo.config.run import Config
from customized_grpo.config.section import ConfigError, Section

#: Sections whose settings may be given without naming the section.
_SECTIONS = ("method", "rollout", "train", "evaluation")


class CustomizedGRPOConfig(Config):
    """All settings of a training.

    Keyword arguments are the keys of a YAML recipe: a whole section (`train={"learning_rate": 2e-5}`), or a setting of
    `method`, `rollout`, `train` or `evaluation` by its own name (`learning_rate=2e-5`). A name that two sections have,
    such as `batch_size`, must be given by section. `policy`, `data` and `rewards` describe what the trainer is given as
    objects, and are only used for what it is not given.

    Args:
        output_dir: Folder of the run; a new folder in `runs` if not given.
        **settings: See `cgrpo settings` for each one's meaning and default.

    Raises:
        ConfigError: A name is unknown or ambiguous, or a value is not valid; one line each.
    """

    output_dir: Path | None = Field(None, exclude=True, description="Folder of the run; null: a new one in runs.")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**_by_section(settings))
        except ValidationError as error:
            raise ConfigError(*problems_of(error)) from error


def _by_section(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those that were given directly moved into their section."""
    sorted_in: dict[str, Any] = {}
    moved: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if name in CustomizedGRPOConfig.model_fields:
            sorted_in[name] = value
            continue
        sections = [s for s in _SECTIONS if name in Config.model_fields[s].annotation.model_fields]  # type: ignore[union-attr]
        if not sections:
            raise ConfigError(f"{name}: unknown setting; `cgrpo settings` lists all of them")
        if len(sections) > 1:
            forms = " or ".join(f"{section}={{{name!r}: {value!r}}}" for section in sections)
            raise ConfigError(f"{name}: is a setting of {' and of '.join(sections)}; give {forms}")
        moved.setdefault(sections[0], {})[name] = value
    for section, values in moved.items():
        given = sorted_in.get(section, {})
        if isinstance(given, Section):
            given = {name: getattr(given, name) for name in given.model_fields_set}
        if twice := given.keys() & values.keys():
            raise ConfigError(f"{min(twice)}: given twice, directly and in {section}; give it once")
        sorted_in[section] = {**given, **values}
    return sorted_in
