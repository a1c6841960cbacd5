"""Switch between our kernels and the layers of diffusers and peft, to compare them in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

_taken = True


def taken() -> bool:
    """Report whether kernels are used; they are, except inside `libraries_own`."""
    return _taken


@contextmanager
def libraries_own() -> Iterator[None]:
    """Compute all layers as diffusers, peft and torch do inside the context."""
    global _taken
    before, _taken = _taken, False
    try:
        yield
    finally:
        _taken = before
