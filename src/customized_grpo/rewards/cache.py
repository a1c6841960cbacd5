"""A bounded store of what is dear to compute and frozen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

K = TypeVar("K", bound=Hashable)


class FeatureCache(Generic[K]):
    """Features by key; of more than `size` the longest unused goes first."""

    def __init__(self, size: int) -> None:
        self._size = max(1, size)
        self._kept: OrderedDict[K, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, keys: Sequence[K], compute: Callable[[list[K]], Sequence[Tensor]]) -> dict[K, Tensor]:
        """Features of all keys. `compute` is called once, with every key that is not there, or not
        at all.
        """
        wanted = list(dict.fromkeys(keys))
        missing = [key for key in wanted if key not in self._kept]
        found = {key: self._kept[key] for key in wanted if key in self._kept}
        if missing:
            found.update(zip(missing, compute(missing), strict=True))
        for key in wanted:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return found
