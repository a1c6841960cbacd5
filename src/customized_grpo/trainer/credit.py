"""From a group's scores to the advantage of each trained step: roles, SARS, TDW."""

from __future__ import annotations

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
    quadrant_shares,
    role_advantages,
    step_weights,
)
from customized_grpo.method import shaped_advantages as _shaped_advantages
from customized_grpo.protocols import ROLES, Role
from customized_grpo.rewards.terms import RewardTerm
from customized_grpo.utils.noise import generator


@dataclass(frozen=True)
class Credit:
    """Both roles' advantages and the shaping term of the images of an iteration, each (groups, G).

    `valid` says which images count: `scored`, they have all their scores, and no guard has vetoed them. The others
    have dropped out of their groups, and all here is zero for them. `of_sum` (groups, G), where there is one, stands
    in for the roles' advantages and the bonus: it is the advantage of the rewards' sum.
    """

    advantages: dict[Role, Tensor]
    bonus: Tensor
    valid: Tensor
    scored: Tensor
    of_sum: Tensor | None = None

    def of(self, images: Tensor) -> Credit:
        """That of the images of these numbers, each in the shape of `images`."""

        def pick(values: Tensor) -> Tensor:
            return values.flatten()[images]

        advantages = {role: pick(values) for role, values in self.advantages.items()}
        of_sum = None if self.of_sum is None else pick(self.of_sum)
        return Credit(advantages, pick(self.bonus), pick(self.valid), pick(self.scored), of_sum)

    def at(self, method: MethodConfig, total_steps: int, weighed_at: Tensor) -> Tensor:
        """The advantage of each trained step, of the shape of `weighed_at`.

        `weighed_at` (groups * G, S), from `steps_to_weigh_at`, holds the denoising step that each takes its weights of.
        """
        if self.of_sum is not None:
            bound = method.advantage_clip
            return self.of_sum.flatten()[:, None].expand(weighed_at.shape).clamp(-bound, bound)
        return self._shaped(method, total_steps, weighed_at)

    def objectives_at(self, method: MethodConfig, total_steps: int, weighed_at: Tensor) -> Tensor:
        """What the policy learns from: `at`; of two objectives, its parts, of `weighed_at`'s shape and 2.

        Those of the identity and of the prompt, each with half of the bonus. They add up to `at` but where
        `method.advantage_clip` bounds it: here it bounds each part.
        """
        if objectives_of(method) == 1:
            return self.at(method, total_steps, weighed_at)
        nothing = torch.zeros_like(self.bonus)
        parts = [
            replace(self, advantages={**self.advantages, without: nothing}, bonus=self.bonus / 2)
            for without in reversed(ROLES)
        ]
        return torch.stack([part._shaped(method, total_steps, weighed_at) for part in parts], -1)

    def _shaped(self, method: MethodConfig, total_steps: int, weighed_at: Tensor) -> Tensor:
        w_prompt, w_identity = weights_of(method, total_steps)
        return _shaped_advantages(
            a_prompt=self.advantages["prompt"].flatten(),
            a_identity=self.advantages["identity"].flatten(),
            bonus=self.bonus.flatten(),
            w_prompt=w_prompt,
            w_identity=w_identity,
            steps=weighed_at,
            clip=method.advantage_clip,
        )


def objectives_of(method: MethodConfig) -> int:
    """How many gradients an update is made of: one of the whole advantage, or each role's own."""
    return 1 if method.surgery == "none" else len(ROLES)


def method_at(method: MethodConfig, iteration: int, iterations: int) -> MethodConfig:
    """The method as it is in that iteration, counted from 0: `gamma` on its way to `gamma_last`."""
    gamma = annealed(method.gamma, method.gamma_last, iteration / max(iterations - 1, 1))
    return method.model_copy(update={"gamma": gamma})


def weights_of(method: MethodConfig, total_steps: int) -> tuple[Tensor, Tensor]:
    """The configured weights of the prompt and of the identity at each of the denoising steps, (T,) each."""
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
    """Where the weights of the trained steps (images, S) are read: at the steps themselves.

    For "tdw-shuffled" alone, as in the authors' released script: at the steps' positions 0 .. S - 1 in a shuffled
    order, drawn from (seed, iteration, image), whatever the batch.
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
    scores: Mapping[str, Tensor],
    rewards: Sequence[RewardConfig | RewardTerm],
    method: MethodConfig,
) -> tuple[Credit, dict[str, float]]:
    """Advantages of scores (name -> (groups, G), NaN where missing), and what the log says of them.

    An image that lacks the score of a reward of weight drops out: its group's advantages are those of the others. So
    does one that a guard scores above its limit; guards have no other part in this.
    The log always tells of the roles' own advantages, also where `method.normalise` is "sum" and the policy learns
    from the sum's alone. That one is divided by the sum's own standard deviation: no role's `std_floor` applies.
    """
    advantages: dict[Role, Tensor] = {}
    totals: dict[Role, Tensor] = {}
    counted = torch.stack([scores[reward_name(r)] for r in rewards if r.weight > 0])
    scored = counted.isfinite().all(0)
    vetoed = vetoes(scores, rewards)
    valid = scored if vetoed is None else scored & ~vetoed
    pool: Callable[[Tensor], Tensor] | None = (lambda summed: summed) if method.spread == "batch" else None
    record = {"share/missing": float((~scored).float().mean())}
    if vetoed is not None:
        record["share/vetoed"] = float(vetoed.float().mean())
    for role in ROLES:
        mine = {reward_name(r): r.weight for r in rewards if r.role == role and r.weight > 0}
        role_scores = {name: scores[name].where(valid, 0) for name in mine}
        floor = method.std_floor.get(role, 0.0)
        advantages[role] = role_advantages(
            role_scores, mine, floor=floor, combine=method.combine, valid=valid, pool=pool
        )
        total = totals[role] = torch.stack([mine[name] * role_scores[name] for name in mine]).sum(0)
        record[f"{role}/mean"] = _mean(total, valid)
        record[f"{role}/std"] = float(_spread(total, valid).mean())
        record[f"share/no_signal_{role}"] = float(degenerate_groups(total, floor=floor, valid=valid).float().mean())
    for name, values in scores.items():
        record[f"reward/{name}/mean"] = _mean(values, values.isfinite())
    shares = quadrant_shares(advantages["identity"][valid], advantages["prompt"][valid])
    record |= {f"share/{name}": value for name, value in shares.items()}
    bonus = SHAPINGS[method.shaping](advantages["identity"], advantages["prompt"], method.gamma)
    of_sum = None
    if method.normalise == "sum":
        total = method.identity_weight * totals["identity"] + method.prompt_weight * totals["prompt"]
        of_sum = group_advantages(total, valid=valid, pool=pool)
    return Credit(advantages, bonus, valid, scored, of_sum), record


def vetoes(scores: Mapping[str, Tensor], rewards: Sequence[RewardConfig | RewardTerm]) -> Tensor | None:
    """Which images some guard of weight scores above its limit; None where there is no such guard."""
    limits = {reward_name(r): r.limit for r in rewards if r.limit is not None and r.weight > 0}
    return torch.stack([scores[name] > limit for name, limit in limits.items()]).any(0) if limits else None


def _mean(values: Tensor, valid: Tensor) -> float:
    """Of the valid values; 0 where there are none."""
    return float(values[valid].mean()) if bool(valid.any()) else 0.0


def _spread(values: Tensor, valid: Tensor) -> Tensor:
    """Unbiased standard deviation (groups,) of each group's valid values (groups, G); 0 below two of them."""
    stds = [
        row[kept].std() if int(kept.sum()) > 1 else row.new_zeros(()) for row, kept in zip(values, valid, strict=True)
    ]
    return torch.stack(stds)
