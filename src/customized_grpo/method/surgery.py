"""PCGrad, gradient surgery (arXiv 2001.06782): what two roles' gradients have against each other is taken out."""

from collections.abc import Sequence

import torch
from torch import Tensor


def project_conflicts(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """The sum of two gradients, each first less its part along the other where they oppose each other.

    ``g1 - (g1.g2 / |g2|^2) g2 + g2 - (g1.g2 / |g1|^2) g1`` where ``g1.g2 < 0``, else ``g1 + g2`` (Algorithm 1 for two
    tasks, where the order of tasks, random there, does not matter). To first order the result lowers neither's
    objective.

    Args:
        one: a gradient by weights, tensors of any shapes.
        other: the other one, of the same shapes.

    Returns:
        The sum by weights.

    Raises:
        ValueError: if the shapes differ.
    """
    if [part.shape for part in one] != [part.shape for part in other]:
        raise ValueError("the two gradients are not of the same shapes")
    between = _inner(one, other)
    # A gradient of zeros, or one that is not finite, opposes nothing.
    if not between < 0:
        return [a + b for a, b in zip(one, other, strict=True)]
    keep_one, keep_other = 1 - between / _inner(one, one), 1 - between / _inner(other, other)
    # In float64: a factor of a very small gradient can exceed float32's range, while its product does not.
    return [(keep_one * a.double() + keep_other * b.double()).to(a) for a, b in zip(one, other, strict=True)]


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Over all weights, in float64: a sum of very many small products."""
    nothing = torch.zeros((), dtype=torch.float64)
    return sum(((a.double() * b.double()).sum().cpu() for a, b in zip(one, other, strict=True)), start=nothing)
