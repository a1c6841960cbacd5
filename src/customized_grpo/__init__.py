"""Customized-GRPO: train subject-driven image generators to keep the subject and follow the prompt.

    import customized_grpo as cg

Names are imported when they are first used, so that importing the package is quick and needs no torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.2.0"

#: Where each public name comes from: module, or module:attribute where the name differs.
_EXPORTS = {
    "CheckpointCallback": "trainer.callbacks",
    "CustomizedGRPOConfig": "config.arguments",
    "CustomizedGRPOTrainer": "trainer.trainer",
    "EMACallback": "trainer.callbacks",
    "EarlyStoppingCallback": "trainer.callbacks",
    "Evaluation": "trainer.evaluation",
    "LoraConfig": "config",
    "MetricsCallback": "trainer.callbacks",
    "Pair": "protocols",
    "Policy": "policies:PipelinePolicy",
    "ProgressCallback": "trainer.callbacks",
    "ReportCallback": "reporting.callbacks",
    "RewardTerm": "rewards.terms",
    "TrackerCallback": "trainer.trackers",
    "TrainerCallback": "trainer.callbacks",
    "clipped_surrogate": "method",
    "cps_step": "method",
    "dance_step": "method",
    "evaluate": "trainer.evaluation",
    "flow_step": "method",
    "generate": "evaluation.generate",
    "group_advantages": "method",
    "load_config": "config.loading",
    "register_objective": "method",
    "register_policy": "policies",
    "sars": "method",
    "shaped_advantages": "method",
    "tdw_weights": "method:tdw",
}
_MODULES = {"datasets": "data.datasets", "method": "method", "rewards": "rewards"}

TYPE_CHECKING = False  # the module typing takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from customized_grpo import method, rewards
    from customized_grpo.config import LoraConfig
    from customized_grpo.config.arguments import CustomizedGRPOConfig
    from customized_grpo.config.loading import load_config
    from customized_grpo.data import datasets
    from customized_grpo.evaluation.generate import generate
    from customized_grpo.method import (
        clipped_surrogate,
        cps_step,
        dance_step,
        flow_step,
        group_advantages,
        register_objective,
        sars,
        shaped_advantages,
    )
    from customized_grpo.method import tdw as tdw_weights
    from customized_grpo.policies import PipelinePolicy as Policy
    from customized_grpo.policies import register_policy
    from customized_grpo.protocols import Pair
    from customized_grpo.reporting.callbacks import ReportCallback
    from customized_grpo.rewards.terms import RewardTerm
    from customized_grpo.trainer.callbacks import (
        CheckpointCallback,
        EarlyStoppingCallback,
        EMACallback,
        MetricsCallback,
        ProgressCallback,
        TrainerCallback,
    )
    from customized_grpo.trainer.evaluation import Evaluation, evaluate
    from customized_grpo.trainer.trackers import TrackerCallback
    from customized_grpo.trainer.trainer import CustomizedGRPOTrainer

__all__ = [
    "CheckpointCallback",
    "CustomizedGRPOConfig",
    "CustomizedGRPOTrainer",
    "EMACallback",
    "EarlyStoppingCallback",
    "Evaluation",
    "LoraConfig",
    "MetricsCallback",
    "Pair",
    "Policy",
    "ProgressCallback",
    "ReportCallback",
    "RewardTerm",
    "TrackerCallback",
    "TrainerCallback",
    "clipped_surrogate",
    "cps_step",
    "dance_step",
    "datasets",
    "evaluate",
    "flow_step",
    "generate",
    "group_advantages",
    "load_config",
    "method",
    "register_objective",
    "register_policy",
    "rewards",
    "sars",
    "shaped_advantages",
    "tdw_weights",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_MODULES])
