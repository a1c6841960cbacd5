"""A tiny FLUX.1 as UNO's policy, a file of UNO's LoRA for it, and what the stock pipeline draws beside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.config import LoraConfig, PolicyConfig
from customized_grpo.models import ModelError
from customized_grpo.policies import build_policy
from customized_grpo.policies.uno import UnoPolicy
from customized_grpo.protocols import Conditions

PROMPT = "a red bird in the snow"
STEPS = 4
WIDTH = 32  # of the tiny transformer
LAYERS = 2
LORA = LoraConfig(rank=4, alpha=6)


def uno_lora(rank: int = 6, width: int = WIDTH, layers: int = LAYERS, singles: int | None = None) -> dict[str, Tensor]:
    """Random weights under UNO's names, in the shapes of its layers."""
    shapes: dict[str, tuple[int, int]] = {}  # outputs, inputs
    for i in range(layers):
        for stream in (1, 2):
            shapes[f"double_blocks.{i}.processor.qkv_lora{stream}"] = 3 * width, width
            shapes[f"double_blocks.{i}.processor.proj_lora{stream}"] = width, width
    for i in range(layers if singles is None else singles):
        shapes[f"single_blocks.{i}.processor.qkv_lora"] = 3 * width, width
        shapes[f"single_blocks.{i}.processor.proj_lora"] = width, 5 * width
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, (outputs, inputs) in shapes.items():
        weights[f"{name}.down.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        weights[f"{name}.up.weight"] = 0.3 * torch.randn(outputs, rank, generator=generator)
    return weights


def save(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file(weights, path)
    return path


def policy_of(folder: Path, **changes: Any) -> UnoPolicy:
    defaults: dict[str, Any] = {
        "kind": "uno",
        "device": "cpu",
        "height": 32,
        "width": 24,
        "reference_sizes": [(16, 24), (24, 16), (16, 16)],
        "lora": LORA,
    }
    policy = build_policy(PolicyConfig(path=str(folder), **{**defaults, **changes}))
    assert isinstance(policy, UnoPolicy)
    return policy


def picture(height: int = 16, width: int = 24, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def noise(policy: UnoPolicy, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def half_way(policy: UnoPolicy, conditions: Conditions) -> Tensor:
    return policy.velocity(noise(policy), torch.tensor([0.5]), conditions)


@torch.no_grad()
def euler(policy: UnoPolicy) -> Tensor:
    """The picture without references."""
    latents, conditions = noise(policy), policy.encode(PROMPT, [])
    for now, after in pairwise(policy.sigmas(STEPS)):
        latents = latents + (after - now) * policy.velocity(latents, now.expand(1), conditions)
    return policy.decode(latents)


def stock(folder: Path) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_picture(pipeline: FluxPipeline, policy: UnoPolicy) -> Tensor:
    """What the pipeline itself draws from the same noise with the policy's default settings."""
    return pipeline(
        prompt=PROMPT,
        height=32,
        width=24,
        latents=noise(policy),
        guidance_scale=2.5,
        num_inference_steps=STEPS,
        max_sequence_length=24,
        output_type="pt",
    ).images


def tune(policy: UnoPolicy, scale: float = 0.1) -> None:
    """Move all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in ("policy.", *words):
        assert word in text


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()
