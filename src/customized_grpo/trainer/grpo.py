"""GRPO's objective: the clipped surrogate on stochastic denoising steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.method import (
    SAMPLERS,
    Step,
    StepFunction,
    clipped_surrogate,
    gaussian_kl,
    guarded_log_ratio,
    guarded_loss,
)
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.rollout import Trajectories, velocity_once
from customized_grpo.trainer.update import ItemBatch, Updater, finite_images
from customized_grpo.utils.noise import generator


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
    def chosen(batch: Trajectories, images: set[int], trained: Tensor, advantages: Tensor) -> Items:
        """Return the trained steps of the batch's images among `images`, ordered by step.

        `trained` and `advantages` (images, S), or (images, S, 2), are those of all images of the iteration.
        """
        rows = torch.tensor([i for i, image in enumerate(batch.images.tolist()) if image in images], dtype=torch.long)
        which = batch.images[rows]
        steps, order = trained[which].flatten().sort(stable=True)
        rows = rows.repeat_interleave(trained.shape[1])[order]
        return Items.of(batch, rows, steps, advantages[which].flatten(0, 1)[order])


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


class GRPOUpdater(Updater):
    """Trains stochastic steps of the sampled trajectories on the clipped surrogate; arguments as of `Updater`."""

    replays = True

    @property
    def measures(self) -> tuple[str, ...]:
        """The share of clipped items, and the KL term if there is one."""
        return ("clip_fraction", "kl") if self.config.kl_weight > 0 else ("clip_fraction",)

    def trained(self, stochastic: range, seed: int, iteration: int, images: Sequence[tuple[str, int]]) -> Tensor:
        """Sample the denoising steps to train of each image; see `sample_trained_steps`."""
        return sample_trained_steps(stochastic, self.config.trained_fraction, seed, iteration, images)

    def items(self, batch: Trajectories, images: set[int], trained: Tensor, advantages: Tensor) -> Items:
        """Return the trained transitions; see `Items.chosen`."""
        return Items.chosen(batch, images, trained, advantages)

    def idle(self, batches: Sequence[Trajectories]) -> Items:
        """Return a transition with advantage 0, of a finite image if there is any."""
        batch, rows, _ = finite_images(batches)
        return Items.of(batch, rows[:1], batch.steps[rows[:1], 0], torch.zeros(1))

    def example(self, condition: Conditions, sigmas: Tensor) -> Items:
        """Return an item of zeros with this conditioning, to measure what one needs."""
        latents = torch.zeros(1, *self.policy.latent_shape, device=self.policy.device)
        zero = torch.zeros(1, device=self.policy.device)
        mean = latents if self.config.ratio == "guard" else None
        first = torch.zeros(1, dtype=torch.long)
        advantages = zero.expand(self.optimizer.objectives)[None]
        levels = sigmas[:1], sigmas[1:2], sigmas[1:2]
        return Items(advantages, latents, latents, *levels, mean, zero, condition, first, first)

    def losses(self, items: Items) -> tuple[Tensor, Tensor, Tensor]:
        """Return the clipped surrogate of items, with the KL term, and measure it; see `Updater.losses`."""
        mean, std, log_density = self._replay(items)
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

        Returns `kl` in nats per latent element and `drift`, as `Updater.probe` does, and the number of images.
        """
        batch, rows, count = finite_images(batches)
        items = Items.of(batch, rows, trained[batch.images[rows], 0], torch.zeros(len(rows)))
        mean, std, _ = self._replay(items)
        reference = self._reference_mean(items)
        # A sampler's mean is linear in the velocity, so that differences of means are those of velocities, scaled.
        still = _step(items, torch.zeros_like(items.latents), SAMPLERS[self.rollout.sampler], self.rollout.eta).mean
        if not count:
            return {"kl": 0.0, "drift": 0.0}, 0
        change, length = ((x - reference).double().square().mean() for x in (mean, still))
        return {"kl": float(gaussian_kl(mean, reference, std).mean()), "drift": float(change / length)}, count

    @torch.no_grad()
    def _reference_mean(self, items: Items) -> Tensor:
        with self.policy.reference():
            return self._replay(items)[0]

    def _replay(self, items: Items) -> tuple[Tensor, Tensor, Tensor]:
        return replay(self.policy, items, SAMPLERS[self.rollout.sampler], self.rollout.eta)
