"""GELU in its tanh form on a CPU, by the logistic function: 0.5 (1 + tanh u) is 1 / (1 + exp(-2u)).

torch's own takes half of its time for the hyperbolic tangent, forth and back. Here the slope is made beside the
function, from the same logistic, and is kept in place of what was given: the backward pass is one product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from customized_grpo.policies.slices import slices

_SCALE = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def gelu(x: Tensor) -> Tensor:
    """x logistic(2 sqrt(2/pi) (x + 0.044715 x^3)) of any shape, in x's precision and worked out in float32 at least.

    An element's bits do not depend on what else is in x, nor on whether gradients are recorded (arXiv 1606.08415,
    section 2).
    """
    function: Any = _Gelu
    output: Tensor = function.apply(x)
    return output


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output, slope = _with_slope(x, wanted=ctx.needs_input_grad[0])
        ctx.save_for_backward(slope)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        of_x: Tensor = gradients[0] * slope
        return of_x


def _with_slope(x: Tensor, *, wanted: bool) -> tuple[Tensor, Tensor | None]:
    flat = x.reshape(-1)
    output = torch.empty_like(flat)
    slope = torch.empty_like(flat) if wanted else None
    precise = torch.promote_types(x.dtype, torch.float32)
    for part in slices(len(flat), 4):
        given = flat[part].to(precise)
        square = given * given
        share = torch.addcmul(given, given, square, value=_CUBIC).mul_(_SCALE).sigmoid_()
        made = given * share
        output[part] = made
        if slope is not None:
            torch.addcmul(made, made, share, value=-1, out=made)
            slope[part] = share.addcmul_(made, square.mul_(3 * _CUBIC * _SCALE).add_(_SCALE))
    return output.view(x.shape), None if slope is None else slope.view(x.shape)
