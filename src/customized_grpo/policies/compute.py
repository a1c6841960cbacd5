"""Memory formats and devices of a policy's models, and memory that a CPU frees."""

import ctypes
import platform
from typing import Any

import torch
from torch import nn

from customized_grpo.config import PolicyConfig


def takes_channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Report whether convolutions use channels last: on CUDA, and in float32 on a CPU (decoding is a third faster)."""
    return device.type == "cuda" or (device.type == "cpu" and dtype == torch.float32)


def use_channels_last(model: nn.Module) -> None:
    """Lay out the weights of a model's convolutions so that they compute with channels last."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


class Placement:
    """Move a pipeline's models to the device and off it: with `offload`, the transformer or all others are on it.

    With `conditions`, text encoders are dropped instead of moved to host memory.
    """

    def __init__(self, pipeline: Any, config: PolicyConfig, device: torch.device) -> None:
        self.encoders = [name for name in pipeline.components if name.startswith("text_encoder")]
        self._pipeline, self._device, self._offload = pipeline, device, config.offload
        self._drop = config.conditions is not None
        self._alone = False  # True if the transformer is known to be alone on the device

    def bring(self, *parts: nn.Module) -> None:
        """Move these models to the device, beside the others there."""
        for part in parts:
            part.to(self._device)
        self._alone = False

    def bring_encoders(self) -> None:
        """Move text encoders and VAE to the device; with `offload`, the transformer off it."""
        if self._offload:
            self._pipeline.transformer.to("cpu")
        self.bring(*(getattr(self._pipeline, name) for name in self.encoders), self._pipeline.vae)

    def bring_transformer(self) -> None:
        """Move the transformer to the device; with `offload`, all else off it."""
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


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the whole process; False with another C library.

    By default it returns large tensors to the system: an iteration of the embedded recipe then takes 10% longer.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}  # the last is the maximum
    accepted = [library.mallopt(key, value) for key, value in settings.items()]
    return all(accepted)
