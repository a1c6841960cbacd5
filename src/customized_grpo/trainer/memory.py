"""How many items go through the model at once: as configured, or as many as memory is free for; fewer when it runs out.

An item's need is measured by a probe of one: on a GPU by the allocator's peak, on a CPU by the tensors that live at
the same time. What a kernel takes for itself is not seen on a CPU, nor is another program's appetite; a share of the
free memory is left for them.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch

from customized_grpo.config import ConfigError
from customized_grpo.policies.live import LiveBytes
from customized_grpo.protocols import Conditions, Policy

_LOG = logging.getLogger(__name__)
_USED = 0.8  # of the free memory
_AVAILABLE = "MemAvailable:"
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
Result = TypeVar("Result")


class BatchSize:
    """The size of micro-batches, under the key of the configuration that sets it.

    "auto" begins with all items at once, until `measure` has told what one of them needs.

    Args:
        key: to be named when memory runs out.
        size: as configured.
        recovers: whether a smaller batch may be tried. Not where processes call a sharded model in step.
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
        """Where the size is "auto", the greatest up to `most` that fits the free memory of the device.

        `probe` takes one item through the model. `kept` bytes of what it needs are there once, however many items;
        `later` bytes will be. `agree` makes one size of all processes'.
        """
        if not self.auto:
            return
        each = max(1, peak_bytes(device, probe) - kept)
        fitting = int(max(0, _USED * free_bytes(device) - kept - later) // each)
        self.size = agree(max(1, min(most, fitting)))
        self.auto = False
        _LOG.info("%s: %d bytes an item, %d at once", self.key, each, self.size)

    def run(self, count: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """`work` on slices of `count` items, of at most `size` each; once more, and smaller, where memory runs out.

        So `work` must leave nothing behind when it fails.
        """
        start = 0
        while start < count:

            def upto(size: int, start: int = start) -> tuple[int, Result]:
                stop = min(start + size, count)
                return stop, work(slice(start, stop))

            start, result = self.anew(count - start, upto)
            yield result

    def anew(self, count: int, work: Callable[[int], Result]) -> Result:
        """`work` of a size, on `count` items by micro-batches; from its start, and smaller, where memory runs out."""
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failed = error.with_traceback(None)  # whose frames hold tensors
            self._halve(min(self.size, count), failed)

    def _halve(self, failed: int, error: RuntimeError) -> None:
        """Go on with half of the `failed` items. Raises ConfigError where that cannot be."""
        told = str(error).splitlines()[0]
        if failed == 1:
            raise ConfigError(
                f"{self.key}: out of memory with one item ({told}); set policy.gradient_checkpointing=true, or a "
                "smaller policy.height and policy.width"
            ) from error
        if not self._recovers:
            raise ConfigError(
                f"{self.key}: out of memory with {failed} items ({told}); set it to {failed // 2}: "
                "processes that share one model's weights cannot try again alone"
            ) from error
        self.size = failed // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _LOG.warning("%s: out of memory with %d items (%s); goes on with %d", self.key, failed, told, self.size)


def measure_drawing(
    size: BatchSize, policy: Policy, condition: Conditions, most: int, agree: Callable[[int], int]
) -> None:
    """Where `size` is "auto", what drawing and decoding one picture needs, and how many of `most` fit."""

    @torch.no_grad()
    def probe() -> None:
        noise = torch.zeros(1, *policy.latent_shape, device=policy.device)
        policy.decode(policy.velocity(noise, torch.ones(1, device=policy.device), condition))

    size.measure(policy.device, probe, most=most, agree=agree)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help. The allocator of the CPU raises a plain RuntimeError, worded by the system."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "memory: you tried to allocate" in str(error)
    )


def free_bytes(device: torch.device) -> int:
    """What can still be allocated there.

    On a CPU what the system calls available, or less if a container says so; this process's share of it.
    """
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
        return free + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith(_AVAILABLE)]
    except (OSError, ValueError):
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit, used = (int(Path(path).read_text(encoding="ascii")) for path in _LIMITS)
        found.append(max(0, limit - used))
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


class PeakBytes:
    """Inside it, the most bytes of tensors that are held at one time beyond those that were there: `bytes`.

    Args:
        device: On CUDA the allocator counts, elsewhere the tensors that operations make.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._before, self._live = device, 0, LiveBytes()
        self.bytes = 0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._live.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type == "cuda":
            self.bytes = int(torch.cuda.max_memory_allocated(self._device) - self._before)
        else:
            self._live.__exit__(*error)  # type: ignore[no-untyped-call]
            self.bytes = self._live.peak


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes of tensors on the device that `work` holds at one time, beyond those that were there."""
    with PeakBytes(device) as peak:
        work()
    return peak.bytes
