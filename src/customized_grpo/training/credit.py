"""From a group's scores to the advantage of each trained step: roles, SARS, TDW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.config import MethodConfig, RewardConfig
from customized_grpo.method import (
    SHAPINGS,
    degenerate_groups,
    quadrant_shares,
    role_advantages,
    step_weights,
)
from customized_grpo.method import shaped_advantages as _shaped_advantages
from customized_grpo.protocols import ROLES, Role


@dataclass(frozen=True)
class Credit:
    """Both roles' advantages and the shaping term of the images of an iteration, each (groups, G)."""

    advantages: dict[Role, Tensor]
    bonus: Tensor

    def at(self, method: MethodConfig, total_steps: int, trained_steps: Tensor) -> Tensor:
        """The advantage of each trained step. `trained_steps` (groups * G, S) holds true denoising steps."""
        w_prompt, w_identity = step_weights(
            method.weighting,
            total_steps,
            prompt_weight=method.prompt_weight,
            identity_weight=method.identity_weight,
        )
        return _shaped_advantages(
            a_prompt=self.advantages["prompt"].flatten(),
            a_identity=self.advantages["identity"].flatten(),
            bonus=self.bonus.flatten(),
            w_prompt=w_prompt,
            w_identity=w_identity,
            steps=trained_steps,
            clip=method.advantage_clip,
        )


def reward_name(reward: RewardConfig) -> str:
    return reward.name or reward.kind


def assign_credit(
    scores: Mapping[str, Tensor], rewards: Sequence[RewardConfig], method: MethodConfig
) -> tuple[Credit, dict[str, float]]:
    """Advantages of scores (name -> (groups, G)), and what the log says of them."""
    advantages: dict[Role, Tensor] = {}
    record: dict[str, float] = {}
    for role in ROLES:
        mine = {reward_name(r): r.weight for r in rewards if r.role == role and r.weight > 0}
        role_scores = {name: scores[name] for name in mine}
        floor = method.std_floor.get(role, 0.0)
        advantages[role] = role_advantages(role_scores, mine, floor=floor, combine=method.combine)
        total = torch.stack([mine[name] * role_scores[name] for name in mine]).sum(0)
        record[f"{role}/mean"] = float(total.mean())
        record[f"{role}/std"] = float(total.std(-1).mean()) if total.shape[-1] > 1 else 0.0
        record[f"share/no_signal_{role}"] = float(degenerate_groups(total, floor=floor).float().mean())
    for name, values in scores.items():
        record[f"reward/{name}/mean"] = float(values.mean())
    shares = quadrant_shares(advantages["identity"], advantages["prompt"])
    record |= {f"share/{name}": value for name, value in shares.items()}
    bonus = SHAPINGS[method.shaping](advantages["identity"], advantages["prompt"], method.gamma)
    return Credit(advantages, bonus), record
