"""The clipped policy-gradient objective (PPO, arXiv 1707.06347, equation 7; GRPO), and its ratio's forms."""

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
    log_ratio: Tensor, advantages: Tensor, clip_range: float, clip_range_high: float | None = None
) -> Surrogate:
    """``max(-A*ratio, -A*clip(ratio, 1-eps, 1+eps_high))`` with ``ratio = exp(log_ratio)``.

    ``clipped`` is asymmetric as the objective is: a ratio above 1+eps_high is clipped for A > 0 and
    one below 1-eps for A < 0; an item with A = 0 never is.

    Args:
        log_ratio: log-density under the policy being trained, with its graph, less that at
            sampling, a constant; or :func:`guarded_log_ratio` of it.
        advantages: the same shape; taken as constants.
        clip_range: eps > 0. The log-densities being means over latent elements, ratios lie very
            near 1, and so does the recipe's 1e-4.
        clip_range_high: eps_high > 0, eps where none is given. A wider one lets unlikely good
            samples gain more (DAPO's clip-higher, arXiv 2503.14476, equation 10).

    Returns:
        Loss, ratio and clipped, in float32.

    Raises:
        ValueError: if the shapes differ or a range is not positive.
    """
    if log_ratio.shape != advantages.shape:
        raise ValueError(f"shapes differ: log-ratio {tuple(log_ratio.shape)}, advantages {tuple(advantages.shape)}")
    high = clip_range if clip_range_high is None else clip_range_high
    if not clip_range > 0 or not high > 0:
        raise ValueError(f"clip_range and clip_range_high must be positive, not {clip_range} and {high}")
    advantage = advantages.detach().float()
    ratio = torch.exp(log_ratio.float())
    unclipped_loss = -advantage * ratio
    clipped_loss = -advantage * ratio.clamp(1 - clip_range, 1 + high)
    loss = torch.maximum(unclipped_loss, clipped_loss)
    return Surrogate(loss, ratio, clipped_loss > unclipped_loss)


def guarded_log_ratio(log_ratio: Tensor, mean: Tensor, mean_old: Tensor, std: Tensor) -> Tensor:
    """RatioNorm of GRPO-Guard (arXiv 2510.22319, equation 8): ``std*(log_ratio + |mean - mean_old|^2/(2 std^2))``.

    For a Gaussian step the log-ratio is ``(mean - mean_old)*noise/std`` less that square: its average is
    below 0 and its spread depends on the step, so that one clip range fits no two steps and spares
    good samples. What is left here is the average over elements of ``(mean - mean_old)*noise``: of
    mean zero under the old policy, and at every step in the units of the latents.

    Args:
        log_ratio: (N,), a mean over latent elements.
        mean: (N, ...) of the step under the policy being trained, with its graph.
        mean_old: (N, ...) at sampling.
        std: (N,) of the step.

    Returns:
        (N,) float32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    count = (len(mean),)
    if not (log_ratio.shape == std.shape == count and mean.shape == mean_old.shape):
        raise ValueError(
            f"need log-ratio and std (N,) and means (N, ...), not {tuple(log_ratio.shape)}, "
            f"{tuple(std.shape)}, {tuple(mean.shape)} and {tuple(mean_old.shape)}"
        )
    shift = (mean.float() - mean_old.detach().float()).square().flatten(1).mean(1)
    return std * log_ratio.float() + shift / (2 * std)


def guarded_loss(loss: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """GRPO-Guard's second part: ``loss / (sigma - sigma_next)``, so that long steps count for no more than short ones.

    A step's mean moves by the velocity times the step's length, and so does the gradient of its
    :func:`guarded_log_ratio` (arXiv 2510.22319).

    Args:
        loss: (N,) or (N, ...), of one step each.
        sigma: (N,) noise levels before the steps.
        sigma_next: (N,) after them, each lower.

    Returns:
        As ``loss``.
    """
    length = sigma - sigma_next
    return loss / length.view(-1, *[1] * (loss.ndim - 1))
