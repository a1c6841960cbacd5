"""A run's record as tables on the terminal and as docs/gpu.md.

python -m benchmarks.gpu.report runs/gpu/gpu.json

stores that file as docs/gpu.json and writes docs/gpu.md. Without a file the page is made again from the stored one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.timing import Row
from customized_grpo.utils.tables import markdown_table

ROOT = Path(__file__).parents[2]
PAGE, STORED = ROOT / "docs" / "gpu.md", ROOT / "docs" / "gpu.json"
_LONGEST = 120  # letters of a text, such as an error


def show(record: Mapping[str, Any], console: Console) -> None:
    """Print a table of each section with results."""
    for section in SECTIONS:
        if rows := record["results"].get(section.name):
            headings, cells = table(rows)
            shown = Table(*headings, title=section.title)
            for row in cells:
                shown.add_row(*map(escape, row))
            console.print(shown)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: every key that some row has a number, a text or repeats for."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if _text(value))
    return [key.replace("_", " ") for key in keys], [[_text(row.get(key)) for key in keys] for row in rows]


def _text(value: Any) -> str:
    """Format a value; for repeats the median with minimum and maximum; nothing for None and nested values."""
    if value is None or (isinstance(value, Mapping) and "median" not in value):
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
    """Format with three significant digits and no exponent above 1e-3."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def stored() -> dict[str, Any] | None:
    """Return the record that docs/gpu.md is made from; None if nothing has been measured."""
    return json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else None


def page(record: Mapping[str, Any] | None) -> str:
    """Return docs/gpu.md."""
    head, first_probe = (
        Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.md", "first_probe.md")
    )
    if record is None:
        return f"{head}\n{first_probe}"
    parts = [head + "\n" + "\n".join(_machine(record))]
    for section in SECTIONS:
        if rows := record["results"].get(section.name):
            parts += [f"## {section.title}", section.notes, markdown_table(*table(rows))]
    missing = []
    for section in SECTIONS:
        for kind, what in (("skipped", "skipped"), ("failures", "failed or incomplete")):
            if section.name in record[kind]:
                missing.append(f"- {section.title}: {what}, {record[kind][section.name]}.")
        if not any(section.name in record[kind] for kind in ("results", "skipped", "failures")):
            missing.append(f"- {section.title}: not asked for.")
    missing.append("- Published weights: these are random, so no image quality was looked at.")
    missing.append("- More than one GPU, other cards, quantised weights, other models than FLUX.1.")
    return "\n\n".join([*parts, "## What was not measured", "\n".join(missing)]) + "\n"


def _machine(record: Mapping[str, Any]) -> Iterable[str]:
    machine = record["machine"]
    memory = f", {machine['memory_gb']:.0f} GB" if "memory_gb" in machine else ""
    yield f"## What was measured, and on what\n\n- {machine['device']}{memory}"
    yield "- " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if "cuda" in machine:
        yield f"- CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, driver {machine['driver']}"
    yield f"- `{record['command']}`, {record['began']}, {record['seconds']['total']:.0f} s in all"
    yield "- Times are medians, with minimum and maximum of all repeats."


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="gpu.json of a run on a GPU")
    results = parser.parse_args(arguments).results
    if results is not None:
        if json.loads(results.read_text(encoding="utf-8"))["tiny"]:
            parser.error(f"{results}: made with --tiny, which measures nothing; give one of a GPU")
        shutil.copyfile(results, STORED)
    PAGE.write_text(page(stored()), encoding="utf-8")


if __name__ == "__main__":
    main()
