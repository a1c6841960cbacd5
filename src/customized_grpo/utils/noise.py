"""All randomness of sampling, as a pure function of what it is for.

Noise belongs to (seed, purpose, pair, image): a group's images do not depend on how the batch was cut,
on the number of processes, or on what was drawn before. It is made on the CPU, so that every device
starts from the same numbers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose state is fixed by `key` alone. Keys that differ anywhere are independent."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # 63 bits: torch takes seeds as signed numbers.
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Standard normal numbers, float32 of `shape`, fixed by `key`."""
    return torch.randn(shape, generator=generator(*key))
