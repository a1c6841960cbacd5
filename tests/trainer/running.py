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
from customized_grpo.rewards import build_reward
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.callbacks import ProgressCallback, TrainerCallback
from customized_grpo.trainer.checkpoint import newest_checkpoint
from customized_grpo.trainer.evaluation import Evaluation, evaluate
from customized_grpo.trainer.groups import Groups
from customized_grpo.trainer.grpo import GRPOUpdater, sample_trained_steps
from customized_grpo.trainer.memory import BatchSize
from customized_grpo.trainer.optimizer import Optimizer
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
    size: int | BatchSize | None = None,
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
    size = BatchSize("rollout.batch_size", size) if isinstance(size, int) else size
    conditions = [encoded[pair.key] for pair in pairs]
    batches = sample_groups(policy, conditions, keys, rollout, stochastic, seed=0, iteration=0, size=size, **options)
    return list(batches), trained


def sampled(config: Config, policy: Policy, run: Path) -> tuple[CustomizedGRPOTrainer, Any, Any]:
    """A trainer, the rollouts of its first iteration, and their advantages."""
    trainer = make_trainer(config, run, policy=policy)
    rollouts = trainer.sample(trainer.make_batch())
    return trainer, rollouts, trainer.compute_advantages(trainer.compute_rewards(rollouts))


def gradient_of(config: Config, policy: Policy, run: Path) -> tuple[Tensor, dict[str, float]]:
    """Gradient and metrics of the first update, after which the weights stay as they are."""
    trainer, rollouts, advantages = sampled(config, policy, run)
    spy = Spy(list(policy.trainable().values()))
    trainer.optimizer._optimizer = spy
    metrics = trainer.update(rollouts, advantages)
    return spy.taken[0], metrics


class Spy(torch.optim.SGD):
    """Keeps the gradients of each step, and changes nothing."""

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        super().__init__(weights, lr=0.0)
        self.taken: list[Tensor] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        self.taken.append(torch.cat([gradient.flatten().clone() for gradient in gradients]))


def updater_of(policy: Policy, config: Config, objectives: int = 1) -> tuple[GRPOUpdater, Spy]:
    weights = list(policy.trainable().values())
    spy = Spy(weights)
    optimizer = Optimizer(spy, weights, config.train.max_gradient_norm, objectives=objectives)
    return GRPOUpdater(policy, optimizer, config), spy


def evaluated(policy: Policy, config: Config, folder: Path, batch_size: int = 2, **options: Any) -> Evaluation:
    """Evaluate the policy on the configuration's held-out pairs, by its rewards."""
    rewards = [build_reward(reward, policy.device) for reward in config.rewards]
    held_out = open_dataset(config.evaluation.data)
    return evaluate(policy, held_out, rewards, config.evaluation, folder, batch_size=batch_size, **options)


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """Copies of the weights that are trained."""
    return {name: weight.detach().clone() for name, weight in policy.trainable().items()}


def metrics_of(run: Path) -> list[dict[str, float]]:
    """A run's records without times."""
    records = read_records(run / "metrics.jsonl")
    return [{key: value for key, value in record.items() if not key.startswith("seconds/")} for record in records]


def newest(run: Path) -> str | None:
    """Name of a run's newest checkpoint."""
    found = newest_checkpoint(run / "checkpoints")
    return None if found is None else found.name


def tensors_of(run: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of the newest checkpoint."""
    files = (run / "checkpoints" / str(newest(run))).rglob("*.safetensors")
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether tensors by name are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
