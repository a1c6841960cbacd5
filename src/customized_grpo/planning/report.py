"""A plan as tables, and its refusal as one line."""

import os
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from customized_grpo.config import Config, ConfigError
from customized_grpo.config.reading import flow_yaml
from customized_grpo.planning.plan import Plan, make_plan, objective_plans
from customized_grpo.planning.remedies import nearest_that_fits
from customized_grpo.utils.hub import ModelError, resolve


def plan_run(config: Config, console: Console, *, memory: str | None, processes: int, references: int) -> None:
    """Print a run's plan. Raises ConfigError if it cannot fit, with the nearest settings that can."""
    have, accelerator, name = _memory(config, memory)
    arguments: dict[str, Any] = {"processes": processes, "references": references, "accelerator": accelerator}
    plan = make_plan(config, **arguments)
    _show(config, plan, console)
    _show_objectives(config, objective_plans(config, **arguments), console)
    need = f"{plan.needed / 1e9:.1f} GB at its peak, {plan.peak_phase}"
    if plan.needed <= have:
        console.print(f"It fits: {need}, of the {have / 1e9:.1f} GB of {name}.")
        return
    changes = nearest_that_fits(config, have, **arguments)
    if changes is None:
        remedy = "no smaller batch, rank or image, offloading or quantisation helps; use a larger device"
    else:
        values = config.model_dump(mode="json")
        remedy = "it fits with " + ", ".join(
            f"{key} {flow_yaml(_at(values, key))} -> {flow_yaml(value)}" for key, value in changes.items()
        )
    raise ConfigError(f"the run needs {need}, and {name} has {have / 1e9:.1f} GB; {remedy}")


def check_memory(config: Config, references: int) -> None:
    """Raise ConfigError, before a model is loaded, if a single process certainly lacks memory for a run.

    The estimate has no overhead, and takes seconds: small models with usual settings are not estimated.
    """
    if ":" in config.policy.kind or int(os.environ.get("WORLD_SIZE", 1)) > 1 or _is_small(config):
        return
    have, accelerator, name = _memory(config, None)
    try:
        plan = make_plan(config, references=references, accelerator=accelerator)
    except (ValueError, OSError):
        return
    need = sum(plan.device[plan.peak_phase].values())
    if need > have:
        raise ConfigError(
            f"the run needs at least {need / 1e9:.1f} GB at its peak, {plan.peak_phase}, and {name} has "
            f"{have / 1e9:.1f} GB; cgrpo plan with the same settings finds some that fit"
        )


def _is_small(config: Config) -> bool:
    """Return whether a run fits any machine: less than 256 MB of weights, and sizes of at most 1024."""
    policy, rollout = config.policy, config.rollout
    sides = [policy.height, policy.width, *(side for size in policy.reference_sizes or () for side in size)]
    rank = 0 if policy.lora is None else policy.lora.rank
    if max(*sides, policy.max_sequence_length, rank, rollout.group_size * rollout.pairs) > 1024:
        return False
    try:
        source = resolve(policy.path)
    except ModelError:
        return True  # its loader reports it
    weights = source.rglob("*.safetensors") if isinstance(source, Path) else ()
    return isinstance(source, Path) and sum(file.stat().st_size for file in weights) < 2**28


def bytes_of(text: str) -> int:
    """Parse a size such as 24GB, 24g or 22GiB. Raises ConfigError."""
    try:
        if (size := int(TypeAdapter(ByteSize).validate_python(text))) > 0:
            return size
    except (ValidationError, OverflowError):
        pass
    raise ConfigError(f"--memory: {text!r} is no size; give one such as 24GB")


def _memory(config: Config, memory: str | None) -> tuple[int, bool, str]:
    """Return (bytes to fit into, whether they are an accelerator's, name of the device)."""
    on_cpu = config.policy.device is not None and config.policy.device.startswith("cpu")
    if memory is not None:
        return bytes_of(memory), not on_cpu, "the device"
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is not None and not on_cpu and found.type == "cuda":
        device = torch.cuda.get_device_properties(0)
        return int(device.total_memory), True, str(device.name)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False, "this machine (no accelerator)"


def _at(values: Any, key: str) -> Any:
    return reduce(getitem, (int(part) if part.isdecimal() else part for part in key.split(".")), values)


def _show(config: Config, plan: Plan, console: Console) -> None:
    table = Table("part", "parameters", title="Parameters")
    for name, parameters in plan.parameters.items():
        table.add_row(name, f"{parameters:,}")
    table.add_row("total", f"{sum(plan.parameters.values()):,}")
    trained = "all of the transformer" if config.policy.lora is None else f"a LoRA of rank {config.policy.lora.rank}"
    table.add_row(f"trained: {trained}", f"{plan.trainable:,}")
    console.print(table)
    table = Table("GB on the device", *plan.device, title="Memory of each process" if plan.processes > 1 else "Memory")
    for part in dict.fromkeys(part for parts in plan.device.values() for part in parts):
        table.add_row(part, *(_gb(parts[part]) if part in parts else "" for parts in plan.device.values()))
    table.add_row("total", *(_gb(sum(parts.values())) for parts in plan.device.values()))
    console.print(table)
    if plan.host:
        parts = ", ".join(f"{_gb(size)} GB {part}" for part, size in plan.host.items())
        console.print(f"Host memory of each process: {parts}")
    console.print(
        f"An iteration: {plan.images} images, {plan.sampling_evaluations:,} model evaluations forward to sample them, "
        f"{plan.training_evaluations:,} forward and backward "
        + (f"and {plan.reference_evaluations:,} forward " if plan.reference_evaluations else "")
        + f"to train, {_flops(plan.flops)}"
        + (f", over {plan.processes} processes" if plan.processes > 1 else "")
        + (f". Each step has two: policy.true_cfg is {config.policy.true_cfg:g}" if config.policy.true_cfg != 1 else "")
    )
    for unknown in plan.uncounted:
        console.print(f"Not counted: the memory of {unknown}.")
    for one in plan.downloads:
        size = f", about {_gb(one.bytes)} GB" if one.bytes is not None else ""
        console.print(f"To download: {one.path} {one.files}{size}")


def _show_objectives(config: Config, plans: dict[str, Plan], console: Console) -> None:
    table = Table("objective", "forward", "forward and backward", "operations", "GB at its peak", title="An iteration")
    for name, plan in plans.items():
        table.add_row(
            f"{name} (configured)" if name == config.method.objective else name,
            f"{plan.sampling_evaluations + plan.reference_evaluations:,}",
            f"{plan.training_evaluations:,}",
            _flops(plan.flops),
            _gb(plan.needed),
        )
    console.print(table)


def _flops(count: int) -> str:
    return f"{count / 1e15:,.4g} PFLOP" if count >= 1e15 else f"{count / 1e9:,.4g} GFLOP"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}" if size >= 5_000_000 else f"{size / 1e9:.4f}"
