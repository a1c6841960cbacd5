"""Time and peak memory of work on a device, measured in turns so that ratios are paired."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from customized_grpo.policies.shortcuts import libraries_own

Row = dict[str, Any]
"""One measurement as JSON values: settings and numbers."""
Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat and peak bytes allocated on the device; 0 on a CPU, where they are not known."""

    seconds: tuple[float, ...]
    peak_bytes: int

    def per(self, items: int = 1) -> Row:
        """Return the seconds of one of `items` items: median, minimum, maximum and number of repeats."""
        return spread([one / items for one in self.seconds])


def spread(values: Sequence[float]) -> Row:
    """Return median, minimum, maximum and number of values."""
    return {"median": median(values), "min": min(values), "max": max(values), "repeats": len(values)}


def ratio(slower: Timing, faster: Timing) -> Row:
    """Return the speed-up over repeats that were measured next to each other."""
    return spread([a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)])


def alternate(works: Mapping[str, Work], device: torch.device, *, repeats: int = 3, warm: int = 1) -> dict[str, Timing]:
    """Time several works in turns: `warm` uncounted rounds of all, then `repeats` counted ones."""
    for _ in range(warm):
        for work in works.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    peaks = dict.fromkeys(works, 0)
    for _ in range(repeats):
        for name, work in works.items():
            reset_peak(device)
            began = time.perf_counter()
            work()
            synchronise(device)
            seconds[name].append(time.perf_counter() - began)
            peaks[name] = max(peaks[name], peak_bytes(device))
    return {name: Timing(tuple(seconds[name]), peaks[name]) for name in works}


def paired(work: Work, device: torch.device, items: int, *, repeats: int = 3) -> tuple[Row, Timing]:
    """Compare the work by this package's layers with the same by diffusers' and peft's own, in turns.

    Returns:
        The columns of the comparison per item, and the timing of this package's layers.
    """

    def libraries() -> None:
        with libraries_own():
            work()

    found = alternate({"ours": work, "libraries": libraries}, device, repeats=repeats)
    ours, theirs = found["ours"], found["libraries"]
    row = {
        "ours_s_per_image": ours.per(items),
        "libraries_s_per_image": theirs.per(items),
        "speed_up": ratio(theirs, ours),
        "ours_peak_gb": ours.peak_bytes / 1e9,
        "libraries_peak_gb": theirs.peak_bytes / 1e9,
    }
    return row, ours


def synchronise(device: torch.device) -> None:
    """Wait for the queued work of a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of `peak_bytes`."""
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the peak bytes allocated since `reset_peak`; 0 on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def free(device: torch.device) -> None:
    """Return unused memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
