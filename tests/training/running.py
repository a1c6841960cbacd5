"""One training of a configuration into a folder, without pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy
from customized_grpo.rewards import build_reward
from customized_grpo.training.loop import Observer, train
from customized_grpo.training.processes import Processes


def run_training(
    config: Config,
    run: Path,
    on_iteration: Callable[[Mapping[str, float]], None] = lambda record: None,
    accelerator: Accelerator | None = None,
) -> Policy:
    """Train, or go on; returns the policy as it is then."""
    accelerator = accelerator or Accelerator(cpu=True)
    policy = build_policy(config.policy)
    Processes(accelerator).share_weights(policy)
    rewards = [build_reward(reward, policy.device) for reward in config.rewards]
    observer = Observer(on_iteration, lambda iteration: {})
    train(config, run, policy, open_dataset(config.data), rewards, accelerator, observer)
    return policy
