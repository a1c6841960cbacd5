"""The benchmark from the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.context import Context
from benchmarks.gpu.report import show
from benchmarks.gpu.sections import RESULTS, SECTIONS, named, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if a section failed."""
    names = ", ".join(section.name for section in SECTIONS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=f"Sections: {names}.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and logs")
    parser.add_argument("--sections", help="some of the sections, separated by commas; default: all")
    parser.add_argument("--tiny", action="store_true", help="the same code with a small model in one process on a CPU")
    parser.add_argument("--time-limit", type=float, default=330.0, help="seconds for the whole run")
    options = parser.parse_args(arguments)
    try:
        sections = named(options.sections)
    except ValueError as error:
        parser.error(str(error))
    # A file has room for wide tables.
    console, began = Console(width=None if sys.stdout.isatty() else 160), time.monotonic()

    def say(line: str) -> None:
        console.print(f"[{time.monotonic() - began:5.0f} s] {line}", markup=False, highlight=False)

    command = shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
    with tempfile.TemporaryDirectory(prefix="benchmarks-gpu-") as folder:
        context = Context(tiny=options.tiny, folder=Path(folder))
        record = run(
            sections, options.out, isolate=not options.tiny, limit=options.time_limit, command=command,
            context=context, say=say,
        )  # fmt: skip
    show(record, console)
    console.print(f"wrote {options.out / RESULTS}", markup=False, highlight=False)
    return 1 if record["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
