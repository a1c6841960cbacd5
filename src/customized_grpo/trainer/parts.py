"""The parts of a run, built: its policy, with an adapter where there is one, and its judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from customized_grpo.config import POLICIES, Config, ConfigError
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy, Reward
from customized_grpo.rewards import build_reward
from customized_grpo.trainer.folder import LORA, LORA_FILE


@dataclass(frozen=True)
class Judges:
    """The configured rewards and monitors, built."""

    rewards: list[Reward]
    monitors: list[Reward]

    @property
    def all(self) -> list[Reward]:
        return [*self.rewards, *self.monitors]


def build_judges(config: Config, device: torch.device) -> Judges:
    return Judges(
        [build_reward(reward, device) for reward in config.rewards],
        [build_reward(monitor, device) for monitor in config.evaluation.monitors],
    )


def policy_with_adapter(config: Config, run: Path | None) -> Policy:
    """The configured policy, with the adapter of `run` where one is given."""
    if run is not None and not (run / LORA).exists():
        raise ConfigError(f"{run}: holds no {LORA}; give the folder of a finished run")
    if run is not None and config.policy.lora is not None and config.policy.kind in POLICIES:
        from customized_grpo.policies.tuning import lora_metadata

        lora_metadata(run / LORA / LORA_FILE)  # a damaged file, before a large model is loaded
    policy = build_policy(config.policy)
    if run is not None:
        policy.load(run / LORA)
    return policy
