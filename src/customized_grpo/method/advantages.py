"""Group-relative advantages (GRPO, arXiv 2402.03300, section 4.1.2; one per reward here).

A *group* is the G images sampled for one (reference, prompt); it is always the last dimension.
A *role* is "identity" or "prompt"; each may be scored by several rewards.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

STD_EPSILON = 1e-8
"""Added to a group's standard deviation, as in the paper."""


Pool = Callable[[Tensor], Tensor]
"""Sums a tensor over whatever shares a batch's standard deviation: the identity, or a sum over processes."""


def group_advantages(
    rewards: Tensor, *, floor: float = 0.0, valid: Tensor | None = None, pool: Pool | None = None
) -> Tensor:
    """``(r - mean) / (std + 1e-8)`` within each group, std unbiased.

    A group whose valid rewards are all equal, or with fewer than two of them, gets exactly zero,
    never NaN and never the rounding noise of its own mean.

    Args:
        rewards: (..., G), any real dtype; low precision and integers are computed in float32.
        floor: the least std, in the reward's unit, that a group is divided by: below it the
            advantages shrink in proportion, so that the noise of a saturated reward does not
            become full-size advantages. 0 is the paper's recipe.
        valid: (..., G) bool, False for images that could not be scored. They count in neither the
            mean nor the std, and their advantage is zero.
        pool: where given, the deviations from their groups' means are all divided by one std, that
            of the deviations of all groups that it sums over (REINFORCE++-baseline, arXiv 2501.03262):
            a group then counts by how far its images differ.

    Returns:
        (..., G), float32, or float64 for float64 rewards.

    Raises:
        ValueError: if a valid reward is not finite, the shapes differ, or the floor is negative.
    """
    values, mask = _checked(rewards, floor, valid)
    centred, std = _centred_and_std(values, mask)
    if pool is not None:
        squares, freedoms = pool(torch.stack([centred.square().sum(), (mask.sum(-1) - 1).clamp(min=0).sum()]))
        std = (squares / freedoms.clamp(min=1)).sqrt()
    scale = std.clamp(min=floor) + STD_EPSILON
    # A std of zero for unequal rewards: their squares are below the least number of the type.
    silent = _all_equal(values, mask) | (std == 0) | ~mask
    return torch.where(silent, torch.zeros_like(centred), centred / scale)


def degenerate_groups(rewards: Tensor, *, floor: float = 0.0, valid: Tensor | None = None) -> Tensor:
    """Which groups lack a full signal: all rewards equal, fewer than two images, or std <= floor.

    Takes and raises what :func:`group_advantages` does.

    Returns:
        (...) bool. With a floor of 0, True exactly where :func:`group_advantages` returns zeros
        for the whole group; else also where the floor has shrunk its advantages.
    """
    values, mask = _checked(rewards, floor, valid)
    _, std = _centred_and_std(values, mask)
    return (_all_equal(values, mask) | (std <= floor)).squeeze(-1)


def role_advantages(
    scores: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    floor: float = 0.0,
    combine: Literal["rewards", "advantages"] = "rewards",
    valid: Tensor | None = None,
    pool: Pool | None = None,
) -> Tensor:
    """One role's advantage from its rewards.

    "rewards" normalises the weighted sum of the rewards: weights are in the rewards' own units,
    and only their ratio matters. "advantages" sums the separately normalised rewards: weights are
    free of units, and the sum is *not* normalised again, so weights that add up to 1 keep its
    scale near that of a single reward.

    Args:
        scores: reward name -> (..., G).
        weights: reward name -> weight, for exactly the same names.
        floor: as in :func:`group_advantages`; of the sum for "rewards", of each reward for
            "advantages".
        combine: "rewards" or "advantages".
        valid: (..., G) bool, as in :func:`group_advantages`, for all rewards of the role.
        pool: as in :func:`group_advantages`.

    Returns:
        (..., G).

    Raises:
        ValueError: if the names differ, there are none, or ``combine`` is unknown.
    """
    if not scores or scores.keys() != weights.keys():
        raise ValueError(f"weights for {sorted(weights)} do not match the rewards {sorted(scores)}")
    if combine == "rewards":
        total = torch.stack([weights[name] * _as_float(scores[name]) for name in scores]).sum(0)
        return group_advantages(total, floor=floor, valid=valid, pool=pool)
    if combine == "advantages":
        each = {name: group_advantages(scores[name], floor=floor, valid=valid, pool=pool) for name in scores}
        return torch.stack([weights[name] * advantages for name, advantages in each.items()]).sum(0)
    raise ValueError(f"combine must be 'rewards' or 'advantages', not {combine!r}")


def max_variance_subset(values: Tensor, count: int, *, valid: Tensor | None = None) -> Tensor:
    """The ``count`` images of each group whose values have the largest variance (PODS, arXiv 2504.13818, algorithm 2).

    They are the ``i`` lowest and the ``count - i`` highest, for the best ``i``: the images that a
    group's gradient learns most from.

    Args:
        values: (..., G), such as advantages.
        count: number of images of each group, at least 1.
        valid: (..., G) bool, as in :func:`group_advantages`; a group with no more than ``count`` valid
            images has all of them.

    Returns:
        (..., G) bool.

    Raises:
        ValueError: if ``count`` is below 1, a valid value is not finite, or the shapes differ.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    known, mask = _checked(values, 0.0, valid)
    chosen = torch.zeros_like(mask)
    for index in itertools.product(*map(range, known.shape[:-1])):
        images = mask[index].nonzero().flatten()
        order = images[known[index][images].argsort(stable=True)]
        ends = [torch.cat([order[:low], order[max(low, len(order) - count + low) :]]) for low in range(count + 1)]
        best = max(ends, key=lambda rows: float(known[index][rows].var(correction=0)) if len(rows) else 0.0)
        chosen[index][best] = True
    return chosen


def quadrant_shares(a_identity: Tensor, a_prompt: Tensor) -> dict[str, float]:
    """How often the two roles agree, over all samples given.

    Args:
        a_identity: identity advantages, any shape.
        a_prompt: prompt advantages, the same shape.

    Returns:
        "conflicted", "both_positive" and "both_negative", each in 0..1. A sample where either
        advantage is exactly zero counts in none of them, so they add up to at most 1.

    Raises:
        ValueError: if the shapes differ.
    """
    if a_identity.shape != a_prompt.shape:
        raise ValueError(f"shapes differ: {tuple(a_identity.shape)}, {tuple(a_prompt.shape)}")
    opposed = ((a_identity > 0) & (a_prompt < 0)) | ((a_identity < 0) & (a_prompt > 0))
    samples = max(a_identity.numel(), 1)
    return {
        "conflicted": int(opposed.sum()) / samples,
        "both_positive": int(((a_identity > 0) & (a_prompt > 0)).sum()) / samples,
        "both_negative": int(((a_identity < 0) & (a_prompt < 0)).sum()) / samples,
    }


def _as_float(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _checked(rewards: Tensor, floor: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rewards in at least float32 with zero where invalid, and the mask of the valid ones."""
    if not floor >= 0:
        raise ValueError(f"floor must be at least 0, not {floor}")
    if rewards.ndim == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"rewards need a last dimension of images, not {tuple(rewards.shape)}")
    mask = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid.bool()
    if mask.shape != rewards.shape:
        raise ValueError(f"valid is {tuple(mask.shape)}, rewards {tuple(rewards.shape)}")
    values = _as_float(rewards)
    values = torch.where(mask, values, torch.zeros_like(values))
    if not bool(values.isfinite().all()):
        raise ValueError("a reward is NaN or infinite; mark it with `valid` or fix the scorer")
    return values, mask


def _centred_and_std(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations (..., G), zero where masked, and the unbiased std (..., 1)."""
    count = mask.sum(-1, keepdim=True)
    mean = values.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = (values - mean) * mask
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return centred, variance.sqrt()


def _all_equal(values: Tensor, mask: Tensor) -> Tensor:
    """(..., 1) bool. Equality is asked of the rewards: their std is not zero after rounding."""
    highest = values.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    lowest = values.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    return highest <= lowest
