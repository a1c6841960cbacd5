"""Restore exchanged weights however the context ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def undone(give_back: Callable[[], None]) -> Iterator[None]:
    """Call `give_back` at the end of the context, and once more if a signal interrupts it."""
    try:
        yield
    finally:
        try:
            give_back()
        except BaseException:
            give_back()
            raise
