"""Time of an iteration's stages: logged by every run, and replaced by other measurements in benchmarks."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

#: Stages of an iteration, in order.
STAGES = ("encode", "sample", "decode", "score", "update", "probe")


class Profiler(Protocol):
    """Measures stages: `totals` has the sum of each stage since it was last cleared."""

    totals: dict[str, float]

    def __call__(self, stage: str) -> AbstractContextManager[None]:
        """Return a context that measures a stage."""


class Clock:
    """Wall-clock seconds per stage; with a device, for benchmarks, it is synchronised before and after each."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.totals: dict[str, float] = {}
        self._synchronises = device is not None and device.type != "cpu"

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside the context to the total of a stage."""
        began = self._now()
        try:
            yield
        finally:
            self.totals[stage] = self.totals.get(stage, 0.0) + self._now() - began

    def _now(self) -> float:
        if self._synchronises:
            torch.accelerator.synchronize()
        return time.perf_counter()
