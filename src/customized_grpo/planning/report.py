"""A plan as tables, and its refusal as one line."""

from __future__ import annotations

import os
import re

import torch
from rich.console import Console
from rich.table import Table

from customized_grpo.config import Config, ConfigError
from customized_grpo.planning.plan import Change, Plan, make_plan, nearest_that_fits, single

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def plan_run(config: Config, console: Console, *, memory: str | None, processes: int, references: int) -> None:
    """Print what the run takes. Raises ConfigError where it cannot fit, with the nearest settings that can."""
    have, accelerator, name = _memory(config, memory)
    arguments = {"processes": processes, "references": references, "accelerator": accelerator}
    plan = make_plan(config, **arguments)  # type: ignore[arg-type]
    _show(config, plan, console)
    need = f"{plan.needed / 1e9:.1f} GB at its peak, {plan.peak_phase}"
    if plan.needed <= have:
        console.print(f"It fits: {need}, of the {have / 1e9:.1f} GB of {name}.")
        return
    changes = nearest_that_fits(config, have, **arguments)  # type: ignore[arg-type]
    if changes is None:
        remedy = "no smaller batch, rank or picture, offloading or quantisation helps; take a larger device"
    else:
        remedy = "it fits with " + ", ".join(map(_told, changes))
    raise ConfigError(f"the run needs {need}, and {name} has {have / 1e9:.1f} GB; {remedy}")


def bytes_of(text: str) -> int:
    """Bytes of a size such as 24GB, 24g or 80e9; GB is 10^9, GiB 2^30. Raises ConfigError."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    try:
        if match is None:
            raise ValueError
        unit = match[2].lower()
        scale = 1024 ** "kmgt".index(unit) * 1024 if match[3] and unit else _UNITS[unit]
        size = int(float(match[1]) * scale)
        if size <= 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ConfigError(f"--memory: {text!r} is no size; give one such as 24GB") from None
    return size


def _memory(config: Config, memory: str | None) -> tuple[int, bool, str]:
    """(bytes to fit into, whether they are an accelerator's, what to call it)."""
    on_cpu = config.policy.device is not None and config.policy.device.startswith("cpu")
    if memory is not None:
        return bytes_of(memory), not on_cpu, "the device"
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None and not on_cpu and found.type == "cuda":
        device = torch.cuda.get_device_properties(0)
        return int(device.total_memory), True, str(device.name)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False, "this machine, without an accelerator,"


def _told(change: Change) -> str:
    return ", ".join(f"{key} {_value(before)} -> {_value(after)}" for key, before, after in single(change))


def _value(value: object) -> str:
    """As YAML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(part)}" for key, part in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _show(config: Config, plan: Plan, console: Console) -> None:
    table = Table("part", "parameters", title="Parameters")
    for name, parameters in plan.parameters.items():
        table.add_row(name, f"{parameters:,}")
    table.add_row("in all", f"{sum(plan.parameters.values()):,}")
    what = "all of the transformer" if config.policy.lora is None else f"a LoRA of rank {config.policy.lora.rank}"
    table.add_row(f"trained: {what}", f"{plan.trainable:,}")
    console.print(table)
    table = Table("GB on the device", *plan.device, title="Memory of each process" if plan.processes > 1 else "Memory")
    for part in dict.fromkeys(part for parts in plan.device.values() for part in parts):
        table.add_row(part, *(_gb(parts[part]) if part in parts else "" for parts in plan.device.values()))
    table.add_row("in all", *(_gb(sum(parts.values())) for parts in plan.device.values()))
    console.print(table)
    if plan.host:
        told = ", ".join(f"{_gb(size)} GB {part}" for part, size in plan.host.items())
        console.print(f"Host memory of each process: {told}")
    console.print(
        f"An iteration: {plan.images} images, {plan.sampling_evaluations:,} model evaluations forward to draw them, "
        f"{plan.training_evaluations:,} forward and backward to train"
        + (f", over {plan.processes} processes" if plan.processes > 1 else "")
    )
    for unknown in plan.uncounted:
        console.print(f"Not counted: the memory of {unknown}.")
    for one in plan.downloads:
        console.print(
            f"To download: {one.path} {one.files}" + (f", about {_gb(one.bytes)} GB" if one.bytes is not None else "")
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size >= 5_000_000 else f"{size / 1e9:.4f}"
