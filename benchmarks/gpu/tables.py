"""A run's record as tables: on the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu.sections import Row, Section, all_sections
from customized_grpo.utils.tables import markdown_table

_LONGEST = 120  # letters of a text, such as an error
_GOALS = (("goal", "goal"), ("target", "target"), ("reached", "reached"))


def show(record: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a record."""
    for section, headings, rows in tables(record):
        table = Table(*headings, title=section.title)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    goals = Table(*(heading for heading, _ in _GOALS), title="Goals on one H100")
    for row in record["goals"]:
        goals.add_row(*map(escape, _cells(row, _GOALS)))
    console.print(goals)


def tables(record: Mapping[str, Any]) -> Iterator[tuple[Section, list[str], list[list[str]]]]:
    """Each section that has results: itself, headings, cells."""
    for section in all_sections():
        rows = record["results"].get(section.name)
        if rows and section.columns:
            columns = section.columns
            if any("failed" in row for row in rows):
                columns = (*columns, ("failed", "failed"))
            used = [(heading, key) for heading, key in columns if any(row.get(key) is not None for row in rows)]
            yield section, [heading for heading, _ in used], [_cells(row, used) for row in rows]


def markdown(record: Mapping[str, Any]) -> str:
    """The goals and each section's table, with its title and notes."""
    lines = ["## Goals", "", markdown_table([heading for heading, _ in _GOALS], _rows(record["goals"], _GOALS))]
    for section, headings, rows in tables(record):
        lines += ["", f"## {section.title}", ""]
        if section.notes:
            lines += [section.notes, ""]
        lines.append(markdown_table(headings, rows))
    return "\n".join(lines)


def _rows(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [_cells(row, columns) for row in rows]


def _cells(row: Row, columns: Sequence[tuple[str, str]]) -> list[str]:
    return [_text(row.get(key)) for _, key in columns]


def _text(value: Any) -> str:
    """A value as people read it; of repeats the median, with least and most."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        middle = _number(value["median"])
        return middle if value["repeats"] == 1 else f"{middle} ({_number(value['min'])} to {_number(value['max'])})"
    return shorten(str(value), _LONGEST, placeholder=" ...")


def _number(value: float) -> str:
    """Three significant digits, no exponent above 1e-4."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
