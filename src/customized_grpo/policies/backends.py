"""Attention backends by diffusers' names and dispatcher, with a default that is safe to train with on every device.

torch's own choice on a Hopper GPU is cuDNN, whose backward pass is wrong there: torch caches its graph by shapes and
strides of queries, keys and values, but the graph also depends on the strides of the output's gradient. Two calls that
differ in those alone share a graph, which then reads the gradient at wrong places or past its end (pytorch issue 122695
and pull request 191576). FLUX makes such calls: in its single blocks attention is concatenated with an MLP, so that the
gradient is a strided part of a larger one; in its double blocks it is contiguous.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
    dispatch_attention_fn,
)
from diffusers.utils import is_kernels_available, is_kernels_version
from torch import Tensor, nn
from torch.backends import cuda as _cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from customized_grpo.utils.hub import ModelError, first_line

cuda: Any = _cuda  # parts of it have no types

AUTO = "auto"
WITHOUT_CUDNN = "native without cuDNN"
"""Backend of `auto` on CUDA: torch's choice of flash, memory-efficient and plain attention."""

#: Short names of `policy.attention`; diffusers' other names are accepted too.
_NAMES = {
    "native": AttentionBackendName.NATIVE,
    "flash": AttentionBackendName._NATIVE_FLASH,
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
    "flash-3": AttentionBackendName._FLASH_3_HUB,
    "efficient": AttentionBackendName._NATIVE_EFFICIENT,
    "math": AttentionBackendName._NATIVE_MATH,
}
_KERNELS = "0.12"  # the oldest release of the package that diffusers takes
_HOPPER = 9  # major compute capability that FlashAttention 3 is made for


def available_backends(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """List names of `policy.attention` that a model of this precision can be trained with on this device."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _HOPPER
    flash_3 = hopper and is_kernels_available() and is_kernels_version(">=", _KERNELS)
    tried = {name: backend for name, backend in _NAMES.items() if name != "flash-3"}
    found = [name for name, backend in tried.items() if _obstacle(backend, device, dtype) is None]
    return [AUTO, *found, *(["flash-3"] if flash_3 and dtype in (torch.bfloat16, torch.float16) else [])]


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the value of diffusers' `AttentionBackendName`, or `WITHOUT_CUDNN`, that `policy.attention` stands for.

    Raises ModelError if there is no such backend, or it cannot be trained with on this device.
    """
    if name == AUTO:
        return WITHOUT_CUDNN if device.type == "cuda" else str(AttentionBackendName.NATIVE.value)
    try:
        backend = _NAMES[name] if name in _NAMES else AttentionBackendName(name)
    except ValueError:
        raise _refused(f"there is no backend {name}", device, dtype) from None
    if device.type == "meta":  # nothing is computed
        return str(AttentionBackendName.NATIVE.value)
    if (obstacle := _obstacle(backend, device, dtype)) is not None:
        raise _refused(f"{name} cannot be trained with here ({obstacle})", device, dtype)
    return str(backend.value)


def use_backend(transformer: nn.Module, backend: str) -> None:
    """Set the attention backend of a diffusers transformer to one that `resolve_backend` named."""
    name = AttentionBackendName.NATIVE if backend == WITHOUT_CUDNN else AttentionBackendName(backend)
    if name is AttentionBackendName._NATIVE_CUDNN:
        registered = _AttentionBackendRegistry._backends
        registered[name] = with_contiguous_gradients(registered[name])
    # Not by set_attention_backend, which changes the default of all other models too.
    for module in transformer.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = name


def context_of(backend: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a function that makes the context to compute the transformer in, also when checkpointing recomputes."""
    return _without_cudnn if backend == WITHOUT_CUDNN else nullcontext


def with_contiguous_gradients(attention: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an attention function so that its backward pass gets contiguous gradients, which cuDNN needs."""
    if hasattr(attention, "__wrapped__"):
        return attention

    @wraps(attention)
    def compute(*args: Any, **kwargs: Any) -> Any:
        found = attention(*args, **kwargs)
        return _ContiguousGradient.apply(found) if isinstance(found, Tensor) else found

    return compute


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


@contextmanager
def _without_cudnn() -> Iterator[None]:
    before = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(before)


def _obstacle(backend: AttentionBackendName, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a small forward and backward call of a backend fails here; None if it does not."""
    try:
        # (B, tokens, heads, head dimension)
        parts = [torch.ones(1, 128, 1, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            if backend is AttentionBackendName._NATIVE_CUDNN:
                # Not called: a backward pass that fails would make the GPU unusable for this process.
                given = cuda.SDPAParams(*(part.transpose(1, 2) for part in parts), None, 0.0, False, False)
                with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                    return None if cuda.can_use_cudnn_attention(given) else f"no cuDNN for {dtype} on {device}"
            with attention_backend(backend):  # checks for packages, and downloads what comes from the Hub
                output = dispatch_attention_fn(*parts)
            torch.autograd.grad(output, parts, torch.ones_like(output))
    except Exception as error:  # of whichever package computes it
        return first_line(error)
    return None


def _refused(why: str, device: torch.device, dtype: torch.dtype) -> ModelError:
    return ModelError(
        f"policy.attention: {why}; set one that is available: {', '.join(available_backends(device, dtype))}"
    )
