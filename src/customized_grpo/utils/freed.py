"""Keep freed memory in the process on Linux, where each iteration on a CPU needs as much again."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the whole process; False with another C library.

    By default it returns large tensors to the system: an iteration of the embedded recipe then takes 10% longer.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}  # the last is the maximum
    accepted = [library.mallopt(key, value) for key, value in settings.items()]
    return all(accepted)
