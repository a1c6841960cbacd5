"""Typed configuration of a run. Every key has a default: the paper's, or the preset of the model.

A YAML file contains what differs from the defaults, `--set a.b=c` what differs from the file. Unknown keys are refused.
"""

from customized_grpo.config.kinds import KINDS, POLICIES, Kind
from customized_grpo.config.section import ConfigError
from customized_grpo.config.settings import (
    BALANCES,
    OBJECTIVES,
    VERSION,
    Config,
    DataConfig,
    EvaluationConfig,
    ForwardConfig,
    LoraConfig,
    MethodConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
    ValidationConfig,
    WindowConfig,
)

__all__ = [
    "BALANCES",
    "KINDS",
    "OBJECTIVES",
    "POLICIES",
    "VERSION",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "ForwardConfig",
    "Kind",
    "LoraConfig",
    "MethodConfig",
    "PolicyConfig",
    "RewardConfig",
    "RolloutConfig",
    "TrainConfig",
    "ValidationConfig",
    "WindowConfig",
]
