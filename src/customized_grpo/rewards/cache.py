"""A bounded store of what is dear to compute and frozen."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from customized_grpo.protocols import Pair

K = TypeVar("K", bound=Hashable)
PairKey = tuple[str, int]


class FeatureCache(Generic[K]):
    """Features by key; of more than `size` the longest unused goes first.

    Each is computed by itself. In a batch its last bits would depend on its neighbours there, those that were not kept
    yet: a resumed run, which keeps nothing at first, would have other scores than one that was never stopped.
    """

    def __init__(self, size: int) -> None:
        self._size = max(1, size)
        self._kept: OrderedDict[K, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, keys: Sequence[K], compute: Callable[[K], Tensor]) -> dict[K, Tensor]:
        """Features of all keys. `compute` is called for each that is not there."""
        wanted = list(dict.fromkeys(keys))
        found = {key: self._kept[key] if key in self._kept else compute(key) for key in wanted}
        for key in wanted:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return found


def pair_keys(pairs: Sequence[Pair]) -> list[PairKey]:
    """The pairs' keys with a checksum of what they show: two datasets may use one key for different
    pairs.
    """
    sums: dict[int, int] = {}
    for pair in pairs:
        if id(pair) not in sums:
            total = 0
            for picture in (*pair.references, *pair.masks):
                total = zlib.crc32(b"" if picture is None else picture.tobytes(), total)
            sums[id(pair)] = total
    return [(pair.key, sums[id(pair)]) for pair in pairs]
