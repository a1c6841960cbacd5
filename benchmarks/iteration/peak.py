"""Measure the machine's peak in matrix products, which makes times comparable between machines."""

from __future__ import annotations

import time

import torch

_SECONDS = 0.5  # of measuring


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of the fastest of some square matrix products.

    The best of many, so that other work on the machine lowers it least.
    """
    rates = []
    for size in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        rates.append(_rate(device, dtype, size))
        if 2 * (2 * size) ** 3 / rates[-1] > _SECONDS:  # a precision that the processor does not have
            break
    return max(rates)


def _rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = a @ b  # warms up
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        started = time.perf_counter()
        torch.matmul(a, b, out=out)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
