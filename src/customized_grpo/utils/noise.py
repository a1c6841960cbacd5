"""Random numbers of sampling as a pure function of their key, such as (seed, purpose, pair, image).

Images of a group therefore do not depend on batch sizes, the number of processes, or earlier samples. Numbers are
generated on the CPU, so that every device starts from the same ones.
"""

import hashlib

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `key` alone. Different keys are independent."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    # 63 bits: torch takes seeds as signed numbers.
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Return standard normal numbers, float32 of `shape`, determined by `key`."""
    return torch.randn(shape, generator=generator(*key))
