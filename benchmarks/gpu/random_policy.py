"""A policy on the random model: its LoRA is filled on the device, and taken off again for the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)

from customized_grpo.config import PolicyConfig
from customized_grpo.policies import build_policy
from customized_grpo.policies.pipelines import PipelinePolicy

_INITIALISERS = ("kaiming_uniform_", "normal_", "zeros_")


def random_policy(config: PolicyConfig, pipeline: Any) -> PipelinePolicy:
    """A policy of the pipeline whose LoRA has random numbers in both factors, so that it counts."""
    with _uninitialised():
        policy = build_policy(config, pipeline)
    assert isinstance(policy, PipelinePolicy)
    draws = torch.Generator(policy.device).manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.trainable().items():
            scale = 0.02 if ".lora_B" in name else 1.0
            weight.normal_(0.0, scale * weight.shape[1] ** -0.5, generator=draws)
    return policy


def restore(transformer: Any) -> None:
    """Make the transformer diffusers' plain one again: no LoRA, checkpointing, compiled or own blocks."""
    if getattr(transformer, "peft_config", None):
        transformer.unload_lora()
    transformer.requires_grad_(False)
    transformer.disable_gradient_checkpointing()
    transformer.set_attn_processor(FluxAttnProcessor())
    kinds = (
        (FluxTransformerBlock, transformer.transformer_blocks),
        (FluxSingleTransformerBlock, transformer.single_transformer_blocks),
    )
    for kind, blocks in kinds:
        for block in blocks:
            block.__class__ = kind
            block._compiled_call_impl = None


@contextmanager
def _uninitialised() -> Iterator[None]:
    """Leave out what initialises a LoRA on the CPU: of two billion weights (rank 512) it takes longer than training."""
    own = {name: getattr(torch.nn.init, name) for name in _INITIALISERS}
    for name in own:
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, initialise in own.items():
            setattr(torch.nn.init, name, initialise)
