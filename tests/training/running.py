"""One training of a configuration into a folder, without pictures; also run by torchrun as a script."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import Accelerator

from customized_grpo.config import Config
from customized_grpo.configuration import load_config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.protocols import Policy
from customized_grpo.rewards import build_reward
from customized_grpo.training.loop import Observer, train


def run_training(
    config: Config,
    run: Path,
    on_iteration: Callable[[Mapping[str, float]], None] = lambda record: None,
) -> Policy:
    """Train, or go on; returns the policy as it is then."""
    policy = build_policy(config.policy)
    rewards = [build_reward(reward, policy.device) for reward in config.rewards]
    observer = Observer(on_iteration, lambda iteration: {})
    train(config, run, policy, open_dataset(config.data), rewards, Accelerator(cpu=True), observer)
    return policy


if __name__ == "__main__":
    run_training(load_config(Path(sys.argv[1])), Path(sys.argv[2]))
