"""Weights of the two roles that follow from what training has gained so far, so that nobody has to search for them.

A gain is a role's relative change from the base model, ``(mean - base) / |base|``, on the same pairs and initial
noise. All tensors are (2,), one number per role in a fixed order.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Control(NamedTuple):
    """State of :func:`dual_ascent`, (2,) each."""

    violation: Tensor
    """Smoothed violation of each constraint at the last iteration."""
    integral: Tensor
    """Sum of violations, never below 0."""


def dual_ascent(
    violation: Tensor, state: Control, gains: tuple[float, float, float], smoothing: float
) -> tuple[Tensor, Control]:
    """PID-Lagrangian (arXiv 2007.03964, algorithm 2): multipliers of constraints from their violations.

    ``lambda = max(0, K_P * e + I + K_D * max(0, e - e_last))``, ``I = max(0, I_last + K_I * e)``. With K_P and K_D 0
    it is plain dual ascent; they damp the oscillation that plain ascent has.

    Args:
        violation: (2,) bound less gain, above 0 where a constraint is violated.
        state: that of the last iteration.
        gains: K_P, K_I and K_D, at least 0.
        smoothing: share of the last violation in the smoothed one, 0 to below 1.

    Returns:
        Multipliers (2,), at least 0, and the new state.
    """
    proportional, integrating, derivative = gains
    smooth = smoothing * state.violation + (1 - smoothing) * violation
    integral = (state.integral + integrating * smooth).clamp(min=0)
    rising = (smooth - state.violation).clamp(min=0)
    multipliers = (proportional * smooth + integral + derivative * rising).clamp(min=0)
    return multipliers, Control(smooth, integral)


def lagrangian_weights(multipliers: Tensor, constrained: Tensor) -> Tensor:
    """Role weights of the Lagrangian, adding up to 1: 1 for a free role, the multiplier for a constrained one.

    Dividing by their sum keeps the size of the updates, as in arXiv 2007.03964. Where both roles are constrained,
    there is no free one, and the weight of each is 1 more than its multiplier.

    Args:
        multipliers: (2,) from :func:`dual_ascent`.
        constrained: (2,) bool.

    Returns:
        (2,).
    """
    free = torch.ones_like(multipliers) if bool(constrained.all()) else (~constrained).to(multipliers)
    weights = free + multipliers * constrained
    return weights / weights.sum()


def hypervolume_weights(gains: Tensor, spreads: Tensor, least: float = 0.1) -> Tensor:
    """Role weights along the gradient of the area ``gain_1 * gain_2`` over the base, adding up to 1.

    The gradient of the hypervolume weights each role by the other's gain (of more objectives in arXiv 1901.08680), so
    the role that has gained less gets more weight. Advantages are rewards over their standard deviation in a group;
    ``spreads`` turns them back into relative gains.

    Args:
        gains: (2,), each over the base.
        spreads: (2,) standard deviations in a group over the base's absolute mean.
        least: gain that every role is taken to have at least: a few images do not tell smaller ones from noise, and
            training starts with both.

    Returns:
        (2,); equal weights where the spreads are zero.
    """
    weights = gains.clamp(min=least).flip(0) * spreads
    total = weights.sum()
    return weights / total if bool(total > 0) else torch.full_like(weights, 0.5)
