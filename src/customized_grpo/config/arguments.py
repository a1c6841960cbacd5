"""Settings of a training as Python code gives them: by section, or directly by name where that is unique."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError

from customized_grpo.config.presets import preset_of, values_of
from customized_grpo.config.reading import describe
from customized_grpo.config.section import ConfigError, Section, section_in
from customized_grpo.config.settings import Config, PolicyConfig

#: Sections whose settings may be given without naming the section.
_SECTIONS = ("method", "forward", "rollout", "train", "evaluation")


class CustomizedGRPOConfig(Config):
    """All settings of a training.

    Keyword arguments are the keys of a YAML recipe: a whole section (`train={"learning_rate": 2e-5}`), or a setting of
    `method`, `forward`, `rollout`, `train` or `evaluation` by its own name (`learning_rate=2e-5`). A name that two
    sections have, such as `batch_size`, must be given by section. `policy`, `data` and `rewards` describe the objects
    that the trainer gets, and are only used for those that it does not get.

    Args:
        output_dir: Folder of the run. None: a new folder in `runs`.
        **settings: See `cgrpo settings` for each one's meaning and default.

    Raises:
        ConfigError: A name is unknown or ambiguous, or a value is not valid; one line each.
    """

    output_dir: Path | None = Field(None, exclude=True, description="Folder of the run. null: a new one in runs.")
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, **settings: Any) -> None:
        given = _by_section(settings)
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise describe(error, CustomizedGRPOConfig, lambda location: None) from error
        self._given = given

    def for_policy(self, policy: PolicyConfig) -> Self:
        """Return these settings for another policy: its model's preset applies to all that was not given.

        Raises:
            ConfigError: A given setting does not fit the preset; one line each.
        """
        before, now = preset_of(self.policy).values, preset_of(policy).values
        settings = {name: getattr(self, name) for name in self.model_fields_set}
        for name in ("rollout", "evaluation"):
            section, given = getattr(self, name), self._given.get(name, {})
            if isinstance(given, Section):
                continue
            follows = {
                key: value
                for key, value in values_of(now, name).items()
                if key not in given and getattr(section, key) == before[f"{name}.{key}"]
            }
            settings[name] = {key: getattr(section, key) for key in section.model_fields_set} | follows
        made = type(self)(**{**settings, "policy": policy})
        made._given = self._given
        return made


def _by_section(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Move settings that were given directly into their section."""
    sorted_in = {name: value for name, value in settings.items() if name in CustomizedGRPOConfig.model_fields}
    models = {section: section_in(Config.model_fields[section].annotation) for section in _SECTIONS}
    for name, value in settings.items():
        if name in sorted_in:
            continue
        sections = [section for section, model in models.items() if model and name in model.model_fields]
        if not sections:
            raise ConfigError(f"{name}: unknown setting; `cgrpo settings` lists all of them")
        if len(sections) > 1:
            forms = " or ".join(f"{section}={{{name!r}: {value!r}}}" for section in sections)
            raise ConfigError(f"{name}: is a setting of {' and of '.join(sections)}; give {forms}")
        given = sorted_in.get(sections[0], {})
        if isinstance(given, Section):
            given = {key: getattr(given, key) for key in given.model_fields_set}
        if name in given:
            raise ConfigError(f"{name}: given twice, directly and in {sections[0]}; give it once")
        sorted_in[sections[0]] = {**given, name: value}
    return sorted_in
