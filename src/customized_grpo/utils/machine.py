"""Versions and hardware of a run."""

import os
import platform
from importlib.metadata import version

import torch

from customized_grpo import __version__

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results."""
    # The package itself may run from a source tree, without installed metadata.
    own = {"python": platform.python_version(), "customized-grpo": __version__}
    return {**own, **{name: version(name) for name in _LIBRARIES}}


def use_threads(count: int | None) -> None:
    """Set the number of torch's CPU threads; None keeps torch's own."""
    if count is not None:
        torch.set_num_threads(count)


def busy_hint(count: int | None) -> str | None:
    """Return a line if other processes keep the cores busy that torch's threads would share; None if not, or if set."""
    threads, cores, load = torch.get_num_threads(), os.cpu_count() or 1, os.getloadavg()[0]
    if count is not None or "OMP_NUM_THREADS" in os.environ or threads < 2 or load < cores / 2:
        return None
    return (
        f"other processes use about {load:.1f} of {cores} cores; --threads 1 may be several times faster than {threads}"
    )


def hardware(device: torch.device | None = None) -> dict[str, str]:
    """Return the names of the device (None: the accelerator, if any) and system, and the number of CPU threads."""
    used = device or torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name(used) if used is not None and used.type == "cuda" else str(used or "cpu")
    return {"device": name, "CPU threads": str(torch.get_num_threads()), "system": platform.platform(terse=True)}
