"""RMS norm and rotary embeddings of queries and keys in few passes, in float32 within and equal within rounding."""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from customized_grpo.policies import shortcuts
from customized_grpo.policies.kernels import usable

USABLE = usable("rotary embedding", {apply_rotary_emb: "a25267d425f8"})
_COMPLEX = ("cpu", "cuda", "meta")  # devices that multiply complex numbers in one pass
_ALL = slice(None)

Rotary = tuple[Tensor, Tensor]


def norm_and_rotate(x: Tensor, norm: nn.RMSNorm, rotary: Rotary | None, tokens: slice = _ALL) -> Tensor:
    """Normalise x (B, tokens, heads, D) and, given cosines and sines (all tokens, D), rotate pairs of channels.

    `tokens` are those of all tokens that x has. If the norm's weight is trained, torch computes the norm.
    """
    if rotary is None:
        return norm(x)
    if not USABLE or x.device.type not in _COMPLEX or not shortcuts.taken():
        return apply_rotary_emb(norm(x), (rotary[0][tokens], rotary[1][tokens]), sequence_dim=1)
    rotation = _rotation(rotary, x.device)
    if tokens != _ALL:
        rotation = rotation[tokens]
    weight = norm.weight
    if weight is not None and weight.requires_grad:
        return torch.view_as_real(_pairs(norm(x).float()) * rotation).flatten(3).to(x.dtype)
    epsilon = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    return _NormAndRotate.apply(x, weight, epsilon, rotation)


class _NormAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, epsilon: float, rotation: Tensor) -> Tensor:
        weight = None if weight is None else weight.float()
        ctx.save_for_backward(x, weight, rotation)
        ctx.epsilon = epsilon
        normed = rms_norm(x.float(), x.shape[-1:], weight, epsilon)
        _pairs(normed).mul_(rotation)
        return normed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rotation = ctx.saved_tensors
        rotated = torch.view_as_real(_pairs(gradients[0].float().contiguous()) * rotation.conj()).flatten(3)
        with torch.enable_grad():
            given = x.detach().float().requires_grad_()
            normed = rms_norm(given, x.shape[-1:], weight, ctx.epsilon)
        (gradient,) = torch.autograd.grad(normed, given, rotated)
        return gradient.to(x.dtype), None, None, None


_cached: tuple[Tensor, Tensor, Tensor] | None = None


def _rotation(rotary: Rotary, device: torch.device) -> Tensor:
    """Return cosines and sines as complex numbers (tokens, 1, D / 2), the same for all blocks of a forward pass."""
    global _cached
    if _cached is None or _cached[0] is not rotary[0] or _cached[1] is not rotary[1]:
        parts = (part.to(device, torch.float32)[:, None, ::2] for part in rotary)
        _cached = (*rotary, torch.complex(*parts))
    return _cached[2]


def _pairs(x: Tensor) -> Tensor:
    """View x (..., D) float32 as D / 2 complex numbers."""
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
