"""A run's configuration from YAML files and `--set`, and back.

Keys that are not set keep their default or the preset of the model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from customized_grpo.config.presets import objective_defaults, preset_of
from customized_grpo.config.reading import (
    Places,
    describe,
    dotted,
    dump_yaml,
    flat,
    flow_yaml,
    parse,
    read_file,
    type_at,
)
from customized_grpo.config.section import ConfigError, Location, section_in
from customized_grpo.config.settings import Config, PolicyConfig
from customized_grpo.utils.hub import EMBEDDED
from customized_grpo.utils.records import write_bytes

_Section = TypeVar("_Section", bound=BaseModel)

#: Recipe of the embedded model, which `embedded` names in place of a file.
EMBEDDED_RECIPE = Path(__file__).parents[1] / "embedded" / "recipe.yaml"


@dataclass(frozen=True)
class Resolved:
    """A configuration, and FILE:LINE, the override, preset or `default` that gave each value, by dotted key.

    `embedded` is true if it is the recipe of the embedded model because no other was given.
    """

    config: Config
    origins: Mapping[str, str]
    embedded: bool

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield (dotted key, value as YAML, origin) of all settings."""
        for key, value in flat(self.config.model_dump(mode="json")).items():
            yield key, flow_yaml(value), self.origins[key]


def load_config(path: Path | Sequence[Path] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load the configuration of YAML files and overrides; see `resolve_config`."""
    return resolve_config(path, overrides).config


def resolve_config(path: Path | Sequence[Path] | None = None, overrides: Sequence[str] = ()) -> Resolved:
    """Load the configuration of YAML files and overrides (`a.b=VALUE`), with the origin of each value.

    Later files override earlier ones, and the first one the defaults and the preset of the model. Sections are merged
    key by key; lists and mappings of options are replaced. Without files the recipe of the embedded model is used,
    unless an override names another model. Raises ConfigError, one line per problem: place, key, value, remedy.
    """
    changes = [_override(one) for one in overrides]
    files = [path] if isinstance(path, Path) else list(path or [])
    if not files:
        recipe = [_file(Path(EMBEDDED))]
        if _model_of([*recipe, *changes]) == _model_of(recipe):
            return _resolve([*recipe, *changes], embedded=True)
    return _resolve([*map(_file, files), *changes])


def base_config(policy: PolicyConfig) -> Config:
    """Return the configuration of a run of this model with nothing else set."""
    return load_config(None, [f"policy.{key}={flow_yaml(getattr(policy, key))}" for key in ("kind", "path")])


def make_section(section: type[_Section], name: str, settings: Mapping[str, Any]) -> _Section:
    """Make a section of settings given in Python. Raises ConfigError, one line per problem."""
    try:
        return section(**settings)
    except ValidationError as error:
        raise describe(error, Config, lambda location: None, (name,)) from error


def save_config(config: Config, path: Path) -> None:
    """Write all of `config` as YAML that `load_config` reads back equal, replacing the file in one move."""
    write_bytes(path, dump_yaml(config.model_dump(mode="json")).encode("utf-8"))


@dataclass(frozen=True)
class _Layer:
    """Values of a file, or the value of an override at its location; and the place of each."""

    location: Location
    value: Any
    places: Places

    def section(self, name: str) -> dict[str, Any]:
        """Return the settings of a section that it gives."""
        value = self.value
        for part in reversed(self.location):
            value = {part: value}
        found = value.get(name) if isinstance(value, dict) else None
        return found if isinstance(found, dict) else {}


def _file(path: Path) -> _Layer:
    embedded = str(path) == EMBEDDED
    return _Layer((), *read_file(EMBEDDED_RECIPE if embedded else path, str(path)))


def _override(text: str) -> _Layer:
    origin = f"--set {' '.join(text.splitlines())}"
    name, sign, value = text.partition("=")
    location = tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))
    if not sign or "" in location:
        raise ConfigError(f"{origin}: not an override; write KEY=VALUE, e.g. train.iterations=10")
    return _Layer(location, *parse(value, origin, location, lines=False))


def _model_of(layers: Iterable[_Layer]) -> dict[str, Any]:
    """Return `policy.kind` and `policy.path` where layers give them."""
    return _given(layers, "policy", ("kind", "path"))


def _given(layers: Iterable[_Layer], section: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a section that layers give, of those with these keys."""
    found = [layer.section(section) for layer in layers]
    return {key: values[key] for values in found for key in keys if key in values}


def _resolve(layers: Sequence[_Layer], *, embedded: bool = False) -> Resolved:
    try:
        base = Config.model_validate({"policy": _model_of(layers), "method": _given(layers, "method", ("objective",))})
    except ValidationError:  # no such model or objective, which is reported below
        base = Config()
    values: dict[str, Any] = base.model_dump(mode="json")
    places: Places = {}
    for layer in layers:
        _apply(values, places, layer)
    try:
        config = Config.model_validate(values, strict=True)  # no "3" for 3, no true for 1
    except ValidationError as error:
        raise describe(error, Config, lambda location: _nearest(places, location)) from None
    found, preset, objective = flat(config.model_dump(mode="json")), preset_of(config.policy), config.method.objective
    origins = dict.fromkeys(found, "default")
    for name, usual in (
        (f"preset of {preset.model}", preset.values),
        (f"default of method.objective={objective}", objective_defaults(config.method)),
    ):
        origins |= {key: name for key, value in usual.items() if key in found and found[key] == value}
    for section in ("evaluation", "validation"):
        if (section, "data", "path") not in places:
            origins |= {f"{section}.data.{key}": f"data.{key}" for key in ("path", "root")}
    given = {dotted(location): place for location, place in places.items()}
    return Resolved(config, origins | {key: given[key] for key in found if key in given}, embedded)


def _apply(values: dict[str, Any], places: Places, layer: _Layer) -> None:
    """Lay a layer over `values` and their `places`."""
    target: Any = values
    for depth, part in enumerate(layer.location):
        around = f"{layer.places[layer.location]}: {dotted(layer.location[:depth])}"
        if isinstance(target, list) and not (isinstance(part, int) and part < len(target)):
            count = f"entries 0 to {len(target) - 1}" if target else "no entries"
            raise ConfigError(f"{around} has {count}, not {str(part)!r}; set the whole list")
        if not isinstance(target, dict | list):
            raise ConfigError(f"{around} has no parts; set it as a whole")
        key = part if isinstance(target, list) else str(part)
        if depth == len(layer.location) - 1:
            _merge(target, {key: layer.value}, layer.location[:-1], layer.places, places)
            return
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}  # a section that was null, such as policy.lora
        target = target[key]
    _merge(target, layer.value, (), layer.places, places)


def _merge(into: Any, changes: Mapping[Any, Any], location: Location, new: Places, places: Places) -> None:
    """Lay `changes`, given at `new` places, over a mapping or list: sections key by key, everything else replaced."""
    for key, value in changes.items():
        here = (*location, key)
        annotation = type_at(Config, here)
        if section_in(annotation) is not None:
            before = into.get(key) if isinstance(into, dict) else into[key]
            if value is None and NoneType not in get_args(annotation):
                continue  # a section without keys, as where all of them are commented out
            if isinstance(value, dict) and isinstance(before, dict):
                places |= {here: new[here]} if here in new else {}
                _merge(before, value, here, new, places)
                continue
        into[key] = value
        for at in [at for at in places if at[: len(here)] == here]:
            del places[at]
        places |= {at: place for at, place in new.items() if at[: len(here)] == here}


def _nearest(places: Places, location: Location) -> str | None:
    """Return where the value, or the list or mapping around it, or a part of it was given; None if nowhere."""
    given = [location[:end] for end in range(len(location), 0, -1) if location[:end] in places]
    if given and (given[0] == location or any(section_in(type_at(Config, at)) is None for at in given)):
        return places[given[0]]
    # An unknown section that an override made has a place only for what is inside it.
    return next((place for at, place in places.items() if at[: len(location)] == location), None)
