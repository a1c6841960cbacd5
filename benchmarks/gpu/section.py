"""One process of the benchmark: its sections one after another, reported line by line as JSON on standard output.

python -m benchmarks.gpu.section velocity training

Each line is an object with an `event`: machine, start, row, end (with `error`, null where there was none), skip.
Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.sections import Row, Section, named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+")
    parser.add_argument("--tiny", action="store_true", help="a small model on a CPU")
    parser.add_argument("--folder", type=Path, help="for temporary files, which it leaves behind")
    parser.add_argument("--until", type=float, default=float("inf"), help="time.time() at which to be done")
    parser.add_argument("--later", type=float, default=0.0, help="seconds of it for sections of later processes")
    arguments = parser.parse_args()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    context = Context(tiny=arguments.tiny, folder=arguments.folder)

    def emit(event: str, **values: Any) -> None:
        lines.write(json.dumps({"event": event, **values}) + "\n")
        lines.flush()

    emit("machine", machine=machine(context))
    for section in named(arguments.sections):
        note = section.shortage(arguments.until - time.time(), arguments.later)
        if note is not None:
            emit("skip", section=section.name, note=note)
            continue
        error = _run(section, context, emit)
        emit("end", section=section.name, error=error)
        if error is not None and not context.usable():
            os._exit(1)  # at once: what would be freed on the way is on a device that no longer answers


def _run(section: Section, context: Context, emit: Callable[..., None]) -> str | None:
    """Emit the section's rows; returns the error that ended it."""
    module, _, name = section.measure.partition(":")
    try:
        # Imports take seconds, which are not the section's.
        measure: Callable[[Context], Iterator[Row]] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        emit("start", section=section.name)
        for row in measure(context):
            emit("row", section=section.name, row=row)
        context.tidy()
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def machine(context: Context) -> Row:
    """The device and the versions that decide what it does."""
    import torch

    from customized_grpo.utils.machine import hardware, versions

    found: Row = {**hardware(context.device), "CPUs": os.cpu_count(), "versions": versions()}
    if context.device.type == "cuda":
        properties = torch.cuda.get_device_properties(context.device)
        found |= {
            "memory_gb": properties.total_memory / 1e9,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "driver": _driver(),
        }
    return found


def _driver() -> str | None:
    """The driver's version, where the system says it."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return None
    return next((word for word in words if word.replace(".", "").isdecimal() and "." in word), None)


if __name__ == "__main__":
    main()
