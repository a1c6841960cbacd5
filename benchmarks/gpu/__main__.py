"""The benchmark from the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.runner import RESULTS, Run
from benchmarks.gpu.sections import SECTIONS, named
from benchmarks.gpu.tables import show


def main() -> int:
    names = ", ".join(section.name for section in SECTIONS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=f"Sections: {names}.")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for gpu.json and logs")
    parser.add_argument("--sections", help="some of the sections, separated by commas; all where none is given")
    parser.add_argument("--tiny", action="store_true", help="the same code with a small model, on a CPU")
    parser.add_argument("--time-limit", type=float, default=330.0, help="seconds for the whole run")
    arguments = parser.parse_args()
    try:
        sections = named(arguments.sections.split(",") if arguments.sections else None)
    except ValueError as error:
        parser.error(str(error))
    # Where the output is no terminal, the tables have room.
    console, began = Console(width=None if sys.stdout.isatty() else 160), time.monotonic()

    def say(line: str) -> None:
        console.print(f"[{time.monotonic() - began:5.0f} s] {line}", markup=False, highlight=False)

    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    run = Run(arguments.out, tiny=arguments.tiny, limit=arguments.time_limit, command=command, say=say)
    run.run(sections)
    show(run.record, console)
    console.print(f"wrote {arguments.out / RESULTS}", markup=False, highlight=False)
    return 1 if run.record["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
