"""Versions and hardware that a run is made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

#: The file of a run that holds, a line for each start, what it ran with.
STARTS = "starts.jsonl"

_LIBRARIES = (
    "customized-grpo",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what a run does."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def hardware(device: torch.device | None = None) -> dict[str, str]:
    """What a run computes on: the device (the one that is there, where none is given), the system, CPU threads."""
    used = device or torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name(used) if used is not None and used.type == "cuda" else str(used or "cpu")
    return {"device": name, "CPU threads": str(torch.get_num_threads()), "system": platform.platform(terse=True)}
