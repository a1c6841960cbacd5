"""Batch sizes: as configured, or as many items as fit the free memory; halved when memory runs out.

A probe of one item measures its need: on a GPU by the allocator's peak, on a CPU by the tensors alive at one time. A
share of the free memory is left for buffers inside CPU kernels and for other programs.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import psutil
import torch

from customized_grpo.config import ConfigError
from customized_grpo.policies.live import LiveBytes
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.utils.hub import first_line
from customized_grpo.utils.memory import is_out_of_memory

_LOG = logging.getLogger(__name__)
_USED = 0.8  # share of the free memory
_CGROUP = Path("/sys/fs/cgroup")
Result = TypeVar("Result")


class BatchSize:
    """Size of micro-batches, the setting `key`. With "auto" it is unlimited until `measure` is called.

    It does not recover where processes call a sharded model in step: no smaller batch may be tried there.
    """

    def __init__(self, key: str, size: int | Literal["auto"], *, recovers: bool = True) -> None:
        self.key, self.auto, self._recovers = key, size == "auto", recovers
        self.size = sys.maxsize if size == "auto" else size

    def measure(
        self,
        device: torch.device,
        probe: Callable[[], object],
        *,
        most: int,
        kept: int = 0,
        later: int = 0,
        agree: Callable[[int], int] = lambda size: size,
    ) -> None:
        """Set the size, if it is "auto", to the largest up to `most` that fits the free memory of the device.

        `probe` processes one item. `kept` bytes of its need exist once, however many items there are; `later` bytes
        will be needed in addition. `agree` turns this process's size into that of all processes.
        """
        if not self.auto:
            return
        each = max(1, peak_bytes(device, probe) - kept)
        fitting = int(max(0, _USED * free_bytes(device) - kept - later) // each)
        self.size = agree(max(1, min(most, fitting)))
        self.auto = False
        _LOG.info("%s: %d bytes per item, %d at once", self.key, each, self.size)

    def run(self, count: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """Yield `work` of slices of `count` items, at most `size` each; smaller ones if memory runs out.

        `work` must leave nothing behind when it fails.
        """
        start = 0
        while start < count:

            def upto(size: int, start: int = start) -> tuple[int, Result]:
                stop = min(start + size, count)
                return stop, work(slice(start, stop))

            start, result = self.anew(count - start, upto)
            yield result

    def anew(self, count: int, work: Callable[[int], Result]) -> Result:
        """Return `work(size)` on `count` items; if memory runs out, do all of it again with half the size."""
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # the frames hold tensors
            self._halve(min(self.size, count), failed)

    def _halve(self, count: int, error: Exception) -> None:
        reason = first_line(error)
        if count == 1:
            raise ConfigError(
                f"{self.key}: out of memory with one item ({reason}); set policy.gradient_checkpointing=true, or a "
                "smaller policy.height and policy.width"
            ) from error
        if not self._recovers:
            raise ConfigError(
                f"{self.key}: out of memory with {count} items ({reason}); set it to {count // 2}, because processes "
                "that share one model's weights cannot retry alone"
            ) from error
        self.size = count // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _LOG.warning("%s: out of memory with %d items (%s); continuing with %d", self.key, count, reason, self.size)


def measure_sampling(
    size: BatchSize, policy: Policy, condition: Conditions, most: int, agree: Callable[[int], int]
) -> None:
    """Set an "auto" size by what it takes to sample and decode one image of the largest size."""
    condition = replace(condition, latent_shape=policy.latent_shape)

    @torch.no_grad()
    def probe() -> None:
        noise = torch.zeros(1, *policy.latent_shape, device=policy.device)
        policy.decode(policy.velocity(noise, torch.ones(1, device=policy.device), condition))

    size.measure(policy.device, probe, most=most, agree=agree)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated: on a CPU, this process's share of the system's or container's."""
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
        return free + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(0, limit - used))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class PeakBytes:
    """Measure the most bytes of new tensors alive at one time inside the block: on CUDA by the allocator's peak."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before, self._live = device, 0, LiveBytes()
        self.bytes = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_allocated(self._device) - self._before)
        else:
            self._live.__exit__(*error)
            self.bytes = self._live.peak


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """Return the most bytes of tensors on the device that `work` needs at one time."""
    with PeakBytes(device) as peak:
        work()
    return peak.bytes
