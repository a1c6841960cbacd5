"""Ctrl-C in a command, wherever it falls. It imports little, so that it can be set up before anything else."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

#: Exit code of an interrupted command.
CODE = 130
#: Filled when Ctrl-C was pressed: a library may turn it into an error of its own.
interrupts: list[int] = []


def note_interrupts() -> None:
    """Handle Ctrl-C on the main thread, in place of Python's own handler: note it, and raise KeyboardInterrupt.

    During an import the process ends at once: modules that are half imported swallow interrupts, or fail on them.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    try:
        signal.signal(signal.SIGINT, _note)
    except ValueError:  # not on the main thread
        return


def leave_at_once() -> NoReturn:
    """End an interrupted process, with one line, without what Python does at an exit."""
    try:
        sys.stdout.flush()
    finally:
        os.write(2, b"interrupted; saved files remain\n")
        os._exit(CODE)


def _note(number: int, frame: FrameType | None) -> None:
    interrupts.append(number)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave_at_once()
        frame = frame.f_back
    raise KeyboardInterrupt
