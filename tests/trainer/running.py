"""Trainings of a configuration without evaluations, and batches of sampled images."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.data import open_dataset
from customized_grpo.policies import build_policy
from customized_grpo.protocols import PairDataset, Policy
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.callbacks import ProgressCallback, TrainerCallback
from customized_grpo.trainer.checkpoint import newest_checkpoint
from customized_grpo.trainer.groups import Groups
from customized_grpo.trainer.grpo import sample_trained_steps
from customized_grpo.trainer.memory import BatchSize
from customized_grpo.trainer.rollout import Trajectories, sample_groups
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.records import read_records


class OnStep(TrainerCallback):
    """Calls a function with each iteration's metrics."""

    def __init__(self, call: Callable[[Mapping[str, float]], None]) -> None:
        self._call = call

    def on_step_end(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        self._call(metrics)


class SeeGroups(TrainerCallback):
    """Keeps the groups of each iteration that shows them."""

    def __init__(self) -> None:
        self.seen: dict[int, Groups] = {}

    def on_groups(self, trainer: Any, groups: Groups) -> None:
        self.seen[trainer.iteration] = groups


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
    trainer.train(resume_from_checkpoint=True, allow_changes=True)
    return trainer.policy


def draw(
    policy: Policy,
    config: Config,
    rows: Sequence[int] = range(6),
    *,
    stochastic: range | None = None,
    size: int | None = None,
    batch_size: BatchSize | None = None,
    sparse: bool = False,
    **options: Any,
) -> tuple[list[Trajectories], Tensor]:
    """Sample some of the six images of two groups: their batches and trained steps (rows, S)."""
    dataset, rollout = open_dataset(config.data), config.rollout
    pairs = [dataset[row // 3] for row in rows]
    encoded = {pair.key: policy.encode(pair.prompt, pair.references) for pair in pairs}
    keys = [(pair.key, row % 3) for pair, row in zip(pairs, rows, strict=True)]
    stochastic = stochastic or range(rollout.steps - 1)
    trained = sample_trained_steps(stochastic, config.train.trained_fraction, 0, 0, keys)
    if sparse:
        options["trained"] = trained
    rollout = rollout if size is None else rollout.model_copy(update={"batch_size": size})
    conditions = [encoded[pair.key] for pair in pairs]
    batches = sample_groups(
        policy, conditions, keys, rollout, stochastic, seed=0, iteration=0, size=batch_size, **options
    )
    return list(batches), trained


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """Copies of the weights that are trained."""
    return {name: weight.detach().clone() for name, weight in policy.trainable().items()}


def metrics_of(run: Path) -> list[dict[str, float]]:
    """A run's records without times."""
    records = read_records(run / "metrics.jsonl")
    return [{key: value for key, value in record.items() if not key.startswith("seconds/")} for record in records]


def tensors_of(run: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of the newest checkpoint."""
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    tensors = {
        f"{file.name}:{name}": tensor
        for file in newest.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(":rng")}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether tensors by name are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
