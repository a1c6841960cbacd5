"""A folder for one process alone. The kernel lets it go when that process ends, however it does."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from customized_grpo.config import ConfigError

try:
    import fcntl
except ImportError:  # where there is no such lock, nobody is kept out
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of some network file systems


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Have a folder to oneself inside the block; the file .lock in it says who has it.

    Raises ConfigError, naming the process, where another one has it; OSError where the folder cannot be written.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def check_unclaimed(folder: Path) -> None:
    """Raises ConfigError where another process has the folder."""
    if (folder / LOCK).exists():
        with claim(folder):
            pass


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
        raise ConfigError(f"{folder}: in use by {holder}; wait for it, or end it") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
