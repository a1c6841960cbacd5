"""Faster versions of layers of diffusers and peft, measured to pay on a GPU.

Each kernel names the library functions that it replaces and a hash of their source. If the installed release has other
source, the library's own layers are used, and one line in the log says so. `policy.kernels: off` switches all of them
off.
"""

import hashlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

_LOG = logging.getLogger(__name__)


def source_hash(function: Callable[..., Any]) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a function's source, "" if there is no source."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        return ""


def usable(kernel: str, replaced: dict[Callable[..., Any], str]) -> bool:
    """Report whether a kernel fits the installed libraries, by hashes of the functions it replaces; log if not."""
    changed = [function for function, digest in replaced.items() if source_hash(function) != digest]
    if changed:
        name = f"{changed[0].__module__}.{changed[0].__qualname__}"
        _LOG.warning("the %s kernel is off: %s differs from the release it was written for", kernel, name)
    return not changed
