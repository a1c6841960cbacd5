"""One typed configuration of a run. Every key has a default: the paper's, or of the model's preset.

A YAML file names what differs, `--set a.b=c` what differs from the file; unknown keys are refused. A file for each
section.
"""

from __future__ import annotations

from customized_grpo.config.data import DataConfig
from customized_grpo.config.evaluation import EvaluationConfig
from customized_grpo.config.kinds import KINDS, POLICIES, Kind
from customized_grpo.config.method import MethodConfig
from customized_grpo.config.policy import LoraConfig, PolicyConfig
from customized_grpo.config.rewards import RewardConfig
from customized_grpo.config.rollout import RolloutConfig, WindowConfig
from customized_grpo.config.run import VERSION, Config
from customized_grpo.config.section import ConfigError
from customized_grpo.config.train import TrainConfig

__all__ = [
    "KINDS",
    "POLICIES",
    "VERSION",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "Kind",
    "LoraConfig",
    "MethodConfig",
    "PolicyConfig",
    "RewardConfig",
    "RolloutConfig",
    "TrainConfig",
    "WindowConfig",
]
