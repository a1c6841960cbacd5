"""Plain YAML values with the place of each, and errors about them in one line.

Tags, aliases, merge keys and repeated keys are refused, and no variable is expanded. Unlike in YAML 1.1, 1e-4 is a
number.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from customized_grpo.config.section import ConfigError, Location, section_in
from customized_grpo.utils.records import RecordError, read_text

#: Numbers such as 1e-4, which YAML 1.1 takes for text because they have no point.
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_LARGEST_FILE = 2**20  # bytes
_LONGEST_KEY = 40  # letters of a key that are compared with known keys
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("null", "bool", "int", "float")}
_TEXTS = {_TAG + kind for kind in ("str", "timestamp", "value")}

#: "FILE:LINE" or the override, by the location of the value that stands there.
Places = dict[Location, str]


def read_file(path: Path, name: str | None = None) -> tuple[dict[str, Any], Places]:
    """Return the values of a YAML mapping, and the place "FILE:LINE" of each; `name` stands for FILE if given.

    Raises ConfigError if the file cannot be read, is no YAML mapping, or holds more than plain values.
    """
    try:
        text = read_text(path, _LARGEST_FILE)
    except RecordError as error:
        raise ConfigError(str(error)) from None
    values, places = parse(text, name or str(path), (), lines=True)
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: not a mapping; write keys such as 'train:' with their values below")
    return values or {}, places


def parse(text: str, origin: str, location: Location, *, lines: bool) -> tuple[Any, Places]:
    """Parse YAML that stands at `location`; with `lines`, places are ORIGIN:LINE. Raises ConfigError."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        places = {location: origin} if location else {}
        return (None if node is None else _Reader(origin, lines, places).value(node, location)), places
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{origin}:{mark.line + 1}" if lines and mark else origin
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
        raise ConfigError(f"{place}: not valid YAML ({reason}); correct it") from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply; write it flat") from error


S = TypeVar("S", bound=BaseModel)


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


class _Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)


class _Reader:
    """Turns YAML nodes into values, and records where each one stands."""

    def __init__(self, origin: str, lines: bool, places: Places) -> None:
        self._origin, self._lines, self._places = origin, lines, places

    def value(self, node: Any, location: Location) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return dict(self._items(node, location))
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            entries = []
            for i, part in enumerate(node.value):
                self._places[*location, i] = self._place(part)
                entries.append(self.value(part, (*location, i)))
            return entries
        if node.tag in _TEXTS and (node.style is not None or not EXPONENT.fullmatch(node.value)):
            return str(node.value)
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS | _TEXTS:
            self._refuse(node, f"{dotted(location)} has the tag {node.tag!r}; write a plain value")
        try:
            value = float(node.value) if node.tag in _TEXTS else yaml.SafeLoader("").construct_object(node)
        except (ValueError, KeyError, yaml.YAMLError):
            self._refuse(node, f"{dotted(location)}: {node.value!r} is no value; put it in quotes")
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(node, f"{dotted(location)} must be finite; given {node.value}")
        return value

    def _items(self, node: Any, location: Location) -> Iterator[tuple[str, Any]]:
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == f"{_TAG}merge":
                self._refuse(key_node, f"{dotted(location)} has a key that is not plain text; write it out")
            here = (*location, str(key_node.value))
            if here in self._places:
                self._refuse(key_node, f"{dotted(here)} is given twice; keep one")
            self._places[here] = self._place(key_node)
            yield str(key_node.value), self.value(value_node, here)

    def _place(self, node: Any) -> str:
        return f"{self._origin}:{node.start_mark.line + 1}" if self._lines else self._origin

    def _refuse(self, node: Any, problem: str) -> NoReturn:
        raise ConfigError(f"{self._place(node)}: {problem}")


def describe(
    error: ValidationError, root: type[BaseModel], place: Callable[[Location], str | None], section: Location = ()
) -> ConfigError:
    """Turn pydantic's errors into one line each: the place, the key, what is wrong, the value given.

    `place` returns where the value at a location of `root` was given. The errors' own locations start from `section`.
    """
    problems = []
    for detail in error.errors(include_url=False):
        location = (*section, *(part for part in detail["loc"] if part != "[key]"))
        at = place(location)
        problems.append(f"{at}: {_problem(detail, root, location)}" if at else _problem(detail, root, location))
    return ConfigError(*dict.fromkeys(problems))


_PLAIN = {"list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping"}


def _problem(detail: Any, root: type[BaseModel], location: Location) -> str:
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(root, location[:-1], str(location[-1]))
    message = str(detail["msg"]).removeprefix("Value error, ")
    if kind in _PLAIN:
        message = f"input should be {_PLAIN[kind]}"
    if not location:
        return message
    message = f"{dotted(location)}: {message[0].lower()}{message[1:]}"
    if kind == "string_type" and isinstance(given, bool | int | float):
        message += ", in quotes"
    first = given[0] if isinstance(given, list) and given else given
    if kind == "missing" or first is None or isinstance(first, BaseModel):
        return message
    shown = repr(list(given) if isinstance(given, tuple) else given)
    return f"{message}; given {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _unknown(root: type[BaseModel], location: Location, key: str) -> str:
    """Describe an unknown key, with the nearest known one in its section, else anywhere."""
    section = section_in(type_at(root, location))
    here = sorted(section.model_fields) if section is not None else []
    near = nearest(key, here)
    known = dotted((*location, near)) if near else None
    if known is None:
        # The shallowest place of a name wins.
        everywhere = dict(sorted(_all_keys(root, ()), key=lambda item: -item[1].count(".")))
        known = everywhere.get(nearest(key, everywhere) or "")
    remedy = f"did you mean {known}?" if known else f"known are {', '.join(here)}"
    return f"{dotted((*location, key))}: unknown key; {remedy}"


def _all_keys(section: type[BaseModel], location: Location) -> Iterator[tuple[str, str]]:
    """Yield (name, dotted place) of all keys, sections included."""
    for name, field in section.model_fields.items():
        yield name, dotted((*location, name))
        if (inner := section_in(field.annotation)) is not None:
            yield from _all_keys(inner, (*location, name))


def type_at(root: type[BaseModel], location: Location) -> Any:
    """Return the type that `root` declares at a location; None if it declares none."""
    annotation: Any = root
    for part in location:
        section = section_in(annotation)
        if section is not None:
            field = section.model_fields.get(str(part))
            annotation = field.annotation if field else None
        else:  # the entries of a list or mapping
            containers = [one for one in (annotation, *get_args(annotation)) if get_origin(one) in (list, dict)]
            annotation = get_args(containers[0])[-1] if containers else None
    return annotation


def nearest(key: str, known: Iterable[str]) -> str | None:
    """Return the known key that `key` was probably meant to be, if any is similar."""
    return next(iter(difflib.get_close_matches(key[:_LONGEST_KEY], known, n=1)), None)


def dotted(location: Location) -> str:
    """Return a location as a dotted key."""
    return ".".join(map(str, location)) or "the file"


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return single settings by dotted key; entries of a list of sections have their number as key."""
    listed = isinstance(value, list) and any(isinstance(one, Mapping) for one in value)
    if not listed and not (isinstance(value, Mapping) and value):
        return {key: value}
    items = enumerate(value) if listed else value.items()
    parts = (flat(inner, f"{key}.{name}" if key else str(name)) for name, inner in items)
    return {name: leaf for part in parts for name, leaf in part.items()}


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write JSON values as YAML, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flow_yaml(value: Any) -> str:
    """Write a JSON value as YAML in one line, as `--set` takes it."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=9999
    )
    return text.removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc, unused-ignore]
    """Quotes text such as "1e-4", and escapes Unicode's line breaks, so that all text is read back as it was."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if re.search("[\x85\u2028\u2029]", text) else None
        return self.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_implicit_resolver(f"{_TAG}float", EXPONENT, list("-+0123456789"))
