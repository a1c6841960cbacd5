"""Devices of the policy and of reward models."""

from collections.abc import Callable
from functools import partial

import torch

from customized_grpo.utils.hub import ModelError


def device_of(name: torch.device | str | None, key: str = "policy.device") -> torch.device:
    """Return the device `name`, else the accelerator that a launcher set for this process, else the CPU.

    Raises ModelError, which names the setting `key`, if there is no such device.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return torch.device(found.type, torch.accelerator.current_device_index()) if found else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"{key}: {name!r} is no device; give cpu, cuda or null") from error
    there = {"cpu": 1, "meta": 1, **({} if found is None else {found.type: torch.accelerator.device_count()})}
    if (device.index or 0) >= there.get(device.type, 0):
        raise ModelError(f"{key}: {name} is not there; give another, or null for the best device")
    if found is not None and device.type == found.type and device.index is None:
        # Without an index a device means another one in another thread.
        return torch.device(device.type, torch.accelerator.current_device_index())
    return device


def same_accelerator() -> Callable[[], None]:
    """Return a function that gives a new thread the calling thread's accelerator: it would start with the first one."""
    if not torch.accelerator.is_available():
        return lambda: None
    return partial(torch.accelerator.set_device_index, torch.accelerator.current_device_index())
