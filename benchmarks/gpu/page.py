"""docs/gpu.md, made of a run's gpu.json.

python -m benchmarks.gpu.page runs/gpu/gpu.json

stores that file as docs/gpu.json and writes docs/gpu.md. Without a file the page is made again of what is stored.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import ROOT
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.tables import markdown

PAGE, STORED = ROOT / "docs" / "gpu.md", ROOT / "docs" / "gpu.json"
_HEAD = Path(__file__).with_name("page.md")
_FIRST_PROBE = Path(__file__).with_name("first_probe.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="gpu.json of a run on a GPU")
    arguments = parser.parse_args()
    if arguments.results is not None and json.loads(arguments.results.read_text(encoding="utf-8"))["tiny"]:
        parser.error(f"{arguments.results}: of a run with --tiny, which measures nothing; give one of a GPU")
    if arguments.results is not None:
        shutil.copyfile(arguments.results, STORED)
    PAGE.write_text(page(stored()), encoding="utf-8")


def stored() -> dict[str, Any] | None:
    """The record that docs/gpu.md is made of; None where nothing has been measured."""
    if not STORED.exists():
        return None
    found: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return found


def page(record: Mapping[str, Any] | None) -> str:
    """The whole document."""
    head = _HEAD.read_text(encoding="utf-8")
    if record is None:
        return f"{head}\n{_FIRST_PROBE.read_text(encoding='utf-8')}"
    return "\n".join([head, _machine(record), "", markdown(record), "", _not_measured(record), ""])


def _machine(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "## What was measured, and on what",
        "",
        f"- {machine['device']}" + (f", {machine['memory_gb']:.0f} GB" if "memory_gb" in machine else ""),
        f"- {versions}",
    ]
    if "cuda" in machine:
        driver = machine["driver"] or "of an unknown version"
        lines.append(f"- CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, driver {driver}")
    lines.append(f"- `{record['command']}`, {record['began']}, {record['seconds']['total']:.0f} s in all")
    lines.append("- Times are medians, with the least and the most of all repeats.")
    return "\n".join(lines)


def _not_measured(record: Mapping[str, Any]) -> str:
    lines = ["## What was not measured", ""]
    for section in SECTIONS:
        if (note := record["skipped"].get(section.name)) is not None:
            lines.append(f"- {section.title}: skipped, {note}.")
        elif (failure := record["failures"].get(section.name)) is not None:
            lines.append(f"- {section.title}: failed or incomplete, {failure['error']}.")
        elif section.name not in record["results"]:
            lines.append(f"- {section.title}: not asked for.")
    lines += [
        "- Published weights: these are random, so no image quality was looked at.",
        "- More than one GPU, other cards, quantised weights, other models than FLUX.1.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
