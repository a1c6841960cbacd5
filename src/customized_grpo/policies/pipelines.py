"""What the policies made of a diffusers pipeline share: loading it, its device, the check of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from customized_grpo.config import PolicyConfig
from customized_grpo.models import ModelError, first_line, resolve
from customized_grpo.protocols import Conditions


def load_pipeline(config: PolicyConfig, pipeline: Any) -> Any:
    """The diffusers pipeline at `config.path`, of the class `pipeline`, in `config.dtype`; frozen, for inference.

    Raises:
        ModelError: the path holds no such pipeline in safetensors; one line with the remedy.
    """
    try:
        source = resolve(config.path)
    except ModelError as error:
        raise ModelError(f"policy.path: {error}") from None
    remedy = f"give the folder or hub id of a diffusers {pipeline.__name__}"
    try:
        kind = pipeline.load_config(source, revision=config.revision)["_class_name"]
        if kind != pipeline.__name__:
            raise ModelError(f"policy.path: {config.path} is a {kind}; {remedy}")
        dtype = getattr(torch, config.dtype)
        loaded = pipeline.from_pretrained(source, revision=config.revision, dtype=dtype, use_safetensors=True)
    except ModelError:
        raise
    except Exception as error:  # Three libraries raise here, from many classes.
        raise ModelError(
            f"policy.path: cannot load {config.path} ({first_line(error)}); {remedy} in safetensors"
        ) from error
    for part in loaded.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return loaded


def load_transformer(config: PolicyConfig, transformer: Any) -> nn.Module:
    """The untuned transformer of the pipeline at `config.path` again, on the CPU."""
    model: nn.Module = transformer.from_pretrained(
        resolve(config.path),
        subfolder="transformer",
        revision=config.revision,
        dtype=getattr(torch, config.dtype),
        use_safetensors=True,
    )
    return model


def device_of(config: PolicyConfig) -> torch.device:
    """The configured device, else the accelerator that a launcher has set for its process, else the CPU."""
    if config.device:
        return torch.device(config.device)
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, torch.accelerator.current_device_index())


def check_batch(latents: Tensor, sigma: Tensor, conditions: Conditions, latent_shape: tuple[int, ...]) -> None:
    """Raises ValueError where the arguments of `Policy.velocity` do not fit together."""
    if latents.shape[1:] != latent_shape or not len(latents) == len(sigma) == len(conditions):
        raise ValueError(
            f"latents {tuple(latents.shape)}, sigma {tuple(sigma.shape)} and {len(conditions)} "
            f"conditions do not fit; latents are (B, {', '.join(map(str, latent_shape))})"
        )
