"""Sections beside the transformer: VAE, reward models, optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.context import ROOT, Context
from benchmarks.gpu.sections import Row
from benchmarks.gpu.timing import Timing, alternate, reset_peak
from customized_grpo.config.loading import load_config
from customized_grpo.policies.pipelines import PipelinePolicy

_LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}


def decode(context: Context) -> Iterator[Row]:
    policy = context.policy(context.policy_config(rank=16, gradient_checkpointing=True))
    vae = context.pipeline.vae

    def measure(batch: int) -> Row:
        latents = context.inputs(policy, batch)[0]
        timing = alternate({"": lambda: policy.decode(latents)}, context.device)[""]
        return {"seconds": timing.per(batch), "peak_gb": timing.peak_gb}

    for channels_last, layout in _LAYOUTS.items():
        vae.to(memory_format=layout)
        for batch in context.sizes(1, 4, 12):
            yield context.attempt({"batch": batch, "channels_last": channels_last}, partial(measure, batch))
    vae.to(memory_format=torch.contiguous_format)


def scoring(context: Context) -> Iterator[Row]:
    configs = load_config(ROOT / "recipes" / "kontext-dev.yaml").rewards
    pair = context.pairs(1)[0]
    for config, reward in zip(configs, context.rewards(configs), strict=True):
        for batch in context.sizes(1, 12, 48):
            images = torch.rand(batch, 3, context.side, context.side, device=context.device)
            pairs = [pair] * batch
            found = alternate({"": partial(reward, images, pairs)}, context.device)[""].per(batch)
            # The fastest repeat makes the most images.
            rates = {"median": 1 / found["median"], "min": 1 / found["max"], "max": 1 / found["min"]}
            yield {"model": config.path, "batch": batch, "images_per_second": rates | {"repeats": found["repeats"]}}


def adamw(context: Context) -> Iterator[Row]:
    """A step on the LoRA of the recipes, all of torch's implementations."""
    config = context.policy_config(rank=512, layers="default", gradient_checkpointing=True)
    policy = context.policy(config)
    million = sum(weight.numel() for weight in policy.trainable().values()) / 1e6
    for implementation in ("foreach", "fused"):
        settings = {"implementation": implementation, "million_weights": million}
        yield context.attempt(settings, partial(_adamw, context, policy, implementation))


def _adamw(context: Context, policy: PipelinePolicy, implementation: str) -> Row:
    context.tidy()
    weights = list(policy.trainable().values())
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    chosen: dict[str, Any] = {implementation: True}
    optimizer = torch.optim.AdamW(weights, lr=1e-6, **chosen)
    optimizer.step()  # makes its state
    reset_peak(context.device)
    held = torch.cuda.memory_allocated(context.device) if context.device.type == "cuda" else None
    timing: Timing = alternate({"": optimizer.step}, context.device, warm=0)[""]
    extra = None if held is None or timing.peak_bytes is None else (timing.peak_bytes - held) / 1e9
    return {"seconds": timing.per(), "extra_gb": extra}
