"""Reuse of freed memory within the process, for CPU work that allocates and frees large tensors all the time."""

from __future__ import annotations

import ctypes
import platform

_TRIM, _AHEAD, _MAPPED = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Make glibc retain freed memory for the rest of the process; return False with another C library.

    By default glibc returns large tensors to the system at once, which hands out zeroed pages again for the next ones,
    with an interrupt each. The peak is the same, but the process holds that much memory until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = {_TRIM: 2**31 - 1, _AHEAD: 64 << 20, _MAPPED: 32 << 20}  # the most that the last can be
    taken = [library.mallopt(key, value) for key, value in settings.items()]
    return all(taken)
