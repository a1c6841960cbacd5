"""Advantages of trained steps from scores: roles, SARS, TDW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from customized_grpo.config import MethodConfig, RewardConfig
from customized_grpo.method import (
    SHAPINGS,
    annealed,
    degenerate_groups,
    group_advantages,
    max_variance_subset,
    quadrant_shares,
    role_advantages,
    shaped_advantages,
    step_weights,
)
from customized_grpo.protocols import ROLES, Role
from customized_grpo.rewards.errors import RewardError
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.utils.noise import generator


@dataclass(frozen=True)
class Credit:
    """Advantages by role and shaping term (`bonus`) of an iteration's images, (groups, G); 0 for those not counted.

    `scored` marks images with all scores, `valid` those of them that no guard vetoes. `of_sum`, with `method.normalise:
    sum`, are the advantages of the rewards' sum, used in place of the others.
    """

    advantages: dict[Role, Tensor]
    bonus: Tensor
    valid: Tensor
    scored: Tensor
    of_sum: Tensor | None = None

    def of(self, images: Tensor) -> Credit:
        """Select images by number; all tensors get the shape of `images`."""

        def pick(values: Tensor) -> Tensor:
            return values.flatten()[images]

        advantages = {role: pick(values) for role, values in self.advantages.items()}
        of_sum = None if self.of_sum is None else pick(self.of_sum)
        return Credit(advantages, pick(self.bonus), pick(self.valid), pick(self.scored), of_sum)

    def at(self, method: MethodConfig, total_steps: int, weights_at: Tensor) -> Tensor:
        """Return the advantage of each trained step, (images, S), by the TDW weights of the steps `weights_at`."""
        if self.of_sum is not None:
            bound = method.advantage_clip
            return self.of_sum.flatten()[:, None].expand(weights_at.shape).clamp(-bound, bound)
        w_prompt, w_identity = weights_of(method, total_steps)
        return shaped_advantages(
            a_prompt=self.advantages["prompt"].flatten(),
            a_identity=self.advantages["identity"].flatten(),
            bonus=self.bonus.flatten(),
            w_prompt=w_prompt,
            w_identity=w_identity,
            steps=weights_at,
            clip=method.advantage_clip,
        )

    def chosen(self, method: MethodConfig, total_steps: int, fraction: float) -> Tensor:
        """Return the images to train, (groups, G): of each group the fraction that says most, among those that count.

        They have the largest variance of the advantage, averaged over all denoising steps.
        """
        if fraction == 1:
            return self.valid
        every = torch.arange(total_steps).expand(self.valid.numel(), -1)
        mean = self.at(method, total_steps, every).mean(1).view_as(self.bonus)
        return max_variance_subset(mean, math.ceil(fraction * mean.shape[-1]), valid=self.valid)

    def objectives_at(self, method: MethodConfig, total_steps: int, weights_at: Tensor) -> Tensor:
        """Return `at`, or with gradient surgery its two parts (images, S, 2): identity and prompt, half a bonus each.

        The parts sum to `at`, except where `method.advantage_clip` bounds them: it bounds each part.
        """
        if objectives_of(method) == 1:
            return self.at(method, total_steps, weights_at)
        zero = torch.zeros_like(self.bonus)
        parts = [
            replace(self, advantages={**self.advantages, other: zero}, bonus=self.bonus / 2, of_sum=None)
            for other in reversed(ROLES)
        ]
        return torch.stack([part.at(method, total_steps, weights_at) for part in parts], -1)


def objectives_of(method: MethodConfig) -> int:
    """Return the number of gradients of an update: 1, or one per role with gradient surgery."""
    return 1 if method.surgery == "none" else len(ROLES)


def method_at(method: MethodConfig, iteration: int, iterations: int) -> MethodConfig:
    """Return the settings for an iteration, counted from 0, with `gamma` annealed towards `gamma_last`."""
    gamma = annealed(method.gamma, method.gamma_last, iteration / max(iterations - 1, 1))
    return method.model_copy(update={"gamma": gamma})


def weights_of(method: MethodConfig, total_steps: int) -> tuple[Tensor, Tensor]:
    """Return the weights of prompt and identity at each denoising step, (T,) each."""
    return step_weights(
        method.weighting,
        total_steps,
        prompt_weight=method.prompt_weight,
        identity_weight=method.identity_weight,
        prompt_table=method.prompt_table,
        identity_table=method.identity_table,
    )


def steps_to_weigh_at(
    weighting: str, trained_steps: Tensor, seed: int, iteration: int, images: Sequence[tuple[str, int]]
) -> Tensor:
    """Return the steps whose weights the trained steps (images, S) take: the steps themselves.

    Only "tdw-shuffled" takes those of the positions 0 .. S - 1 in an order that is random per (seed, iteration, image).
    """
    if weighting != "tdw-shuffled":
        return trained_steps
    count = trained_steps.shape[1]
    return torch.stack(
        [torch.randperm(count, generator=generator(seed, "shuffled positions", iteration, *image)) for image in images]
    )


def reward_name(reward: RewardConfig | RewardTerm) -> str:
    """Return a reward's name in scores, logs and figures."""
    return reward.name if isinstance(reward, RewardTerm) else reward.name or reward.kind


def assign_credit(
    scores: Mapping[str, Tensor], rewards: Sequence[RewardConfig | RewardTerm], method: MethodConfig
) -> tuple[Credit, dict[str, float]]:
    """Compute advantages from scores (groups, G) by reward name, NaN where missing, and their metrics.

    An image that lacks a score of a weighted reward, or that a guard scores above its limit, drops out of its group.
    Metrics describe the roles' advantages also where `method.normalise` is "sum". RewardError if the weighted scores or
    their advantages exceed the range of numbers.
    """
    scored = torch.stack([scores[reward_name(r)] for r in rewards if r.weight > 0]).isfinite().all(0)
    limits = {reward_name(r): r.limit for r in rewards if r.limit is not None and r.weight > 0}
    vetoed = torch.stack([scores[name] > limit for name, limit in limits.items()]).any(0) if limits else None
    valid = scored if vetoed is None else scored & ~vetoed
    pool: Callable[[Tensor], Tensor] | None = (lambda summed: summed) if method.spread == "batch" else None
    metrics = {"share/missing": float((~scored).float().mean())}
    if vetoed is not None:
        metrics["share/vetoed"] = float(vetoed.float().mean())
    advantages: dict[Role, Tensor] = {}
    totals: dict[Role, Tensor] = {}
    for role in ROLES:
        weights = {reward_name(r): r.weight for r in rewards if r.role == role and r.weight > 0}
        own = {name: scores[name].where(valid, 0) for name in weights}
        total = totals[role] = torch.stack([weights[name] * own[name] for name in weights]).sum(0)
        floor = method.std_floor.get(role, 0.0)
        if not bool((total - total.mean(-1, keepdim=True)).square().sum(-1).isfinite().all()):
            raise _too_large("weighted scores", role, own, weights)
        advantages[role] = role_advantages(own, weights, floor=floor, combine=method.combine, valid=valid, pool=pool)
        if not bool(advantages[role].isfinite().all()):
            raise _too_large("advantages", role, own, weights)
        metrics[f"{role}/mean"] = _mean(total, valid)
        metrics[f"{role}/std"] = float(_stds(total, valid).mean())
        metrics[f"share/no_signal_{role}"] = float(degenerate_groups(total, floor=floor, valid=valid).float().mean())
    metrics |= {f"reward/{name}/mean": _mean(values, values.isfinite()) for name, values in scores.items()}
    shares = quadrant_shares(advantages["identity"][valid], advantages["prompt"][valid])
    metrics |= {f"share/{name}": value for name, value in shares.items()}
    bonus = SHAPINGS[method.shaping](advantages["identity"], advantages["prompt"], method.gamma)
    of_sum = None
    if method.normalise == "sum":
        total = method.identity_weight * totals["identity"] + method.prompt_weight * totals["prompt"]
        if not bool(total.isfinite().all()):
            raise RewardError("the sum of both roles is not finite; lower method.identity_weight or prompt_weight")
        of_sum = group_advantages(total, valid=valid, pool=pool)
    return Credit(advantages, bonus, valid, scored, of_sum), metrics


def _too_large(what: str, role: Role, scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> RewardError:
    """Return the error for numbers of a role that exceed the range of float32."""
    each = (f"{name!r}: weight {weights[name]:g}, scores to {scores[name].abs().max():.3g}" for name in scores)
    return RewardError(
        f"the {what} of role {role}, or their squares, are not finite ({'; '.join(each)}); lower rewards.N.weight, or "
        "return smaller scores"
    )


def _mean(values: Tensor, valid: Tensor) -> float:
    """Return the mean of the valid values; 0 if there are none."""
    return float(values[valid].mean()) if bool(valid.any()) else 0.0


def _stds(values: Tensor, valid: Tensor) -> Tensor:
    """Return the unbiased standard deviation (groups,) of each group's valid values; 0 for fewer than two."""
    rows = (row[counts] for row, counts in zip(values, valid, strict=True))
    return torch.stack([row.std() if len(row) > 1 else values.new_zeros(()) for row in rows])
