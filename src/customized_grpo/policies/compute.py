"""How a policy's models are computed and where they are: kernels, checkpointing, memory formats, offloading."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from customized_grpo.config import PolicyConfig
from customized_grpo.policies.backends import PRODUCTS, context_of, use_backend
from customized_grpo.policies.checkpointing import checkpointing
from customized_grpo.utils.freed import keep_freed_memory

Inside = Callable[[], AbstractContextManager[object]]


def prepare_transformer(
    transformer: Any,
    config: PolicyConfig,
    device: torch.device,
    backend: str,
    on_processor: Callable[[bool], AbstractContextManager[object]],
) -> Inside:
    """Set a transformer's attention backend, gradient checkpointing and compilation.

    Args:
        transformer: A diffusers model; changed in place.
        config: The policy's settings.
        device: Where it is computed.
        backend: The attention backend, of `resolve_backend`.
        on_processor: Makes the context of a CPU's own kernels, given whether attention is one of them.

    Returns:
        What makes the context inside which the transformer is computed.
    """
    use_backend(transformer, backend)
    inside = context_of(backend)
    if device.type == "cpu":
        keep_freed_memory()
        if not config.compile:
            inside = partial(on_processor, backend == PRODUCTS)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing(
            checkpointing(device, on_host=config.offload_activations, inside=inside)
        )
    if config.compile:
        transformer.compile_repeated_blocks()
    return inside


def takes_channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions are computed with channels last: on CUDA, and in float32 on a CPU.

    On a CPU decoding takes a third less time then; half precision there keeps the pipeline's own bits.
    """
    return device.type == "cuda" or (device.type == "cpu" and dtype == torch.float32)


def use_channels_last(model: nn.Module) -> None:
    """Lay out the weights of a model's convolutions so that they compute with channels last."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


class Placement:
    """Which of a pipeline's models are on the device: with `offload`, the transformer or all others.

    Args:
        pipeline: A diffusers pipeline.
        config: The policy's settings; with `conditions`, text encoders are dropped instead of moved to host memory.
        device: Where models are computed.
    """

    def __init__(self, pipeline: Any, config: PolicyConfig, device: torch.device) -> None:
        self.encoders = [name for name in pipeline.components if name.startswith("text_encoder")]
        self._pipeline, self._device, self._offload = pipeline, device, config.offload
        self._drop = config.conditions is not None
        self._alone = False  # whether the transformer is known to be alone on the device

    def bring(self, *parts: nn.Module) -> None:
        """Move these models to the device, beside what is there."""
        for part in parts:
            part.to(self._device)
        self._alone = False

    def bring_encoders(self) -> None:
        """Move text encoders and VAE to the device, the transformer off it where they take turns."""
        if self._offload:
            self._pipeline.transformer.to("cpu")
        self.bring(*(getattr(self._pipeline, name) for name in self.encoders), self._pipeline.vae)

    def bring_transformer(self) -> None:
        """Move the transformer to the device, all else off it where they take turns."""
        if not self._offload:
            self._pipeline.to(self._device)
        elif not self._alone:
            for name in (*self.encoders, "vae"):
                part = getattr(self._pipeline, name)
                if self._drop and name in self.encoders:
                    setattr(self._pipeline, name, None)
                elif part is not None:
                    part.to("cpu")
            self._pipeline.transformer.to(self._device)
            self._alone = True
