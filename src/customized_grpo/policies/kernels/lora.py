"""A LoRA's linear layer in fewer passes over activations than peft's own, equal within rounding.

Both compute x Wᵀ + b + s (x Aᵀ) Bᵀ (arXiv 2106.09685, section 4.1). This one works in the precision of x, as autocast
does, while the factors keep their own, and saves only x and, at most, its r-dimensional projection for the backward
pass. In float32, with more rows than the weight has, it multiplies by W + s B A, made anew each time. In half
precision, where that sum would lose the small update, the low-rank term is added in the second of two products.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn.functional import linear

from customized_grpo.policies import shortcuts
from customized_grpo.policies.kernels import usable

USABLE = usable("LoRA", {Linear.forward: "ec0a80f5c5ce"})


class LowRankLinear(Linear):  # type: ignore[misc]  # peft has no types
    """peft's LoRA of an `nn.Linear`, by this kernel while exactly one plain adapter is active, else by peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the layer's output (..., out_features) of x (..., in_features)."""
        base = self.base_layer
        plain = shortcuts.taken() and not args and not kwargs and x.dtype == base.weight.dtype
        if plain and self.disable_adapters and not self.merged and not torch.is_grad_enabled():
            return linear(x.reshape(-1, x.shape[-1]), base.weight, base.bias).view(*x.shape[:-1], -1)
        name = self._single_adapter()
        if name is None or not plain:
            return super().forward(x, *args, **kwargs)
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return _LowRankProduct.apply(x, base.weight, base.bias, down, up, self.scaling[name])

    def _single_adapter(self) -> str | None:
        """Return the active adapter if it is the only one, without dropout, variant (DoRA), bias or merging."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        name: str = active[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return None
        return name if isinstance(self.lora_dropout[name], torch.nn.Identity) else None


class _LowRankProduct(torch.autograd.Function):
    """x (..., I), frozen weight (O, I) and bias (O,), factors down (R, I) and up (O, R) -> (..., O)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.dtype, ctx.scale = down.dtype, scale
        down, up = down.to(x.dtype), up.to(x.dtype)
        if rows.dtype in (torch.float32, torch.float64) and len(rows) > max(weight.shape):
            inner = None  # computed in the backward pass
            output = linear(rows, torch.addmm(weight, up, down, alpha=scale), bias)
        else:
            inner = linear(rows, down)
            output = linear(rows, weight, bias).addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(rows, inner, weight, down, up)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, down, up = ctx.saved_tensors
        above = gradients[0].reshape(-1, weight.shape[0])
        inner_gradient = _scale(linear(above, up.T), ctx.scale)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            if inner is None:
                x_gradient = linear(above, torch.addmm(weight, up, down, alpha=ctx.scale).T)
            else:
                x_gradient = linear(above, weight.T).addmm_(inner_gradient, down)
            x_gradient = x_gradient.view(*gradients[0].shape[:-1], -1)
        if inner is None:
            inner = linear(rows, down)
        # The wide matrix is the second operand of both, which is faster.
        down_gradient = linear(inner_gradient.T, rows.T).to(ctx.dtype)
        up_gradient = _scale(linear(inner.T, above.T), ctx.scale).T.to(ctx.dtype)
        return x_gradient, None, None, down_gradient, up_gradient, None


def _scale(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x.mul_(scale)
