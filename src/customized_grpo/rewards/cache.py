"""Bounded cache of values that are expensive to compute and do not change."""

import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from customized_grpo.protocols import Pair

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Values by key, of which the least recently used are dropped if the sum of their sizes (1 each) exceeds `size`."""

    def __init__(self, size: int, size_of: Callable[[V], int] = lambda value: 1) -> None:
        self._size, self._size_of = size, size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._used = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Return the value of a key, None if it is not cached."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Store a value; others are dropped, and this one if it alone is too large."""
        if self.get(key) is None:
            self._values[key] = value
            self._used += self._size_of(value)
        while self._used > self._size:
            self._used -= self._size_of(self._values.popitem(last=False)[1])

    def fill(self, keys: Sequence[K], compute: Callable[[K], V]) -> dict[K, V]:
        """Return the values of all keys; `compute` is called for each one that is not cached, one at a time.

        In a batch the last bits of a value would depend on the others: a resumed run, whose cache is empty at first,
        would have other scores than one without a break.
        """
        found: dict[K, V] = {}
        for key in dict.fromkeys(keys):
            cached = self.get(key)
            found[key] = compute(key) if cached is None else cached
        for key, value in found.items():
            self.put(key, value)
        return found


class PairCache(LruCache[tuple[str, str, str | None, int], V]):
    """Values by a pair's key, texts and a checksum of its images: datasets may use one key for different pairs."""

    def of(self, pairs: Sequence[Pair], compute: Callable[[Pair], V]) -> list[V]:
        """Return the value of each pair; `compute` is called for each one that is not cached, one at a time."""
        keys = {pair: (pair.key, pair.prompt, pair.subject, _checksum(pair)) for pair in dict.fromkeys(pairs)}
        by_key = {key: pair for pair, key in keys.items()}
        found = self.fill(list(by_key), lambda key: compute(by_key[key]))
        return [found[keys[pair]] for pair in pairs]


def _checksum(pair: Pair) -> int:
    total = 0
    for image in (*pair.references, *pair.masks):
        total = zlib.crc32(b"" if image is None else image.tobytes(), total)
    return total
