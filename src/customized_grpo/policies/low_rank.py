"""A linear layer with a LoRA in two fused products, where peft's own takes three and four passes over activations.

Both compute x Wᵀ + b + s (x Aᵀ) Bᵀ (arXiv 2106.09685, section 4.1) and agree within rounding. This one works in the
precision of x, as autocast does, with the factors' own kept for the optimiser; adds the low-rank term inside the
second product; and keeps for the backward pass only x and its r-dimensional image.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor


class LowRankLinear(Linear):  # type: ignore[misc]  # peft has no types
    """peft's LoRA of an `nn.Linear`, computed as above while exactly one plain adapter is at work; else peft's way."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._alone()
        if name is None or args or kwargs or x.dtype != self.base_layer.weight.dtype:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        base = self.base_layer
        down, up = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
        product: Any = _Product
        output: Tensor = product.apply(x, base.weight, base.bias, down, up, self.scaling[name])
        return output

    def _alone(self) -> str | None:
        """The one adapter at work, where it is plain: no dropout, no variant such as DoRA, no bias, not merged."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return None
        return name if isinstance(self.lora_dropout[name], torch.nn.Identity) else None


class _Product(torch.autograd.Function):
    """x (..., I), frozen weight (O, I) and bias (O,), factors down (R, I) and up (O, R) -> (..., O)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.T
        output = torch.nn.functional.linear(rows, weight, bias)
        output.addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(rows, inner, weight, down, up)
        ctx.scale = scale
        return output.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        output = gradients[0].reshape(-1, len(weight))
        of_inner = (output @ up).mul_(ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (output @ weight).addmm_(of_inner, down).view(*gradients[0].shape[:-1], rows.shape[-1])
        return of_x, None, None, of_inner.T @ rows, (output.T @ inner).mul_(ctx.scale), None
