"""Memory that was freed stays with the process, where work on a CPU asks for as much again within milliseconds."""

from __future__ import annotations

import ctypes
import platform

_TRIM, _AHEAD, _MAPPED = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, from now on and for the whole process; False where the C library is another.

    By itself it gives large tensors back at once, and the system hands out pages anew, each with an interrupt and
    zeros, for the next ones. The process then needs no more memory at its highest, but keeps that much to its end.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = {_TRIM: 2**31 - 1, _AHEAD: 64 << 20, _MAPPED: 32 << 20}  # the most that the last can be
    taken = [library.mallopt(key, value) for key, value in settings.items()]
    return all(taken)
