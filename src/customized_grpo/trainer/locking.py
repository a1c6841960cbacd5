"""Exclusive use of a folder. The lock ends with its process, however that ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from customized_grpo.config import ConfigError

LOCK = ".lock"


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; `.lock.holder` in it names the process. ConfigError if another one holds it."""
    holder = folder / f"{LOCK}.holder"
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise ConfigError(f"{folder}: in use by {name}; wait for it, or stop it") from None
    with lock:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield


def check_unclaimed(folder: Path) -> None:
    """Raise ConfigError if another process holds the folder."""
    if (folder / LOCK).exists():
        with claim(folder):
            pass
