"""Attention in half precision on a CPU: torch's own forward pass, and a backward pass that is not its slow one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class BackwardInFull(TorchFunctionMode):
    """Inside it, plain scaled dot-product attention of half-precision tensors has its backward pass in float32.

    torch's flash attention for CPUs takes 9 times as long back as forth in bfloat16, and 2 times in float32, so that
    the attention taken once more in float32, and its backward pass, are less than half of that. The forward pass is
    torch's own, bit for bit.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention and torch.is_grad_enabled():
            given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            given |= kwargs or {}
            query, key, value = (given.pop(name) for name in ("query", "key", "value"))
            plain = not any(isinstance(option, Tensor) or option for option in given.values())
            if plain and query.dtype in (torch.bfloat16, torch.float16):
                attention: Any = _Attention
                return attention.apply(query, key, value)
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """softmax(Q Kᵀ / sqrt(D)) V of (B, heads, tokens, D) each."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return functional.scaled_dot_product_attention(query, key, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        half = ctx.saved_tensors
        with torch.enable_grad():
            full = [tensor.detach().float().requires_grad_() for tensor in half]
            output = functional.scaled_dot_product_attention(*full)
        found = torch.autograd.grad(output, full, gradients[0].float())
        return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(found, half, strict=True))
