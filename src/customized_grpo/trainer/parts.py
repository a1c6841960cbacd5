"""A run's policy and rewards, built from its configuration for evaluation, the demo and exports."""

from pathlib import Path

import torch

from customized_grpo.config import POLICIES, Config, ConfigError
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy, Reward
from customized_grpo.rewards import build_reward
from customized_grpo.trainer.folder import LORA, LORA_FILE
from customized_grpo.utils.machine import use_threads


def build_scorers(config: Config, device: torch.device) -> list[Reward]:
    """Build the configured rewards and monitors."""
    return [build_reward(reward, device) for reward in (*config.rewards, *config.evaluation.monitors)]


def policy_with_adapter(config: Config, run: Path | None) -> Policy:
    """Build the configured policy, with the trained weights of `run` if given.

    Raises ConfigError if the run has none yet, ValueError if they are damaged or belong to another model.
    """
    use_threads(config.train.threads)
    if run is None:
        return build_policy(config.policy)
    if not (run / LORA).exists():
        raise ConfigError(f"{run}: holds no {LORA}; give the folder of a finished run")
    if config.policy.lora is not None and config.policy.kind in POLICIES:
        from customized_grpo.policies.adapters import lora_metadata

        lora_metadata(run / LORA / LORA_FILE)  # raises on a damaged file, before a large model is loaded
    policy = build_policy(config.policy)
    policy.load(run / LORA)
    return policy
