"""Seconds and peak memory of work on a device, in ways that take turns so that their ratios are paired."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.gpu.sections import Row
from customized_grpo.policies.shortcuts import libraries_own

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat, and the most bytes allocated on the device; None on a CPU, where it is not known."""

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def peak_gb(self) -> float | None:
        return None if self.peak_bytes is None else self.peak_bytes / 1e9

    def per(self, items: int = 1) -> Row:
        """Median, least and most seconds of one of so many items."""
        return spread([one / items for one in self.seconds])


def spread(values: Sequence[float]) -> Row:
    return {"median": median(values), "min": min(values), "max": max(values), "repeats": len(values)}


def ratio(slower: Timing, faster: Timing) -> Row:
    """How many times as fast, over repeats that were measured next to each other."""
    return spread([a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)])


def both(work: Work) -> dict[str, Work]:
    """The work by our own layers, and by those of diffusers and peft."""

    def libraries() -> None:
        with libraries_own():
            work()

    return {"ours": work, "libraries": libraries}


def alternate(ways: Mapping[str, Work], device: torch.device, *, repeats: int = 3, warm: int = 1) -> dict[str, Timing]:
    """Each way's timing: `warm` calls of each that do not count, then `repeats` rounds of all."""
    for _ in range(warm):
        for work in ways.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    for _ in range(repeats):
        for name, work in ways.items():
            reset_peak(device)
            began = time.perf_counter()
            work()
            synchronise(device)
            seconds[name].append(time.perf_counter() - began)
            peaks[name] = max(peaks[name], peak_bytes(device) or 0)
    return {name: Timing(tuple(seconds[name]), peaks[name] or None) for name in ways}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes allocated since `reset_peak`; None on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def free(device: torch.device) -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
