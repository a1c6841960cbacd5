"""Rewards with their role and weight, as a training uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from customized_grpo.protocols import Reward


@dataclass(frozen=True)
class RewardTerm:
    """A reward and its part in training."""

    reward: Reward
    role: Literal["identity", "prompt", "guard"]
    weight: float = 1.0
    limit: float | None = None

    @property
    def name(self) -> str:
        return self.reward.name
