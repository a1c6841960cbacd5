"""Versions and hardware of a run."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from customized_grpo import __version__

#: File of a run with versions and hardware of each start, one JSON line each.
STARTS = "starts.jsonl"

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results."""
    # The package itself may run from a source tree, without installed metadata.
    own = {"python": platform.python_version(), "customized-grpo": __version__}
    return {**own, **{name: version(name) for name in _LIBRARIES}}


def hardware(device: torch.device | None = None) -> dict[str, str]:
    """Return the names of the device (None: the accelerator, if any) and system, and the number of CPU threads."""
    used = device or torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name(used) if used is not None and used.type == "cuda" else str(used or "cpu")
    return {"device": name, "CPU threads": str(torch.get_num_threads()), "system": platform.platform(terse=True)}
