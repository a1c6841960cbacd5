"""A tiny FLUX.1 as UNO's policy, a file of UNO's LoRA for it, and what the stock pipeline draws beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import torch
from diffusers import FluxPipeline
from proofs import PROMPT, STEPS, built, noise
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.policies.uno import UnoPolicy

WIDTH = 32  # of the tiny transformer
LAYERS = 2


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
    return built(UnoPolicy, folder, **{"kind": "uno", "reference_sizes": [(16, 24), (24, 16), (16, 16)], **changes})


@torch.no_grad()
def euler(policy: UnoPolicy) -> Tensor:
    """The image without references."""
    return proofs.euler(policy, noise(policy), policy.encode(PROMPT, []))


def stock_image(pipeline: FluxPipeline, policy: UnoPolicy) -> Tensor:
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
