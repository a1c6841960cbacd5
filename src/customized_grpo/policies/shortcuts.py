"""Whether layers are computed in our own ways, which are faster, or in those of the libraries they come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_taken = True


def taken() -> bool:
    """Whether our own ways are taken; they are, outside `libraries_own`."""
    return _taken


@contextmanager
def libraries_own() -> Iterator[None]:
    """Inside it all layers are computed as diffusers and peft do: what ours are measured against."""
    global _taken
    before, _taken = _taken, False
    try:
        yield
    finally:
        _taken = before
