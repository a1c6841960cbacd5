"""Forward-process objectives: trained on noised copies of sampled images, without trajectories or densities.

An image ``x0`` that the policy sampled is noised to ``x = (1 - sigma) * x0 + sigma * noise``; the policy predicts the
velocity, whose target is ``noise - x0``, as in supervised flow matching (arXiv 2210.02747, equation 23). The advantage
decides how far, and in which direction, the policy follows that target.

An objective is one function of these keyword arguments, of which it names those that it needs:

- ``velocity`` (N, ...): prediction of the policy, with its graph.
- ``target`` (N, ...): ``noise - x0``.
- ``velocity_old`` (N, ...): prediction of the moving average of the policy, a constant.
- ``sigma`` (N,): noise levels in 0..1.
- ``advantages`` (N,): within -1..1, advantages over the bound that they are clipped to.

It returns the loss of each item, (N,), of which the mean is minimised. :data:`OBJECTIVES` holds those known by name.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Scale = Literal["none", "level", "error", "x0"]
"""How :func:`matching_error` is normalised."""

_CLEANEST = 0.2  # noise level below which "level" gives errors no more weight
_SMALLEST = 1e-5  # least size of an error that is divided by, as in the release of DiffusionNFT


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``(1 - sigma) * clean + sigma * noise`` for clean latents and noise (N, ...) and noise levels (N,)."""
    level = _like(sigma, clean)
    return (1 - level) * clean + level * noise


def matching_error(velocity: Tensor, target: Tensor, sigma: Tensor, scale: Scale = "none") -> Tensor:
    """Squared error of a velocity, mean over latent elements.

    Args:
        velocity: (N, ...), with its graph.
        target: (N, ...), ``noise - x0``.
        sigma: (N,) noise levels.
        scale: "none": ``mean(e^2)`` with ``e = velocity - target``, the loss of supervised flow matching. "level":
            ``mean(e^2) / max(sigma, 0.2)^2``, so that gradients of all levels are of a like size (docs/method.md).
            "error": ``mean(e^2) / mean|e|``, the divisor taken as a constant, so that the gradient does not depend on
            the error's size. "x0": the same for the error ``sigma * e`` of the clean latents ``x - sigma * velocity``
            (DiffusionNFT, arXiv 2509.16117, section on adaptive loss weighting).

    Returns:
        (N,) float32, or float64 for float64 velocities.

    Raises:
        ValueError: if shapes differ or the scale is unknown.
    """
    if velocity.shape != target.shape or sigma.shape != velocity.shape[:1]:
        shapes = tuple(velocity.shape), tuple(target.shape), tuple(sigma.shape)
        raise ValueError(f"need velocity and target (N, ...) and sigma (N,), not {shapes}")
    error = _as_float(velocity) - _as_float(target)
    if scale == "none":
        return error.square().flatten(1).mean(1)
    if scale == "level":
        return error.square().flatten(1).mean(1) / sigma.to(error).clamp(min=_CLEANEST).square()
    if scale not in ("error", "x0"):
        raise ValueError(f"scale must be none, level, error or x0, not {scale!r}")
    if scale == "x0":
        error = _like(sigma, error) * error
    size = error.detach().abs().flatten(1).mean(1).clamp(min=_SMALLEST)
    return error.square().flatten(1).mean(1) / size


def awm_loss(*, velocity: Tensor, target: Tensor, sigma: Tensor, advantages: Tensor, scale: Scale = "none") -> Tensor:
    """Advantage Weighted Matching (arXiv 2509.25050): ``A * matching_error``.

    The policy-gradient loss ``-A * log p`` with the flow-matching loss, pretraining's bound of ``-log p(x0)``, in
    place of a step's log-density. With all advantages 1 it is supervised flow matching. For A < 0 it has no lower
    bound, so it needs a trust region: advantages clipped at 1, one update per iteration, and a pull to a moving average
    (:func:`velocity_distance`).

    Args:
        velocity: (N, ...), with its graph.
        target: (N, ...).
        sigma: (N,).
        advantages: (N,); taken as constants.
        scale: as for :func:`matching_error`; the paper's weight of noise levels is 1.

    Returns:
        (N,).
    """
    return advantages.detach() * matching_error(velocity, target, sigma, scale)


def nft_loss(
    *,
    velocity: Tensor,
    target: Tensor,
    velocity_old: Tensor,
    sigma: Tensor,
    advantages: Tensor,
    beta: float = 1.0,
    scale: Scale = "x0",
) -> Tensor:
    """DiffusionNFT (arXiv 2509.16117, algorithm 1): ``(r * L(v+) + (1 - r) * L(v-)) / beta``.

    ``v+ = (1 - beta) * v_old + beta * v`` is matched by good images and ``v- = (1 + beta) * v_old - beta * v`` by bad
    ones; ``r = (1 + A) / 2`` is the probability that an image is good. Both terms are bounded below. With all
    advantages 1, beta 1 and scale "none" it is supervised flow matching.

    Args:
        velocity: (N, ...), with its graph.
        target: (N, ...).
        velocity_old: (N, ...) of the old policy; taken as a constant.
        sigma: (N,).
        advantages: (N,); clipped to -1..1 and taken as constants.
        beta: strength of the guidance, above 0; a lower one moves the policy further.
        scale: as for :func:`matching_error`; "x0" is published.

    Returns:
        (N,).

    Raises:
        ValueError: if beta is not positive.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}")
    good = (1 + advantages.detach().clamp(-1, 1)) / 2
    old = velocity_old.detach()
    toward = matching_error((1 - beta) * old + beta * velocity, target, sigma, scale)
    away = matching_error((1 + beta) * old - beta * velocity, target, sigma, scale)
    return (good * toward + (1 - good) * away) / beta


def velocity_distance(velocity: Tensor, other: Tensor) -> Tensor:
    """``mean((velocity - other)^2)`` over latent elements, (N,): a trust region around ``other``, a constant.

    The KL divergence of two flow policies is a weighted integral of it over noise levels (arXiv 2509.25050, where its
    weight is 1 too).
    """
    return (_as_float(velocity) - _as_float(other.detach())).square().flatten(1).mean(1)


Objective = Callable[..., Tensor]
"""An objective as the module describes it."""

OBJECTIVES: dict[str, Objective] = {"awm": awm_loss, "nft": nft_loss}
"""Configuration name -> objective."""


def register_objective(name: str) -> Callable[[Objective], Objective]:
    """Register a function as an objective, as a decorator; ``method.objective`` may then be that name.

    A recipe that is run by ``cgrpo`` names the function by its path instead: ``package.module:function`` or
    ``file.py:function``.

    Raises:
        ValueError: if the name is taken by another function, "grpo", or has a colon.
    """

    def register(objective: Objective) -> Objective:
        known: Any = OBJECTIVES.get(name)
        # The same function may be defined again, as in a notebook.
        if ":" in name or name == "grpo" or (known is not None and known.__qualname__ != _name(objective)):
            raise ValueError(f"register_objective: {name!r} is taken or has a colon; choose another name")
        OBJECTIVES[name] = objective
        return objective

    return register


def _name(objective: Objective) -> str:
    return getattr(objective, "__qualname__", "")


def _as_float(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _like(sigma: Tensor, values: Tensor) -> Tensor:
    """Return ``sigma`` (N,) as (N, 1, ...) to multiply ``values`` (N, ...) by."""
    return sigma.view(-1, *[1] * (values.ndim - 1))
