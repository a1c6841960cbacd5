"""Queries and keys normed and turned in one go: RMS norm and rotary embeddings, in few passes over them.

Both agree with torch's norm and diffusers' embeddings within rounding; what lies between them is float32 here.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional

from customized_grpo.policies import shortcuts
from customized_grpo.policies.slices import slices

_COMPLEX = ("cpu", "cuda", "meta")  # devices that multiply complex numbers in one pass
_ALL = slice(None)

Rotary = tuple[Tensor, Tensor]


def normed_and_turned(x: Tensor, norm: nn.RMSNorm, rotary: Rotary | None, tokens: slice = _ALL) -> Tensor:
    """x (B, tokens, heads, D) by `norm` over D, turned by cosines and sines (all, D), each of which comes twice.

    `tokens` are those of `rotary` that x has. Where the norm's own weights are trained, it is torch's.
    """
    if rotary is None:
        normed: Tensor = norm(x)
        return normed
    if x.device.type not in _COMPLEX or torch.compiler.is_compiling() or not shortcuts.taken():
        own: Tensor = apply_rotary_emb(norm(x), (rotary[0][tokens], rotary[1][tokens]), sequence_dim=1)
        return own
    rotation = _rotation(rotary, x.device)
    if tokens != _ALL:
        rotation = rotation[tokens]
    weight = norm.weight
    if weight is not None and weight.requires_grad:
        normed = norm(x).float()
        return torch.view_as_real(_pairs(normed) * rotation).flatten(3).to(x.dtype)
    epsilon = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    function: Any = _InSlices if x.device.type == "cpu" else _AtOnce
    output: Tensor = function.apply(x, weight, epsilon, rotation)
    return output


class _InSlices(torch.autograd.Function):
    """On a CPU, whose caches are small: a few pictures at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, epsilon: float, rotation: Tensor) -> Tensor:
        weight = None if weight is None else weight.float()
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        # What each head of each token is multiplied by for the norm.
        inverse = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
        for part in _slices(x):
            given = x[part].float()
            torch.rsqrt(given.square().mean(-1, keepdim=True).add_(epsilon), out=inverse[part])
            # Where the output is float32 it is made in place, step by step.
            made = output[part] if output.dtype == torch.float32 else torch.empty_like(given)
            torch.mul(given, inverse[part], out=made)
            if weight is not None:
                made.mul_(weight)
            _pairs(made).mul_(rotation)
            if made.dtype != output.dtype:
                output[part] = made
        ctx.save_for_backward(x, weight, rotation, inverse)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rotation, inverse = ctx.saved_tensors
        above = gradients[0]
        found = torch.empty_like(x, memory_format=torch.contiguous_format)
        back = rotation.conj().resolve_conj()
        for part in _slices(x):
            given = x[part].float()
            pairs = _pairs(above[part].float().contiguous()) * back
            made = torch.view_as_real(pairs).flatten(3)
            if weight is not None:
                made.mul_(weight)
            # Of y = x / rms(x): dx = (dy - y mean(dy . y)) / rms(x).
            along = (made * given).mean(-1, keepdim=True).mul_(inverse[part] ** 2)
            found[part] = made.addcmul_(given, along, value=-1).mul_(inverse[part])
        return found, None, None, None


class _AtOnce(torch.autograd.Function):
    """Elsewhere: by torch's norm, which is one kernel on CUDA, of float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, epsilon: float, rotation: Tensor) -> Tensor:
        weight = None if weight is None else weight.float()
        ctx.save_for_backward(x, weight, rotation)
        ctx.epsilon = epsilon
        normed = functional.rms_norm(x.float(), x.shape[-1:], weight, epsilon)
        _pairs(normed).mul_(rotation)
        return normed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rotation = ctx.saved_tensors
        turned = torch.view_as_real(_pairs(gradients[0].float().contiguous()) * rotation.conj()).flatten(3)
        with torch.enable_grad():
            given = x.detach().float().requires_grad_()
            normed = functional.rms_norm(given, x.shape[-1:], weight, ctx.epsilon)
        (found,) = torch.autograd.grad(normed, given, turned)
        return found.to(x.dtype), None, None, None


_made: tuple[Tensor, Tensor, Tensor] | None = None


def _rotation(rotary: Rotary, device: torch.device) -> Tensor:
    """Cosines and sines as complex numbers (tokens, 1, D / 2); those of one pass are the same for all its blocks."""
    global _made
    if _made is None or _made[0] is not rotary[0] or _made[1] is not rotary[1]:
        parts = (part.to(device, torch.float32)[:, None, ::2] for part in rotary)
        _made = (*rotary, torch.complex(*parts))
    return _made[2]


def _pairs(x: Tensor) -> Tensor:
    """x (..., D) float32, as D / 2 complex numbers."""
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def _slices(x: Tensor) -> list[slice]:
    return slices(len(x), 4 * x[0].numel())
