"""Attention on a CPU by batched products of matrices, a few pictures' heads at a time.

torch's own for CPUs, a flash attention, multiplies in small blocks: two threads take as long as one, and in bfloat16
its backward pass takes five times as long as the products need. Here the scores of some heads are made at once, no
more of them than a processor's caches hold. In half precision they are float32 as torch's are, and the products with
the values, and those of the backward pass, are in half precision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from customized_grpo.policies.slices import slices

_KEPT = 2  # probabilities are kept for the backward pass if they take no more than so often what is kept anyway


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q Kᵀ / sqrt(D)) V of query (B, heads, N, D), key and value (B, heads, M, D); (B, heads, N, D).

    A picture's bits do not depend on what else is in the batch, nor on whether gradients are recorded.
    """
    function: Any = _Attention
    output: Tensor = function.apply(query, key, value)
    return output


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attention` can be had of these."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and query.ndim == 4
        and query.shape[:2] == key.shape[:2]
        and key.shape == value.shape
        and query.shape[-1] == key.shape[-1]
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens, width, seen = *query.shape[2:], key.shape[2]
        anyway = 2 * (tokens + seen) * width  # of a head: its queries, keys, values and output
        keep = any(ctx.needs_input_grad) and tokens * seen <= _KEPT * anyway
        output, *kept = _forward(query, key, value, keep=keep)
        ctx.save_for_backward(output, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        output, query, key, value, *kept = ctx.saved_tensors
        batch, heads, _, width = output.shape
        above = _heads(gradients[0])
        # The softmax takes from each row of the scores' gradient its mean by the probabilities: dO . O (arXiv
        # 2205.14135, appendix B.4).
        mean = (above * output.flatten(0, 1)).sum(-1, keepdim=True)
        of_query, of_key, of_value = (torch.empty_like(part) for part in (query, key, value))
        for k, part in enumerate(_parts(query, key, heads)):
            shares = kept[k] if kept else _probabilities(query[part], key[part])
            torch.bmm(shares.transpose(1, 2), above[part], out=of_value[part])
            of_scores = torch.bmm(above[part], value[part].transpose(1, 2)).sub_(mean[part]).mul_(shares)
            torch.bmm(of_scores, key[part], out=of_query[part])
            torch.bmm(of_scores.transpose(1, 2), query[part], out=of_key[part])
        of_query.mul_(1 / math.sqrt(width))
        found = (of_query, of_key, of_value)
        return tuple(part.view(batch, heads, *part.shape[1:]) for part in found)


def _forward(query: Tensor, key: Tensor, value: Tensor, *, keep: bool) -> list[Tensor]:
    """The output; what the backward pass needs: scaled queries, keys, values, and where asked for, probabilities."""
    heads, width = query.shape[1], query.shape[3]
    scaled, keys, values = _heads(query, 1 / math.sqrt(width)), _heads(key), _heads(value)
    output = torch.empty_like(scaled)
    kept = []
    for part in _parts(scaled, keys, heads):
        shares = _probabilities(scaled[part], keys[part])
        torch.bmm(shares, values[part], out=output[part])
        if keep:
            kept.append(shares)
    return [output.view(query.shape), scaled, keys, values, *kept]


def _probabilities(scaled: Tensor, keys: Tensor) -> Tensor:
    """Of scaled queries (heads, N, D) and keys (heads, M, D), in their precision; (heads, N, M)."""
    scores = torch.bmm(scaled.float(), keys.float().transpose(1, 2))
    return torch.softmax(scores, -1).to(scaled.dtype)


def _heads(x: Tensor, scale: float | None = None) -> Tensor:
    """x (B, heads, tokens, D) in one pass as (B * heads, tokens, D), each head's tokens next to each other."""
    made = torch.empty(x.shape, dtype=x.dtype)
    made = made.copy_(x) if scale is None else torch.mul(x, scale, out=made)
    return made.flatten(0, 1)


def _parts(query: Tensor, key: Tensor, heads: int) -> list[slice]:
    """Which of the heads of all pictures are taken at once: whole pictures', or where one is too large, fewer."""
    return slices(len(query), 4 * query.shape[1] * key.shape[1], times=heads)
