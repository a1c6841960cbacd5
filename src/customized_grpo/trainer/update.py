"""Policy updates: one optimizer step on an objective's loss over items, in micro-batches."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.policies.sharding import local
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.callbacks import TrainerCallback
from customized_grpo.trainer.memory import BatchSize
from customized_grpo.trainer.optimizer import Optimizer
from customized_grpo.trainer.processes import ALONE, Processes
from customized_grpo.trainer.rollout import Trajectories
from customized_grpo.trainer.windows import stochastic_steps

_PROBED = 8  # images on which KL and drift are measured


@dataclass(frozen=True)
class ItemBatch:
    """N items to train; every tensor of a subclass is (N, ...)."""

    advantages: Tensor

    def __len__(self) -> int:
        return len(self.advantages)

    def split(self, size: int) -> Iterator[Self]:
        """Yield micro-batches of at most `size` items."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        for start in range(0, len(self), size):
            yield replace(self, **{name: value[start : start + size] for name, value in tensors.items()})


def mean_of_updates(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over the updates of an iteration that report it."""
    names = dict.fromkeys(name for record in records for name in record)
    given = {name: [record[name] for record in records if name in record] for name in names}
    return {name: sum(values) / len(values) for name, values in given.items()}


def finite_images(batches: Sequence[Trajectories]) -> tuple[Trajectories, Tensor, int]:
    """Return the first batch that has finite images, a few of their rows, evenly spaced, and the number of these.

    Without any it is row 0 of the first batch, and the number 0: all processes call a sharded model.
    """
    for batch in batches:
        finite = batch.clean.isfinite().flatten(1).all(1) & batch.log_density.isfinite().all(1)
        rows = finite.nonzero().flatten().cpu()
        if len(rows):
            few = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _PROBED)).round().long()]
            return batch, few, len(few)
    return batches[0], torch.zeros(1, dtype=torch.long), 0


class Updater(ABC):
    """Takes optimizer steps on an objective, and measures them.

    A subclass is an objective: it defines what is trained of an image (`trained`), the items of it (`items`, `idle`,
    `example`), their loss (`losses`, `measures`), and how far the policy is from the reference (`probe`).

    Args:
        policy: Policy to train.
        optimizer: Optimizer of its weights.
        config: Settings of the run.
        processes: Processes that train together.
        before_step: Called before each optimizer step.
        after_step: Called after each one that was taken.

    Attributes:
        skipped: Updates in a row that were skipped.
        on_policy: Whether the weights are still those that sampled the present rollouts; set by the caller after
            sampling.
        replays: Whether stochastic steps are trained, whose log-densities are stored: `replay_error` is measured.
    """

    replays = False

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        config: Config,
        processes: Processes = ALONE,
        *,
        before_step: Callable[[], None] = lambda: None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy, self.optimizer, self.processes = policy, optimizer, processes
        self.config, self.rollout = config.train, config.rollout
        self._before_step, self._after_step = before_step, after_step
        self.size = BatchSize("train.batch_size", config.train.batch_size, recovers=not optimizer.together)
        self.skipped = 0
        self.on_policy = True

    def callbacks(self) -> list[TrainerCallback]:
        """Return callbacks that hold state of the objective."""
        return []

    def rounds(self, own: int) -> int:
        """Return how many batches to process given this process's number: with a sharded model, as many as any."""
        return self.processes.most(own) if self.optimizer.together else own

    def measure_size(self, condition: Conditions, sigmas: Tensor, most: int) -> None:
        """Set the size of micro-batches, if it is "auto", by what one item of the largest size needs.

        It is at most `most`.
        """
        one = self.example(replace(condition, latent_shape=self.policy.latent_shape), sigmas)

        def probe() -> None:
            self._accumulate([one], 1, torch.ones(1, device=self.policy.device), None)

        gradients = self.optimizer.objectives * sum(local(w).nbytes for w in self.policy.trainable().values())
        later = self.optimizer.awaited_bytes()
        self.size.measure(self.policy.device, probe, most=most, kept=gradients, later=later, agree=self.processes.least)
        self.optimizer.clear()

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """Names of the means over items that `losses` measures."""

    def stochastic(self, seed: int, iteration: int) -> range:
        """Return the stochastic steps of the iteration's images: those of its window, or all but the last, or none."""
        return stochastic_steps(self.rollout, seed, iteration) if self.replays else range(0)

    @abstractmethod
    def trained(self, stochastic: range, seed: int, iteration: int, images: Sequence[tuple[str, int]]) -> Tensor:
        """Return what is trained of each image, (images, S), as places in the schedule."""

    def stored(self, trained: Tensor) -> Tensor:
        """Return the steps whose transitions sampling has to store, (images, S'): all that are trained, or none."""
        return trained if self.replays else trained[:, :0].long()

    @abstractmethod
    def items(self, batch: Trajectories, images: set[int], trained: Tensor, advantages: Tensor) -> ItemBatch:
        """Return the items to train of the batch's images among `images`.

        `trained` (images, S) and `advantages`, (images, S) or (images, S, 2), are those of all images of the iteration.
        """

    @abstractmethod
    def idle(self, batches: Sequence[Trajectories]) -> ItemBatch:
        """Return an item with advantage 0: a finite one if there is any, because 0 times NaN is NaN."""

    @abstractmethod
    def example(self, condition: Conditions, sigmas: Tensor) -> ItemBatch:
        """Return an item of zeros with this conditioning, to measure what one needs."""

    def update(self, groups: Sequence[ItemBatch], idle: ItemBatch | None = None) -> dict[str, float]:
        """Take one optimizer step on the mean over all items of all processes, and return its metrics.

        There is no step without items, nor where the gradient is not finite. If memory runs out, the update starts
        again with smaller micro-batches. `idle` is processed without effect while other processes have more of them.
        """
        total = self.processes.sum(torch.tensor(float(sum(map(len, groups))), device=self.policy.device))
        if not float(total):
            zeros = {"loss": 0.0, "gradient_norm": 0.0, "share/skipped": 0.0, **dict.fromkeys(self.measures, 0.0)}
            return zeros | ({"replay_error": 0.0} if self.replays and self.on_policy else {})
        most = max(map(len, groups), default=1)
        sums, error = self.size.anew(most, lambda size: self._accumulate(groups, size, total, idle))
        self._before_step()
        norm = self.optimizer.step()
        taken = math.isfinite(norm)
        if taken:
            self._after_step()
        self.skipped = 0 if taken else self.skipped + 1
        errors = torch.zeros(self.processes.count, device=sums.device)  # one per process, in the same message
        errors[self.processes.index] = error
        numbers = self.processes.sum(torch.cat([sums, errors])).tolist()
        (loss, *measured), found = numbers[: len(sums)], numbers[len(sums) :]
        replayed = {"replay_error": max(found)} if self.replays and self.on_policy else {}
        self.on_policy = self.on_policy and not taken
        means = zip(self.measures, measured[::2], measured[1::2], strict=True)
        return {
            "loss": loss / float(total),
            "gradient_norm": norm,
            "share/skipped": float(not taken),
            **replayed,
            **{name: value / count for name, value, count in means if count},
        }

    def _accumulate(
        self, groups: Sequence[ItemBatch], size: int, total: Tensor, idle: ItemBatch | None
    ) -> tuple[Tensor, float]:
        """Accumulate the gradients of this process's items, by micro-batches of `size`.

        Returns the sum of losses, then sum and count of each of `measures`; and the largest difference between a
        log-density and the one stored when sampling.
        """
        device = self.policy.device
        self.optimizer.clear()
        calls = sum(-(-len(group) // size) for group in groups)
        waits = self.rounds(calls) - calls
        sums = torch.zeros(1 + 2 * len(self.measures), device=device)
        error = torch.zeros((), device=device)
        micros = (part for group in groups for part in group.split(size))
        for micro in itertools.chain(micros, () if idle is None else itertools.repeat(idle, waits)):
            counts = float(micro is not idle)
            losses, measured, difference = self.losses(micro)
            self.optimizer.backward(*(losses / total * counts))
            sums += counts * torch.cat([losses.detach().sum()[None], measured.flatten()])
            error = torch.maximum(error, counts * difference)
        return sums, float(error)

    @abstractmethod
    def losses(self, items: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of items, and measure it.

        Returns:
            The loss per objective, summed over items, (objectives,); sum and count of each of `measures`, (measures,
            2); the largest difference between a log-density and the one stored when sampling.
        """

    @abstractmethod
    def probe(self, batches: Sequence[Trajectories], trained: Tensor) -> tuple[dict[str, float], int]:
        """Measure how far the policy is from the reference, on a few finite images.

        Returns metrics, among them `drift`, the squared change of the velocity over its square (1 for a velocity of
        zero, 2 for an unrelated one of the same length), and the number of images.
        """
