"""A linear layer with a LoRA in fewer passes over activations than peft's own.

Both compute x Wᵀ + b + s (x Aᵀ) Bᵀ (arXiv 2106.09685, section 4.1) and agree within rounding. This one works in the
precision of x, as autocast does, with the factors' own kept for the optimiser, and keeps for the backward pass only x
and, at most, its r-dimensional image. In float32, of more rows than the weight has, it multiplies by W + s B A, made
anew each time, forth and back. In half precision, where the small update would be lost in that sum, it adds the
low-rank term inside the second of two products.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor

from customized_grpo.policies import shortcuts
from customized_grpo.policies.products import product


class LowRankLinear(Linear):  # type: ignore[misc]  # peft has no types
    """peft's LoRA of an `nn.Linear`, computed as above while exactly one plain adapter is at work; else peft's way.

    Without any adapter, and without gradients, it is computed by the same products, so that an adapter of zeros
    changes no bit.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.base_layer
        plain = shortcuts.taken() and not args and not kwargs and x.dtype == base.weight.dtype
        if plain and self.disable_adapters and not self.merged and not torch.is_grad_enabled():
            return product(x.reshape(-1, x.shape[-1]), base.weight, base.bias).view(*x.shape[:-1], -1)
        name = self._alone()
        if name is None or not plain:
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        low_rank: Any = _Product
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        output: Tensor = low_rank.apply(x, base.weight, base.bias, down, up, self.scaling[name])
        return output

    def _alone(self) -> str | None:
        """The one adapter at work, where it is plain: no dropout, no variant such as DoRA, no bias, not merged."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        name: str = active[0]
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
        ctx.precision, ctx.scale = down.dtype, scale
        down, up = down.to(x.dtype), up.to(x.dtype)
        if _summed(rows, weight):
            inner = None  # made when it is wanted
            output = product(rows, torch.addmm(weight, up, down, alpha=scale), bias)
        else:
            inner = product(rows, down)
            output = product(rows, weight, bias)
            output.addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(rows, inner, weight, down, up)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        output = gradients[0].reshape(-1, weight.shape[0])
        of_inner = _scaled(product(output, up.T), ctx.scale)
        of_x = None
        if ctx.needs_input_grad[0]:
            if inner is None:
                of_x = product(output, torch.addmm(weight, up, down, alpha=ctx.scale).T)
            else:
                of_x = product(output, weight.T).addmm_(of_inner, down)
            of_x = of_x.view(*gradients[0].shape[:-1], -1)
        if inner is None:
            inner = product(rows, down)
        # The wide matrix stands second in both: the other way round is slower.
        of_down, of_up = product(of_inner.T, rows.T), _scaled(product(inner.T, output.T), ctx.scale).T
        return of_x, None, None, of_down.to(ctx.precision), of_up.to(ctx.precision), None


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x.mul_(scale)


def _summed(rows: Tensor, weight: Tensor) -> bool:
    """Whether W + s B A is worth its making, and keeps the update's last bits."""
    return rows.dtype in (torch.float32, torch.float64) and rows.shape[0] > max(weight.shape)
