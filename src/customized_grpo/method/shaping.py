"""SARS, Synergy-Aware Reward Shaping (arXiv 2510.18263), and the terms it is compared with.

Each function returns the shaping term B that is added to the weighted sum of the two advantages.
All take ``(a_identity, a_prompt, gamma)``: two tensors of one shape (..., ) and the strength
``gamma`` >= 0, and all are symmetric in the two roles.

Only :func:`sars`, :func:`harmonic` and :func:`none` are terms in the authors' release. There, "min"
and "max" *replace* the whole advantage by min(A_p, A_id) or max(A_p, A_id), "product" replaces it
by a renormalised softplus product with the weights as exponents, and an option that can never be
reached takes the SARS term as the whole advantage. Here every ablation is a term beside the same
weighted sum, so that one comparison changes one thing; these are not the released ablations.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import softplus


def sars(a_identity: Tensor, a_prompt: Tensor, gamma: float) -> Tensor:
    """``+gamma*tanh(A_p*A_id)`` if either advantage is positive, else ``-gamma*tanh(A_p*A_id)``.

    So a bonus where both are positive and a penalty elsewhere, within [-gamma, gamma]. At the same
    ``|A_p*A_id|`` the penalty for two negative advantages is exactly as large as the one for a
    conflict; that both negative ends lower in total comes from the weighted sum beside it.
    """
    term = gamma * torch.tanh(a_prompt * a_identity)
    return torch.where((a_prompt > 0) | (a_identity > 0), term, -term)


def bonus_alone(a_identity: Tensor, a_prompt: Tensor, gamma: float) -> Tensor:
    """The bonus of SARS without its penalties: zero unless both advantages are positive."""
    term = gamma * torch.tanh(a_prompt * a_identity)
    return torch.where((a_prompt > 0) & (a_identity > 0), term, torch.zeros_like(term))


def minimum(a_identity: Tensor, a_prompt: Tensor, gamma: float) -> Tensor:
    """``gamma * min(A_p, A_id)``: the worse role counts more."""
    return gamma * torch.minimum(a_prompt, a_identity)


def maximum(a_identity: Tensor, a_prompt: Tensor, gamma: float) -> Tensor:
    """``gamma * max(A_p, A_id)``: the better role counts more."""
    return gamma * torch.maximum(a_prompt, a_identity)


def harmonic(a_identity: Tensor, a_prompt: Tensor, gamma: float) -> Tensor:
    """``gamma * A_p*A_id / (A_p + A_id)``; zero where the denominator is exactly zero.

    Meant for positive advantages. In a conflict it has a pole at ``A_p = -A_id`` and changes sign
    across it, so nearly balanced conflicts give terms of any size; only the clipping of the total
    advantage bounds them.
    """
    total = a_prompt + a_identity
    at_pole = total == 0
    term = gamma * a_prompt * a_identity / torch.where(at_pole, torch.ones_like(total), total)
    return torch.where(at_pole, torch.zeros_like(term), term)


def product(a_identity: Tensor, a_prompt: Tensor, gamma: float) -> Tensor:
    """``gamma * softplus(A_p) * softplus(A_id)``: never a penalty, and unbounded above."""
    return gamma * softplus(a_prompt) * softplus(a_identity)


def none(a_identity: Tensor, a_prompt: Tensor, gamma: float) -> Tensor:
    """Zero: the weighted sum alone, as in naive GRPO."""
    return torch.zeros_like(a_prompt * a_identity)


def annealed(first: float, last: float | None, done: float) -> float:
    """The strength gamma where ``done``, 0..1, of a run's iterations are over: a straight line from first to last.

    The paper has one gamma throughout, which ``None`` for ``last`` gives.

    Raises:
        ValueError: if ``done`` is not in 0..1.
    """
    if not 0 <= done <= 1:
        raise ValueError(f"done must be in 0..1, not {done}")
    return first if last is None else first + (last - first) * done


Shaping = Callable[[Tensor, Tensor, float], Tensor]
"""``(a_identity, a_prompt, gamma) -> B``, all of one shape."""

SHAPINGS: Final[Mapping[str, Shaping]] = {
    "sars": sars,
    "none": none,
    "bonus": bonus_alone,
    "min": minimum,
    "max": maximum,
    "harmonic": harmonic,
    "product": product,
}
"""Configuration name -> shaping term."""
