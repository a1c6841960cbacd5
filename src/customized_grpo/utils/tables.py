"""Markdown tables, and text of users in Markdown and CSV."""

import re
from collections.abc import Iterable, Sequence


def markdown_text(text: str) -> str:
    """Return text of a user, such as a prompt or a file name, so that Markdown shows it as it is, in one line."""
    escaped = re.sub(r"([\\`*\[\]<>~]|\b_|_\b)", r"\\\1", " ".join(text.split()))
    # At the beginning of a line: headings, lists and rules.
    return re.sub(r"^(\d*)([#+=.)-])", r"\1\\\2", escaped)


def csv_cell(text: str) -> str:
    """Return text for a cell of a CSV file that a spreadsheet does not run as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table without a final newline; bars inside cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(headings), "|" + " --- |" * len(headings), *(line(cells) for cells in rows)])
