"""Moving the policy: the clipped surrogate over (image, denoising step) items, in micro-batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.config import TrainConfig
from customized_grpo.method import StepFunction, clipped_surrogate, gaussian_kl, guarded_log_ratio, guarded_loss
from customized_grpo.policies.sharding import local
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.memory import BatchSize
from customized_grpo.trainer.optimizer import Optimizer
from customized_grpo.trainer.processes import ALONE, Processes
from customized_grpo.trainer.rollout import Trajectories, velocity_once
from customized_grpo.utils.noise import generator

_PROBED = 8  # images whose KL to the reference policy the log shows


@dataclass(frozen=True)
class Items:
    """N transitions of equal shapes, ready to be scored again under the present policy.

    `latents`, `next_latents` and, where it was kept, the step's `mean` when it was drawn (N, ...);
    `sigma`, `sigma_next`, `log_density` (N,); `advantages` (N,), or (N, 2) where there are two objectives. Their
    conditions are the rows `condition_rows` (N,) of `conditions`, which are copied for a micro-batch at a time: a large
    model's weigh more than its latents. Items of equal numbers in `same` (N,) differ in what follows them alone: the
    policy has one velocity for them.
    """

    latents: Tensor
    next_latents: Tensor
    sigma: Tensor
    sigma_next: Tensor
    mean: Tensor | None
    log_density: Tensor
    advantages: Tensor
    conditions: Conditions
    condition_rows: Tensor
    same: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    @staticmethod
    def of(batch: Trajectories, rows: Tensor, steps: Tensor, advantages: Tensor, sigmas: Tensor) -> Items:
        """The transitions `steps` (N,), which the batch has kept, of its images `rows` (N,)."""
        kept = (batch.steps[rows] == steps[:, None]).int().argmax(1)
        before = batch.places[rows, kept]
        return Items(
            batch.latents[rows, before],
            batch.latents[rows, before + 1],
            sigmas[steps],
            sigmas[steps + 1],
            None if batch.mean is None else batch.mean[rows, kept],
            batch.log_density[rows, kept],
            advantages.to(batch.latents.device),
            batch.conditions,
            batch.condition_rows[rows],
            torch.where(steps == batch.first, batch.starts[rows], len(batch) + torch.arange(len(rows))),
        )

    @staticmethod
    def idle(batches: Sequence[Trajectories], sigmas: Tensor) -> Items:
        """One transition of the batches that nothing is to be learnt of: finite, if any is, as 0 times NaN is NaN."""
        batch, rows = _first_finite(batches)
        row = rows[:1] if len(rows) else torch.zeros(1, dtype=torch.long)
        return Items.of(batch, row, batch.steps[row, 0], torch.zeros(1), sigmas)

    @staticmethod
    def chosen(batch: Trajectories, images: set[int], trained: Tensor, advantages: Tensor, sigmas: Tensor) -> Items:
        """The trained steps of the batch's images among `images`, step after step as the rollout took them.

        `trained` and `advantages` (images, S), or (images, S, 2), are those of all images of the iteration.
        """
        rows = torch.tensor([i for i, image in enumerate(batch.images.tolist()) if image in images], dtype=torch.long)
        which = batch.images[rows]
        steps, order = trained[which].flatten().sort(stable=True)
        rows = rows.repeat_interleave(trained.shape[1])[order]
        return Items.of(batch, rows, steps, advantages[which].flatten(0, 1)[order], sigmas)

    def part(self, part: slice) -> Items:
        return Items(
            self.latents[part],
            self.next_latents[part],
            self.sigma[part],
            self.sigma_next[part],
            None if self.mean is None else self.mean[part],
            self.log_density[part],
            self.advantages[part],
            self.conditions,
            self.condition_rows[part],
            self.same[part],
        )

    def split(self, size: int) -> Iterator[Items]:
        for start in range(0, len(self), size):
            yield self.part(slice(start, min(start + size, len(self))))


def _first_finite(batches: Sequence[Trajectories]) -> tuple[Trajectories, Tensor]:
    """The first batch that has images of finite log-densities, and their rows; else the first, and none."""
    for batch in batches:
        rows = batch.log_density.isfinite().all(1).nonzero().flatten().cpu()
        if len(rows):
            return batch, rows
    return batches[0], torch.zeros(0, dtype=torch.long)


def trained_count(stochastic: int, fraction: float) -> int:
    """How many of an image's stochastic steps are trained: that share of them, one at least."""
    return max(1, round(fraction * stochastic))


def draw_trained_steps(
    stochastic: range, fraction: float, seed: int, iteration: int, images: Sequence[tuple[str, int]]
) -> Tensor:
    """For each image the denoising steps to train, without replacement, (images, S) in rising order.

    Drawn among the `stochastic` steps from (seed, iteration, image), whatever the batch.
    """
    count = trained_count(len(stochastic), fraction)
    rows = []
    for image in images:
        order = torch.randperm(len(stochastic), generator=generator(seed, "trained steps", iteration, *image))
        rows.append(stochastic.start + order[:count].sort().values)
    return torch.stack(rows)


def replay(
    policy: Policy, items: Items, step: StepFunction, eta: float, sigma_max: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (N, ...), standard deviation (N,) and log-density (N,) of the transitions under the present policy."""
    conditions = items.conditions.select(items.condition_rows)
    velocity = velocity_once(policy, items.latents, items.sigma, conditions, items.same)
    taken = step(
        items.latents,
        velocity,
        items.sigma,
        items.sigma_next,
        eta=eta,
        next_sample=items.next_latents,
        sigma_max=sigma_max,
    )
    return taken.mean, taken.std, taken.log_density


def mean_of_updates(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each number over the updates of an iteration that report it, in the order of the first update's keys."""
    names = dict.fromkeys(name for record in records for name in record)
    given = {name: [record[name] for record in records if name in record] for name in names}
    return {name: sum(values) / len(values) for name, values in given.items()}


class Updater:
    """One optimiser step after another on the surrogate, with what the log says of them."""

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
        self.skipped: int = 0  #: updates in a row that were not taken
        #: Whether the weights are still those that sampled the present rollouts. The caller sets it after sampling.
        self.on_policy = True

    def rounds(self, own: int) -> int:
        """How often to call the model for `own` batches: as often as the others where they need each other for it.

        A process that calls a sharded model less often than the others would leave them waiting.
        """
        return self.processes.most(own) if self.optimizer.together else own

    def measure_size(self, condition: Conditions, sigmas: Tensor, most: int) -> None:
        """Where the size of micro-batches is "auto", what one transition needs, and how many of `most` fit."""
        latents = torch.zeros(1, *self.policy.latent_shape, device=self.policy.device)
        nothing = torch.zeros(1, device=self.policy.device)
        mean = latents if self.config.ratio == "guard" else None
        first = torch.zeros(1, dtype=torch.long)
        advantages = nothing.expand(self.optimizer.objectives)[None]
        one = Items(latents, latents, sigmas[:1], sigmas[1:2], mean, nothing, advantages, condition, first, first)

        def probe() -> None:
            self._accumulate([one], 1, torch.ones(1, device=self.policy.device), sigmas[1], None)

        gradients = self.optimizer.objectives * sum(local(w).nbytes for w in self.policy.trainable().values())
        later = self.optimizer.awaited_bytes()
        self.size.measure(self.policy.device, probe, most=most, kept=gradients, later=later, agree=self.processes.least)
        self.optimizer.clear()

    def update(self, groups: list[Items], sigma_max: Tensor, idle: Items | None = None) -> dict[str, float]:
        """One optimiser step on the mean over all items of all processes. Returns what the log says of it.

        Without any item there is no step, nor where the gradient is not finite: that update is skipped. Gradients are
        summed over processes once, after all micro-batches. Where memory runs out in one of them, the update begins
        anew with smaller ones: nothing of it counts twice. `idle` is replayed, and counts for nothing, where the
        processes need each other and others have more micro-batches.
        """
        total = self.processes.sum(torch.tensor(float(sum(map(len, groups))), device=self.policy.device))
        if not float(total):
            measured = {"kl": 0.0} if self.config.kl_weight > 0 else {}
            nothing = {"loss": 0.0, "clip_fraction": 0.0, "gradient_norm": 0.0, "share/skipped": 0.0, **measured}
            return nothing | ({"replay_error": 0.0} if self.on_policy else {})
        most = max(map(len, groups), default=1)
        sums, error = self.size.anew(most, lambda size: self._accumulate(groups, size, total, sigma_max, idle))
        self._before_step()
        norm = self.optimizer.step()
        taken = math.isfinite(norm)
        if taken:
            self._after_step()
        self.skipped = 0 if taken else self.skipped + 1
        errors = torch.zeros(self.processes.count, device=sums.device)  # one for each process, in the same message
        errors[self.processes.index] = error
        numbers = self.processes.sum(torch.cat([sums, errors])).tolist()
        (loss_sum, clipped, divergence_sum, divergences), found = numbers[: len(sums)], numbers[len(sums) :]
        replayed = {"replay_error": max(found)} if self.on_policy else {}
        self.on_policy = self.on_policy and not taken
        record = {
            "loss": loss_sum / float(total),
            "clip_fraction": clipped / float(total),
            "gradient_norm": norm,
            "share/skipped": float(not taken),
            **replayed,
        }
        if divergences:
            record["kl"] = divergence_sum / divergences
        return record

    def _accumulate(
        self, groups: list[Items], size: int, total: Tensor, sigma_max: Tensor, idle: Items | None
    ) -> tuple[Tensor, float]:
        """Leave the gradients of this process's items in the weights, by micro-batches of `size`.

        Returns (4,) sums for the log, and the largest |difference| of a log-density to the one stored when sampling.
        """
        device = self.policy.device
        self.optimizer.clear()
        calls = sum(-(-len(group) // size) for group in groups)
        waits = self.rounds(calls) - calls
        sums = torch.zeros(4, device=device)  # loss, clipped, kl, items whose kl was measured
        error = torch.zeros((), device=device)
        micros = (part for group in groups for part in group.split(size))
        for micro in itertools.chain(micros, () if idle is None else itertools.repeat(idle, waits)):
            counts = float(micro is not idle)
            mean, std, log_density = replay(self.policy, micro, self.step, self.eta, sigma_max)
            losses, clipped = self._surrogates(micro, mean, std, log_density)
            if self.config.kl_weight > 0:
                divergence = gaussian_kl(mean, self._reference_mean(micro, sigma_max), std)
                losses = losses + self.config.kl_weight * divergence.sum() / len(losses)
                measured = torch.stack([divergence.sum().detach(), torch.tensor(float(len(micro)), device=device)])
                sums[2:] += counts * measured
            self.optimizer.backward(*(losses / total * counts))
            sums[:2] += counts * torch.stack([losses.detach().sum(), clipped])
            error = torch.maximum(error, counts * (log_density.detach() - micro.log_density).abs().max())
        return sums, float(error)

    def _surrogates(self, items: Items, mean: Tensor, std: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Of items replayed now, the loss of each objective summed over them (objectives,), and how many are clipped.

        An item of two objectives counts as half clipped where one of them is. While the weights are those that sampled
        the items, the old density is the replayed one itself: a batch of another size rounds differently on a GPU, and
        would move ratios off 1.
        """
        old_density, old_mean = items.log_density, items.mean
        if self.on_policy:
            old_density, old_mean = log_density.detach(), mean.detach()
        log_ratio = log_density - old_density
        if self.config.ratio == "guard":
            if old_mean is None:
                raise ValueError("train.ratio=guard needs the means of the steps, which were not kept")
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
    def probe(self, batches: Sequence[Trajectories], trained: Tensor, sigmas: Tensor) -> tuple[dict[str, float], int]:
        """How far the policy is from the reference policy: one step each of a few finite images, and how many.

        `kl` in nats per latent element; `drift` is the squared change of the velocity over its square: that of no
        velocity at all has 1, one as long that has nothing to do with it 2.
        """
        batch, finite = _first_finite(batches)
        every = finite if len(finite) else torch.zeros(1, dtype=torch.long)  # a sharded model is called by all
        rows = every[torch.linspace(0, len(every) - 1, min(len(every), _PROBED)).round().long()]
        steps = trained[batch.images[rows], 0]
        items = Items.of(batch, rows, steps, torch.zeros(len(rows)), sigmas)
        mean, std, _ = replay(self.policy, items, self.step, self.eta, sigmas[1])
        reference = self._reference_mean(items, sigmas[1])
        # Of every sampler, the mean is that of no velocity plus the velocity times a number of the step.
        still = self.step(
            items.latents,
            torch.zeros_like(items.latents),
            items.sigma,
            items.sigma_next,
            eta=self.eta,
            next_sample=items.next_latents,
            sigma_max=sigmas[1],
        ).mean
        if not len(finite):
            return {"kl": 0.0, "drift": 0.0}, 0
        moved, length = ((x - reference).double().square().mean() for x in (mean, still))
        return {"kl": float(gaussian_kl(mean, reference, std).mean()), "drift": float(moved / length)}, len(rows)

    @torch.no_grad()
    def _reference_mean(self, items: Items, sigma_max: Tensor) -> Tensor:
        with self.policy.reference():
            return replay(self.policy, items, self.step, self.eta, sigma_max)[0]
