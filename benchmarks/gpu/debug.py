"""Sections that fail in every way, for the tests of the parent process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from benchmarks.gpu.context import Context
from benchmarks.gpu.sections import Row


def rows(context: Context) -> Iterator[Row]:
    yield from ({"row": k} for k in range(2))


def error(context: Context) -> Iterator[Row]:
    yield {"row": 0}
    raise RuntimeError("an error of the section's own")


def crash(context: Context) -> Iterator[Row]:
    yield {"row": 0}
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(context: Context) -> Iterator[Row]:
    yield {"row": 0}
    time.sleep(600)
