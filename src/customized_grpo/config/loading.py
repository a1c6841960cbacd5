"""A run's configuration from YAML and `--set`, and back: what is not named keeps its default, or its model's preset.

Nothing but plain YAML 1.1 values is read (with 1e-4 a number, as in YAML 1.2); no variable is
expanded.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from customized_grpo.config import Config, ConfigError, PolicyConfig
from customized_grpo.config.presets import preset_of
from customized_grpo.config.section import section_in
from customized_grpo.utils.hub import EMBEDDED
from customized_grpo.utils.records import write_bytes

Location = tuple[str | int, ...]
_Section = TypeVar("_Section", bound=BaseModel)

#: The recipe of the embedded model, which `embedded` names in place of a file.
EMBEDDED_RECIPE = Path(__file__).parents[1] / "embedded" / "recipe.yaml"
#: Numbers such as 1e-4, which YAML 1.1 takes for text because they have no point.
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_LARGEST_FILE = 2**20  # bytes
_LONGEST_KEY = 40  # letters of a key that are held against known ones
_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))
_TEXTS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "timestamp", "value"))
_COLLECTIONS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq"))


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values comes from.

    Attributes:
        config: The configuration.
        origins: FILE:LINE, the override, the preset or `default`, by dotted key.
        embedded: Whether it is the recipe of the embedded model because no other was given.
    """

    config: Config
    origins: Mapping[str, str]
    embedded: bool


def load_config(path: Path | Sequence[Path] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load the configuration of YAML files and overrides, see `resolve_config`."""
    return resolve_config(path, overrides).config


def resolve_config(path: Path | Sequence[Path] | None = None, overrides: Sequence[str] = ()) -> Resolved:
    """Load the configuration of YAML files and overrides.

    Each file is laid over those before it, the first over the defaults and the preset of the model that is named. The
    file `embedded` is the recipe of the embedded model. Without files that recipe is used, unless an override names
    another model.

    An override is `a.b=VALUE`, its value YAML; parts of lists go by their number, as in
    `rewards.0.weight=2`. Sections are merged key by key with what they differ from; lists and free
    mappings are replaced. Where none names evaluation.data.path it is data.path. Raises
    ConfigError, one line for each problem: FILE:LINE or the override, the dotted key, the value given, the remedy.
    """
    files = [path] if isinstance(path, Path) else list(path or [])
    if not files:
        layers = _Layers([Path(EMBEDDED)], overrides)
        if layers.model == _Layers([Path(EMBEDDED)]).model:
            return layers.resolve(embedded=True)
    return _Layers(files, overrides).resolve()


def base_config(policy: PolicyConfig) -> Config:
    """The configuration that a run of this model has where it names nothing else."""
    return load_config(None, [f"policy.{key}={json.dumps(getattr(policy, key))}" for key in ("kind", "path")])


class _Layers:
    """Defaults, files and overrides, merged. Raises ConfigError where one cannot be read."""

    def __init__(self, files: Sequence[Path], overrides: Sequence[str] = ()) -> None:
        self._reader = _Reader()
        self._read = [self._reader.file(file) for file in files]
        self._overrides = overrides
        self.model: Mapping[str, Any] = {}
        self._values = self._merged()
        # Known only once all is merged, and the preset below all of it depends on it.
        policy = self._values.get("policy")
        if isinstance(policy, dict):
            self.model = {key: policy[key] for key in ("kind", "path")}
        self._values = self._merged()

    def _merged(self) -> dict[str, Any]:
        try:
            base = Config.model_validate({"policy": self.model})
        except ValidationError:  # no such model, which is reported below
            base = Config()
        values: dict[str, Any] = base.model_dump(mode="json")
        values["evaluation"]["data"]["path"] = None  # until it is named
        for read in self._read:
            _merge(values, deepcopy(read), ())
        for override in self._overrides:
            self._reader.override(values, override)
        self._reader.stop_at_problems()
        return values

    def resolve(self, *, embedded: bool = False) -> Resolved:
        try:
            config = Config.model_validate(self._values, strict=True)  # no "3" for 3, no true for 1
        except ValidationError as error:
            problems = [self._reader.describe(detail) for detail in error.errors(include_url=False)]
            raise ConfigError(*dict.fromkeys(problems)) from None
        usual = preset_comments(config)
        if not self._reader.named(("evaluation", "data", "path")):
            usual |= {f"evaluation.data.{key}": f"data.{key}" for key in ("path", "root")}
        origins = {}
        for location in _leaves(config.model_dump(mode="json"), ()):
            key = _dotted(location)
            origins[key] = self._reader.named(location) or usual.get(key, "default")
        return Resolved(config, origins, embedded)


def _leaves(value: Any, location: Location) -> Iterator[Location]:
    """The places of all values that are neither sections nor lists of them."""
    parts: Iterable[tuple[str | int, Any]]
    if isinstance(value, dict) and _section(location) is not None:
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    else:
        yield location
        return
    for name, part in parts:
        yield from _leaves(part, (*location, name))


def problems_of(error: ValidationError, section: str = "") -> list[str]:
    """One line for each problem of settings that were given in Python, of all of a run or of one section."""
    details = error.errors(include_url=False)
    if section:
        details = [{**detail, "loc": (section, *detail["loc"])} for detail in details]
    return [_Reader().describe(detail) for detail in details]


def make_section(section: type[_Section], name: str, settings: Mapping[str, Any]) -> _Section:
    """Make a section of settings given in Python. Raises ConfigError, one line for each problem."""
    try:
        return section(**settings)
    except ValidationError as error:
        raise ConfigError(*problems_of(error, name)) from error


def read_mapping(path: Path) -> tuple[dict[str, Any], Callable[[Location], str]]:
    """The values of a YAML file that is no configuration, and what says where a place of it stands, as "FILE:LINE: ".

    As safely and strictly read as a configuration: plain values, no key twice. Raises ConfigError.
    """
    reader = _Reader()
    return reader.file(path), reader.origin


def nearest(key: str, known: Iterable[str]) -> str | None:
    """That of the known keys which `key` was probably meant to be."""
    return next(iter(difflib.get_close_matches(key[:_LONGEST_KEY], known, n=1)), None)


def save_config(config: Config, path: Path) -> None:
    """Writes all of `config` as YAML that `load_config` reads back equal. The file is replaced at
    once or not at all."""
    write_bytes(path, as_yaml(config, preset_comments(config)).encode("utf-8"))


def preset_comments(config: Config) -> dict[str, str]:
    """By dotted key, which preset it is that has the same value."""
    preset, values = preset_of(config.policy), config.model_dump(mode="json")
    same = (key for key, value in preset.values.items() if _value_at(values, key) == value)
    return dict.fromkeys(same, f"preset of {preset.model}")


def _value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def as_yaml(config: Config, comments: Mapping[str, str] | None = None) -> str:
    """All of `config` as YAML that `load_config` reads back equal, with comments by dotted key."""
    text = dump_yaml(config.model_dump(mode="json"))
    if not comments:
        return text
    lines = text.split("\n")
    for line, key in _key_lines(yaml.compose(text, Loader=yaml.SafeLoader), ()):
        if key in comments:
            lines[line] += f"  # {comments[key]}"
    return "\n".join(lines)


def _key_lines(node: Any, location: Location) -> Iterator[tuple[int, str]]:
    """(line, dotted key) of each key that a comment can stand behind, in a document that `dump_yaml` wrote."""
    if isinstance(node, yaml.SequenceNode):
        for number, part in enumerate(node.value):
            yield from _key_lines(part, (*location, number))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*location, str(key.value))
            line, first, last = key.start_mark.line, value.start_mark.line, value.end_mark.line
            if first > line or last == line:  # else the value is a text that goes on in the next line
                yield line, _dotted(here)
            yield from _key_lines(value, here)


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Values of JSON as YAML, in their order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Reader:
    """Reads YAML values, and remembers where each came from and what is wrong."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._origins: dict[Location, str] = {}

    def file(self, path: Path) -> dict[str, Any]:
        name = str(path)
        path = EMBEDDED_RECIPE if name == EMBEDDED else path
        try:
            if path.is_file() and path.stat().st_size > _LARGEST_FILE:
                raise ConfigError(f"{path}: more than {_LARGEST_FILE // 2**20} MB; give a configuration")
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
        earlier, self._origins = self._origins, {}
        values = self._parse(text, name, (), lines=True)
        # What a file replaces whole takes with it where its parts came from.
        replaced = tuple(at for at in self._origins if _section(at) is None)
        kept = {at: place for at, place in earlier.items() if not any(at[: len(new)] == new for new in replaced)}
        self._origins = kept | self._origins
        self.stop_at_problems()
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: not a mapping; write keys such as 'train:' with their values below")
        return values

    def override(self, values: dict[str, Any], override: str) -> None:
        """Applies one `a.b=VALUE` to `values` in place."""
        origin = f"--set {' '.join(override.splitlines())}"
        name, sign, text = override.partition("=")
        if not sign or not all(name.strip().split(".")):
            self.problems.append(f"{origin}: not an override; write KEY=VALUE, e.g. train.iterations=10")
            return
        location: Location = ()
        target: Any = values
        parts = name.strip().split(".")
        for part in parts[:-1]:
            step = self._step(target, part, location, origin)
            if step is None:
                return
            location += (step,)
            if isinstance(target, dict) and target.get(part) is None:
                target[part] = {}  # a section that was null, such as policy.lora, begins anew
            target = target[step]
        step = self._step(target, parts[-1], location, origin)
        if step is None:
            return
        location += (step,)
        before = len(self.problems)
        is_section = _section(location) is not None
        if not is_section:  # all that stood there is replaced, and with it where its parts came from
            depth = len(location)
            self._origins = {at: place for at, place in self._origins.items() if at[:depth] != location}
        value = self._parse(text, origin, location, lines=False)
        if len(self.problems) > before:
            return
        self._origins[location] = origin
        if is_section and isinstance(value, dict) and isinstance(target[step], dict):
            _merge(target[step], value, location)
        else:
            target[step] = value

    def _step(self, target: Any, part: str, location: Location, origin: str) -> str | int | None:
        """`part` as a key or number of `target`; None, and a problem, where it can be neither."""
        if isinstance(target, dict):
            section = _section(location)
            if section is not None and part not in section.model_fields:
                self.problems.append(f"{origin}: {_unknown(location, part)}")
                return None
            return part
        if isinstance(target, list):
            if part.isdecimal() and int(part) < len(target):
                return int(part)
            count = f"entries 0 to {len(target) - 1}" if target else "no entries"
            self.problems.append(f"{origin}: {_dotted(location)} has {count}, not {part!r}; set the whole list")
            return None
        self.problems.append(f"{origin}: {_dotted(location)} has no parts; set it as a whole")
        return None

    def stop_at_problems(self) -> None:
        if self.problems:
            raise ConfigError(*dict.fromkeys(self.problems))

    def describe(self, detail: Any) -> str:
        """One line of one of pydantic's errors."""
        location: Location = tuple(part for part in detail["loc"] if part != "[key]")
        origin = self.origin(location)
        kind, given = detail["type"], detail["input"]
        if kind == "extra_forbidden":
            return f"{origin}{_unknown(location[:-1], str(location[-1]))}"
        plain = {"list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping"}
        message = str(detail["msg"]).removeprefix("Value error, ")
        if kind in plain:
            message = f"input should be {plain[kind]}"
        if kind == "value_error" and not location:
            return f"{origin}{message}"
        message = f"{_dotted(location)}: {message[0].lower()}{message[1:]}"
        if kind == "string_type" and isinstance(given, bool | int | float):
            message += ", in quotes"
        return origin + (message if kind == "missing" else f"{message}; given {_shown(given)}")

    def origin(self, location: Location) -> str:
        """Where that part, or the nearest around it, was given, with a colon; nothing where it was not."""
        for end in range(len(location), 0, -1):
            if location[:end] in self._origins:
                return f"{self._origins[location[:end]]}: "
        return ""

    def named(self, location: Location) -> str | None:
        """Where that value was given, by itself or with the list or free mapping around it; None where it was not."""
        for end in range(len(location), 0, -1):
            around = location[:end]
            if end < len(location) and _section(around) is not None:
                return None
            if around in self._origins:
                return self._origins[around]
        return None

    def _parse(self, text: str, origin: str, location: Location, *, lines: bool) -> Any:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{origin}:{mark.line + 1}" if lines and mark else origin
            reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
            self.problems.append(f"{place}: not valid YAML ({reason}); correct it")
            return None
        except RecursionError:
            self.problems.append(f"{origin}: nested too deeply; write it flat")
            return None
        seen: set[int] = set()
        return None if node is None else self._value(node, origin, location, lines, seen)

    def _value(self, node: Any, origin: str, location: Location, lines: bool, seen: set[int]) -> Any:
        place = f"{origin}:{node.start_mark.line + 1}" if lines else origin
        if id(node) in seen and not isinstance(node, yaml.ScalarNode):
            self.problems.append(f"{place}: {_dotted(location)} is an alias; write its values out")
            return None
        seen.add(id(node))
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            self.problems.append(f"{place}: {_dotted(location)} has the tag {node.tag!r}; write a plain value")
            return None
        if isinstance(node, yaml.MappingNode):
            return dict(self._items(node, origin, location, lines, seen))
        if isinstance(node, yaml.SequenceNode):
            values = []
            for i, part in enumerate(node.value):
                here = (*location, i)
                self._origins[here] = f"{origin}:{part.start_mark.line + 1}" if lines else origin
                values.append(self._value(part, origin, here, lines, seen))
            return values
        return self._scalar(node, place, location)

    def _items(
        self, node: Any, origin: str, location: Location, lines: bool, seen: set[int]
    ) -> Iterator[tuple[str, Any]]:
        given: set[str] = set()
        for key_node, value_node in node.value:
            place = f"{origin}:{key_node.start_mark.line + 1}" if lines else origin
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                self.problems.append(f"{place}: {_dotted(location)} has a key that is no plain text; write it out")
                continue
            key = str(key_node.value)
            here = (*location, key)
            if key in given:
                self.problems.append(f"{place}: {_dotted(here)} is given twice; keep one")
                continue
            given.add(key)
            self._origins[here] = place
            yield key, self._value(value_node, origin, here, lines, seen)

    def _scalar(self, node: Any, place: str, location: Location) -> Any:
        if node.tag in _TEXTS:
            if node.style is None and _EXPONENT.fullmatch(node.value):
                value: Any = float(node.value)
            else:
                return str(node.value)
        elif node.tag in _SCALARS:
            try:
                value = yaml.SafeLoader("").construct_object(node)
            except (ValueError, KeyError, yaml.YAMLError):
                self.problems.append(f"{place}: {_dotted(location)}: {node.value!r} is no value; put it in quotes")
                return None
        else:
            self.problems.append(f"{place}: {_dotted(location)} has the tag {node.tag!r}; write a plain value")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.problems.append(f"{place}: {_dotted(location)} must be finite; given {node.value}")
        return value


def _merge(into: dict[str, Any], changes: Mapping[str, Any], location: Location) -> None:
    """Lays `changes` over `into`: sections key by key, everything else replaced."""
    for key, value in changes.items():
        here = (*location, key)
        if _section(here) is not None:
            if value is None and not _nullable(here):
                continue  # a section whose every key is commented out
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                _merge(into[key], value, here)
                continue
        into[key] = value


def _annotation(location: Location) -> Any:
    """The type that the configuration declares at `location`; None where it declares none."""
    annotation: Any = Config
    for part in location:
        section = section_in(annotation)
        if isinstance(part, int):
            annotation = next((a for a in (annotation, *get_args(annotation)) if _is_list(a)), None)
            annotation = get_args(annotation)[0] if annotation else None
        elif section is not None and part in section.model_fields:
            annotation = section.model_fields[part].annotation
        else:
            return None
    return annotation


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is list


def _section(location: Location) -> type[BaseModel] | None:
    return section_in(_annotation(location))


def _nullable(location: Location) -> bool:
    return NoneType in get_args(_annotation(location))


def _unknown(location: Location, key: str) -> str:
    """What to say of a key that its section does not have: the nearest there, else the nearest
    anywhere."""
    section = _section(location)
    here = sorted(section.model_fields) if section is not None else []
    near = nearest(key, here)
    place = None if near is None else _dotted((*location, near))
    if place is None:
        # The shallowest place of a name wins.
        everywhere = dict(sorted(_all_keys(Config, ()), key=lambda item: -item[1].count(".")))
        place = everywhere.get(nearest(key, everywhere) or "")
    remedy = f"did you mean {place}?" if place else f"known are {', '.join(here)}"
    return f"{_dotted((*location, key))}: unknown key; {remedy}"


def _all_keys(section: type[BaseModel], location: Location) -> Iterator[tuple[str, str]]:
    """(name, dotted place) of all that the configuration has, sections included."""
    for name, field in section.model_fields.items():
        yield name, _dotted((*location, name))
        inner = section_in(field.annotation)
        if inner is not None:
            yield from _all_keys(inner, (*location, name))


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location) or "the file"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Dumper(yaml.SafeDumper):  # type: ignore[misc, unused-ignore]
    """Puts text such as "1e-4" in quotes, which `load_config` would take for a number without
    them, and escapes the line breaks of Unicode, which YAML would fold into spaces."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
