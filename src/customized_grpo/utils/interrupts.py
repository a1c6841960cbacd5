"""Ctrl-C in a command, wherever it falls. Imports next to nothing, so that it can be set up before anything else."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

#: The line that an interrupted command ends with, and its exit code.
INTERRUPTED, CODE = "interrupted; saved files remain", 130
#: Filled when Ctrl-C was pressed: a library may turn it into an error of its own.
interrupts: list[int] = []


def note_interrupts() -> None:
    """Handle Ctrl-C on the main thread, in place of Python's own handler: note it, and raise KeyboardInterrupt.

    During an import the process ends at once: modules that are half imported swallow interrupts, or fail on them.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    with suppress(ValueError):  # not on the main thread
        signal.signal(signal.SIGINT, _note)


def _note(number: int, frame: FrameType | None) -> None:
    interrupts.append(number)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            with suppress(Exception):
                sys.stdout.flush()
            os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(CODE)
        frame = frame.f_back
    raise KeyboardInterrupt
