"""Policy updates: an objective's loss over items in micro-batches, and GRPO's, the clipped surrogate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from customized_grpo.config import RolloutConfig, TrainConfig
from customized_grpo.method import Step, StepFunction, clipped_surrogate, gaussian_kl, guarded_log_ratio, guarded_loss
from customized_grpo.policies.sharding import local
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.callbacks import TrainerCallback
from customized_grpo.trainer.memory import BatchSize
from customized_grpo.trainer.optimizer import Optimizer
from customized_grpo.trainer.processes import ALONE, Processes
from customized_grpo.trainer.rollout import Trajectories, velocity_once
from customized_grpo.trainer.windows import stochastic_steps
from customized_grpo.utils.noise import generator

_RESUME = "resume from the last checkpoint with --resume {run} --allow-changes"
PROBED = 8  # images on which KL and drift are measured


class DivergenceError(ValueError):
    """A policy that cannot be trained further; the message is one line with the numbers and the remedy."""


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


@dataclass(frozen=True)
class Items(ItemBatch):
    """N transitions of equal shapes to evaluate under the present policy.

    `latents` and `next_latents` (N, ...) are the states before and after the step, `sigma` and `sigma_next` (N,) its
    noise levels, `sigma_max` (N,) the second level of its schedule; `log_density` (N,) and, if stored, `mean` (N, ...)
    are those of sampling. `advantages` are (N,), or (N, 2) with two objectives. `condition_rows` (N,) are rows of
    `conditions`, copied for one micro-batch at a time because they can exceed the latents. Items of equal numbers in
    `same` (N,) have one velocity, and differ only in what follows.
    """

    latents: Tensor
    next_latents: Tensor
    sigma: Tensor
    sigma_next: Tensor
    sigma_max: Tensor
    mean: Tensor | None
    log_density: Tensor
    conditions: Conditions
    condition_rows: Tensor
    same: Tensor

    @staticmethod
    def of(batch: Trajectories, rows: Tensor, steps: Tensor, advantages: Tensor) -> Items:
        """Return the stored transitions `steps` (N,) of the batch's images `rows` (N,)."""
        stored = (batch.steps[rows] == steps[:, None]).int().argmax(1)
        before = batch.places[rows, stored]
        return Items(
            advantages.to(batch.latents.device),
            batch.latents[rows, before],
            batch.latents[rows, before + 1],
            batch.sigmas[steps],
            batch.sigmas[steps + 1],
            batch.sigmas[1].expand(len(steps)),
            None if batch.mean is None else batch.mean[rows, stored],
            batch.log_density[rows, stored],
            batch.conditions,
            batch.condition_rows[rows],
            torch.where(steps == batch.first, batch.starts[rows], len(batch) + torch.arange(len(rows))),
        )

    @staticmethod
    def idle(batches: Sequence[Trajectories]) -> Items:
        """Return a transition with advantage 0: a finite one if there is any, because 0 times NaN is NaN."""
        batch, rows = _first_finite(batches)
        row = rows[:1] if len(rows) else torch.zeros(1, dtype=torch.long)
        return Items.of(batch, row, batch.steps[row, 0], torch.zeros(1))

    @staticmethod
    def chosen(batch: Trajectories, images: set[int], trained: Tensor, advantages: Tensor) -> Items:
        """Return the trained steps of the batch's images among `images`, ordered by step.

        `trained` and `advantages` (images, S), or (images, S, 2), are those of all images of the iteration.
        """
        rows = torch.tensor([i for i, image in enumerate(batch.images.tolist()) if image in images], dtype=torch.long)
        which = batch.images[rows]
        steps, order = trained[which].flatten().sort(stable=True)
        rows = rows.repeat_interleave(trained.shape[1])[order]
        return Items.of(batch, rows, steps, advantages[which].flatten(0, 1)[order])


def _first_finite(batches: Sequence[Trajectories]) -> tuple[Trajectories, Tensor]:
    """Return the first batch with images of finite log-densities, and their rows; or the first, and no rows."""
    for batch in batches:
        rows = batch.log_density.isfinite().all(1).nonzero().flatten().cpu()
        if len(rows):
            return batch, rows
    return batches[0], torch.zeros(0, dtype=torch.long)


def trained_count(stochastic: int, fraction: float) -> int:
    """Return how many of an image's stochastic steps are trained: a fraction of them, at least one."""
    return max(1, round(fraction * stochastic))


def sample_trained_steps(
    stochastic: range, fraction: float, seed: int, iteration: int, images: Sequence[tuple[str, int]]
) -> Tensor:
    """Sample the denoising steps to train of each image, (images, S) in rising order, without replacement.

    They depend on (seed, iteration, image) only, not on the batch.
    """
    count = trained_count(len(stochastic), fraction)
    rows = []
    for image in images:
        order = torch.randperm(len(stochastic), generator=generator(seed, "trained steps", iteration, *image))
        rows.append(stochastic.start + order[:count].sort().values)
    return torch.stack(rows)


def replay(policy: Policy, items: Items, step: StepFunction, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (N, ...), standard deviation (N,) and log-density (N,) of transitions under the present policy."""
    conditions = items.conditions.select(items.condition_rows)
    velocity = velocity_once(policy, items.latents, items.sigma, conditions, items.same)
    taken = _step(items, velocity, step, eta)
    return taken.mean, taken.std, taken.log_density


def _step(items: Items, velocity: Tensor, step: StepFunction, eta: float) -> Step:
    return step(
        items.latents,
        velocity,
        items.sigma,
        items.sigma_next,
        eta=eta,
        next_sample=items.next_latents,
        sigma_max=items.sigma_max,
    )


def mean_of_updates(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over the updates of an iteration that report it."""
    names = dict.fromkeys(name for record in records for name in record)
    given = {name: [record[name] for record in records if name in record] for name in names}
    return {name: sum(values) / len(values) for name, values in given.items()}


class Updater:
    """GRPO: stochastic steps are trained on the clipped surrogate. Takes optimizer steps, and measures them.

    Another objective is a subclass: it defines what is trained of an image (`trained`, `stored`), the items of it
    (`items`, `idle`, `example`), their loss (`losses`), and how far the policy is from the reference (`probe`).

    Attributes:
        skipped: Updates in a row that were skipped.
        on_policy: Whether the weights are still those that sampled the present rollouts; set by the caller after
            sampling.
        replays: Whether items have stored log-densities, so that `replay_error` is measured.
        measures: Names of the means over items that `losses` measures.
    """

    replays = True

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        config: TrainConfig,
        step: StepFunction,
        eta: float,
        processes: Processes = ALONE,
        *,
        before_step: Callable[[], None] = lambda: None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.policy, self.optimizer, self.config = policy, optimizer, config
        self.step, self.eta, self.processes = step, eta, processes
        self._before_step, self._after_step = before_step, after_step
        self.size = BatchSize("train.batch_size", config.batch_size, recovers=not optimizer.together)
        self.skipped = 0
        self.on_policy = True
        self.measures: tuple[str, ...] = ("clip_fraction", "kl") if config.kl_weight > 0 else ("clip_fraction",)

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

    def stochastic(self, rollout: RolloutConfig, seed: int, iteration: int) -> range:
        """Return the stochastic steps that the iteration's images are sampled with."""
        return stochastic_steps(rollout, seed, iteration)

    def trained(self, stochastic: range, seed: int, iteration: int, images: Sequence[tuple[str, int]]) -> Tensor:
        """Return what is trained of each image, (images, S), as places in the schedule: denoising steps."""
        return sample_trained_steps(stochastic, self.config.trained_fraction, seed, iteration, images)

    def stored(self, trained: Tensor) -> Tensor:
        """Return the steps whose transitions sampling has to store, (images, S')."""
        return trained

    def items(self, batch: Trajectories, images: set[int], trained: Tensor, advantages: Tensor) -> ItemBatch:
        """Return the items to train of the batch's images among `images`; see `Items.chosen`."""
        return Items.chosen(batch, images, trained, advantages)

    def idle(self, batches: Sequence[Trajectories]) -> ItemBatch:
        """Return an item that may be processed without effect."""
        return Items.idle(batches)

    def example(self, condition: Conditions, sigmas: Tensor) -> ItemBatch:
        """Return an item of zeros with this conditioning, to measure what one needs."""
        latents = torch.zeros(1, *self.policy.latent_shape, device=self.policy.device)
        zero = torch.zeros(1, device=self.policy.device)
        mean = latents if self.config.ratio == "guard" else None
        first = torch.zeros(1, dtype=torch.long)
        advantages = zero.expand(self.optimizer.objectives)[None]
        levels = sigmas[:1], sigmas[1:2], sigmas[1:2]
        return Items(advantages, latents, latents, *levels, mean, zero, condition, first, first)

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

    def losses(self, items: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of items, and measure it.

        Returns:
            The loss per objective, summed over items, (objectives,); sum and count of each of `measures`, (measures,
            2); the largest difference between a log-density and the one stored when sampling.
        """
        mean, std, log_density = replay(self.policy, items, self.step, self.eta)
        losses, clipped = self._surrogates(items, mean, std, log_density)
        count = torch.tensor(float(len(items)), device=clipped.device)
        measured = [clipped, count]
        if self.config.kl_weight > 0:
            divergence = gaussian_kl(mean, self._reference_mean(items), std)
            losses = losses + self.config.kl_weight * divergence.sum() / len(losses)
            measured += [divergence.sum().detach(), count]
        difference = (log_density.detach() - items.log_density).abs().max()
        return losses, torch.stack(measured), difference

    def _surrogates(self, items: Items, mean: Tensor, std: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss per objective, summed over items, (objectives,), and the number of clipped items.

        With two objectives an item counts half for each that is clipped. As long as the weights are those that sampled
        the items, the old density is the replayed one itself: a batch of another size rounds differently on a GPU,
        which would change ratios from 1.
        """
        old_density, old_mean = items.log_density, items.mean
        if self.on_policy:
            old_density, old_mean = log_density.detach(), mean.detach()
        log_ratio = log_density - old_density
        if self.config.ratio == "guard":
            if old_mean is None:
                raise ValueError("train.ratio=guard needs the means of the steps, which were not stored")
            log_ratio = guarded_log_ratio(log_ratio, mean, old_mean, std)
        advantages = items.advantages.view(len(items), -1)
        surrogate = clipped_surrogate(
            log_ratio[:, None].expand(advantages.shape), advantages, self.config.clip_range, self.config.clip_range_high
        )
        loss = surrogate.loss
        if self.config.ratio == "guard":
            loss = guarded_loss(loss, items.sigma, items.sigma_next)
        return loss.sum(0), surrogate.clipped.to(loss.dtype).mean(1).sum()

    @torch.no_grad()
    def probe(self, batches: Sequence[Trajectories], trained: Tensor) -> tuple[dict[str, float], int]:
        """Estimate KL divergence and velocity drift from the reference policy on one step of a few finite images.

        Returns `kl` in nats per latent element, `drift`, the squared change of the velocity over its square (1 for a
        velocity of zero, 2 for an unrelated one of the same length), and the number of images.
        """
        batch, finite = _first_finite(batches)
        every = finite if len(finite) else torch.zeros(1, dtype=torch.long)  # a sharded model is called by all
        rows = every[torch.linspace(0, len(every) - 1, min(len(every), PROBED)).round().long()]
        steps = trained[batch.images[rows], 0]
        items = Items.of(batch, rows, steps, torch.zeros(len(rows)))
        mean, std, _ = replay(self.policy, items, self.step, self.eta)
        reference = self._reference_mean(items)
        # A sampler's mean is linear in the velocity, so that differences of means are those of velocities, scaled.
        still = _step(items, torch.zeros_like(items.latents), self.step, self.eta).mean
        if not len(finite):
            return {"kl": 0.0, "drift": 0.0}, 0
        change, length = ((x - reference).double().square().mean() for x in (mean, still))
        return {"kl": float(gaussian_kl(mean, reference, std).mean()), "drift": float(change / length)}, len(rows)

    @torch.no_grad()
    def _reference_mean(self, items: Items) -> Tensor:
        with self.policy.reference():
            return replay(self.policy, items, self.step, self.eta)[0]


def check_loss(loss: float, iteration: int, run: Path) -> None:
    """Raise DivergenceError if an update's loss is not finite."""
    if not math.isfinite(loss):
        raise DivergenceError(
            f"iteration {iteration}: the loss is {loss}, not a finite number; lower train.learning_rate, or set "
            f"policy.dtype to float32, in {run / 'config.yaml'}, then {_RESUME.format(run=run)}"
        )


def check_skipped(skipped: int, limit: int, updates: int, iteration: int, run: Path) -> None:
    """Raise DivergenceError if more than `limit` updates in a row, or all of the run's, had no finite gradient."""
    if skipped > limit or skipped == updates:
        allowed = f"more than train.max_skipped={limit} allows" if skipped > limit else "all of the run's"
        raise DivergenceError(
            f"iteration {iteration}: {skipped} updates in a row had a gradient that is not finite, {allowed}; lower "
            f"train.learning_rate, or set policy.dtype to float32, in {run / 'config.yaml'}, then "
            f"{_RESUME.format(run=run)}"
        )


def check_drift(drift: float, limit: float | None, iteration: int, run: Path) -> None:
    """Raise DivergenceError if the policy's `drift`, from `Updater.probe`, is above `limit` or not finite.

    Drift is the most reliable sign of a step that was too large: the loss vanishes once a group's images are noise
    alike, gradients are clipped, and the norms inside a transformer bound its output, so that the KL at a learning
    rate of 1000 is no larger than at 0.1.
    """
    if not (math.isfinite(drift) and (limit is None or drift <= limit)):
        allowed = f"more than train.max_drift={limit:g} allows" if math.isfinite(drift) else "not a finite number"
        raise DivergenceError(
            f"iteration {iteration}: the velocity's drift from the base model is {drift:.3g}, {allowed}; lower "
            f"train.learning_rate in {run / 'config.yaml'}, then {_RESUME.format(run=run)}"
        )
