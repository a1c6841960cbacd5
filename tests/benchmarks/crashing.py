"""Work that fails in every way, as sections and attention calls of the GPU benchmark may."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import torch

from benchmarks.gpu.attention import Call
from benchmarks.gpu.context import Context
from benchmarks.gpu.timing import Row


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


def call(call: Call, device: torch.device) -> Iterator[Row]:
    yield {"status": "failed in the backward pass"}
    os.kill(os.getpid(), signal.SIGSEGV)
