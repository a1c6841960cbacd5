"""Weights exchanged for a while: whatever ends the while, they are given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def undone(give_back: Callable[[], None]) -> Iterator[None]:
    """Call `give_back` at the end of the block, and once more from its beginning where that is interrupted.

    A signal raises wherever it finds the program, and raises once. `give_back` must bear being called again.
    """
    try:
        yield
    finally:
        try:
            give_back()
        except BaseException:
            give_back()
            raise
