"""One training of a configuration into a folder, without evaluations."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.callbacks import ProgressCallback, TrainerCallback
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer


class OnStep(TrainerCallback):
    """Calls a function with each iteration's metrics."""

    def __init__(self, call: Callable[[Mapping[str, float]], None]) -> None:
        self._call = call

    def on_step_end(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        self._call(metrics)


def make_trainer(
    config: Config,
    run: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    policy: Policy | None = None,
    dataset: PairDataset | None = None,
    held_out: PairDataset | None = None,
    accelerator: Accelerator | None = None,
) -> CustomizedGRPOTrainer:
    policy = policy or build_policy(config.policy)
    config = config.model_copy(update={"train": config.train.model_copy(update={"trackers": []})})
    return CustomizedGRPOTrainer(
        policy,
        reward_terms(config.rewards, policy.device),
        dataset or open_dataset(config.data),
        held_out,
        config,
        run,
        callbacks=[ProgressCallback(Console(file=io.StringIO())), *callbacks],
        accelerator=accelerator or Accelerator(cpu=True),
    )


def run_training(
    config: Config,
    run: Path,
    on_step: Callable[[Mapping[str, float]], None] = lambda metrics: None,
    accelerator: Accelerator | None = None,
) -> Policy:
    """Train, or continue; returns the policy as it is then."""
    trainer = make_trainer(config, run, [OnStep(on_step)], accelerator=accelerator)
    trainer.train(resume_from_checkpoint=True)
    return trainer.policy
