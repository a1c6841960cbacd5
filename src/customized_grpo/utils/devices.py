"""Devices of the policy and of reward models."""

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
    return device
