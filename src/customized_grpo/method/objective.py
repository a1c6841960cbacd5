"""The clipped policy-gradient objective (PPO, arXiv 1707.06347, equation 7; GRPO)."""

from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """Result of :func:`clipped_surrogate`, each (N, ...) like its inputs."""

    loss: Tensor
    """Per item; the mean over samples and trained steps is what is minimised."""
    ratio: Tensor
    """New over old density."""
    clipped: Tensor
    """Bool: the clipped branch was taken, so that the item has no gradient."""


def clipped_surrogate(
    log_density_new: Tensor, log_density_old: Tensor, advantages: Tensor, clip_range: float
) -> Surrogate:
    """``max(-A*ratio, -A*clip(ratio, 1-eps, 1+eps))`` with ``ratio = exp(new - old)``.

    ``clipped`` is asymmetric as the objective is: a ratio above 1+eps is clipped for A > 0 and one
    below 1-eps for A < 0; an item with A = 0 never is.

    Args:
        log_density_new: log-density under the policy being trained, with its graph.
        log_density_old: log-density at the draw, the same shape; taken as a constant.
        advantages: the same shape; taken as constants.
        clip_range: eps > 0. The log-densities being means over latent elements, ratios lie very
            near 1, and so does the recipe's 1e-4.

    Returns:
        Loss, ratio and clipped, in float32.

    Raises:
        ValueError: if the shapes differ or ``clip_range`` is not positive.
    """
    if not log_density_new.shape == log_density_old.shape == advantages.shape:
        raise ValueError(
            f"shapes differ: new {tuple(log_density_new.shape)}, "
            f"old {tuple(log_density_old.shape)}, advantages {tuple(advantages.shape)}"
        )
    if not clip_range > 0:
        raise ValueError(f"clip_range must be positive, not {clip_range}")
    advantage = advantages.detach().float()
    ratio = torch.exp(log_density_new.float() - log_density_old.detach().float())
    unclipped_loss = -advantage * ratio
    clipped_loss = -advantage * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(unclipped_loss, clipped_loss)
    return Surrogate(loss, ratio, clipped_loss > unclipped_loss)
