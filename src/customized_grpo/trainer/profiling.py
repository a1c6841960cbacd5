"""Measurements of an iteration's stages: the clock that every run logs, and what benchmarks put in its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

#: The stages of an iteration, in their order.
STAGES = ("encode", "sample", "decode", "score", "update", "probe")


class Profiler(Protocol):
    """Measures stages: `totals` maps a stage to what it took since `totals` was last cleared."""

    totals: dict[str, float]

    def __call__(self, stage: str) -> AbstractContextManager[None]:
        """Return a context that measures the stage of that name."""
        ...


class Clock:
    """Wall-clock seconds of each stage.

    Args:
        device: If given, wait for its queued work before and after each stage, so that a stage has its own time. This
            is for benchmarks: it keeps the CPU from running ahead.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.totals: dict[str, float] = {}
        self._device = device if device is not None and device.type != "cpu" else None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._wait()
        began = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.totals[stage] = self.totals.get(stage, 0.0) + time.perf_counter() - began

    def _wait(self) -> None:
        if self._device is not None:
            torch.accelerator.synchronize(self._device)
