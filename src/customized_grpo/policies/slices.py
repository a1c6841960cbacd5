"""Tensors in slices that a processor's caches hold, so that what is made of one in many passes stays in them."""

from __future__ import annotations

_AT_ONCE = 2 << 20  # bytes


def slices(rows: int, each: int, times: int = 1) -> list[slice]:
    """Of rows of `each` bytes, as many at once as caches hold: a multiple of `times` where that many fit, one at least.

    Where they begin depends on the size of a row alone.
    """
    fitting = max(1, _AT_ONCE // max(each, 1))
    size = fitting // times * times or fitting
    return [slice(start, start + size) for start in range(0, rows, size)]
