"""`cgrpo plan`'s memory for exactly what was measured."""

from __future__ import annotations

from customized_grpo.config import Config, PolicyConfig
from customized_grpo.planning import Plan, make_plan

#: Parts of the plan's training phase that a forward and backward pass has; the others are the trainer's.
_MODEL_PARTS = ("transformer", "LoRA", "text encoders", "VAE", "gradients", "activations")


def model_bytes(policy: PolicyConfig, batch: int) -> int:
    """Planned bytes of a forward and backward pass of so many images, with all models of the pipeline there."""
    config = Config(policy=policy)
    train = config.train.model_copy(update={"batch_size": batch})
    planned = make_plan(config.model_copy(update={"train": train})).device["training"]
    return sum(planned.get(part, 0) for part in _MODEL_PARTS)


def phase_bytes(config: Config) -> dict[str, int]:
    """Planned bytes by phase, without the allowance for what the allocator cannot reuse."""
    plan: Plan = make_plan(config)
    return {phase: sum(parts.values()) for phase, parts in plan.device.items()}


def difference(planned: int, measured: int | None) -> float | None:
    """Per cent that the plan is above what was measured; None where that is not known."""
    return None if not measured else 100 * (planned - measured) / measured
