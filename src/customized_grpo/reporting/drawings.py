"""Figures as SVG inside a page: words stay words, and lines take the page's colours, light or dark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from markupsafe import Markup

from customized_grpo.reporting.palette import LINES

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_NAMES = {colour.lower(): name for colour, name in LINES.items()}
_NEUTRAL = ("ink", "card", "grid")  # these follow the page wherever they stand
_KEPT = frozenset({"svg", "g", "path", "use", "text", "defs", "clipPath", "rect", "tspan"})


def drawn(draw: Callable[[Path], None], name: str, description: str) -> Markup:
    """What `draw` writes to the SVG file it is given, as an element of a page.

    `name` is one of the page's own, by letters, digits and hyphens; `description` is the figure's text alternative.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        draw(path)
        root = ElementTree.fromstring(path.read_bytes())  # noqa: S314 - written the line before
    return Markup(inlined(root, name, description))  # noqa: S704 - serialised, so escaped, by ElementTree


def inlined(root: ElementTree.Element, name: str, description: str) -> str:
    """An SVG document as an element of HTML, its ids made the page's own by `name`."""
    _restyle(root, name)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "drawing", "role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _restyle(element: ElementTree.Element, name: str) -> None:
    element.tag = element.tag.rpartition("}")[2]
    attributes = {}
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        if key == "id":
            if element.tag in ("g", "svg", "text"):
                continue  # matplotlib's own count of its parts: nothing refers to them
            value = f"{name}-{value}"
        elif key == "href":
            value = f"#{name}-{value.removeprefix('#')}"
        elif key == "style":
            value = _style(value, words=element.tag == "text")
        attributes[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    element.attrib.clear()
    element.attrib.update(attributes)
    for child in list(element):
        if child.tag.rpartition("}")[2] in _KEPT:
            _restyle(child, name)
        else:
            element.remove(child)


def _style(style: str, *, words: bool) -> str:
    parts = dict(part.strip().split(": ", 1) for part in style.split(";") if ": " in part)
    parts.pop("font-family", None)  # the page's own
    # A full area keeps its colour, so that the dark words on it can be read; all else follows the page.
    line = words or parts.get("stroke", "none") != "none" or not parts.keys().isdisjoint(("opacity", "fill-opacity"))

    def named(match: re.Match[str]) -> str:
        known = _NAMES.get(match[0].lower())
        return f"var(--{known})" if known and (line or known in _NEUTRAL) else match[0]

    return "; ".join(f"{key}: {_COLOUR.sub(named, value)}" for key, value in parts.items())
