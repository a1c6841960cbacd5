"""Objectives on noised copies of sampled images (AWM, DiffusionNFT, a function of the user's own)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from customized_grpo.config import Config, ConfigError
from customized_grpo.method import OBJECTIVES, Objective, at_places, matching_error, noised, velocity_distance
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.callbacks import TrainerCallback
from customized_grpo.trainer.ema import MovingAverage
from customized_grpo.trainer.optimizer import Optimizer
from customized_grpo.trainer.processes import ALONE, Processes
from customized_grpo.trainer.rollout import Trajectories
from customized_grpo.trainer.update import ItemBatch, Updater, finite_images
from customized_grpo.utils.named import NamedError, find
from customized_grpo.utils.noise import generator, normal

#: Metrics of the squared error by place in the schedule: its noisiest third, the middle, the cleanest third.
_ERRORS = ("error/early", "error/middle", "error/late")


@dataclass(frozen=True)
class NoisedItems(ItemBatch):
    """N (image, noise level) items: `clean` latents of the images (B, ...), of which items have `rows` (N,).

    `sigma` (N,) are the noise levels at `places` (N,) of the schedule, in 0..1. The noise is a function of the items'
    `numbers` (N,) among `keys`, so that it is only in memory for one micro-batch. `condition_rows` (N,) are rows of
    `conditions`.
    """

    rows: Tensor
    sigma: Tensor
    places: Tensor
    numbers: Tensor
    condition_rows: Tensor
    clean: tuple[Tensor]  # in a tuple, because it is not split
    keys: Sequence[tuple[int | str, ...]]
    conditions: Conditions

    def latents_and_noise(self) -> tuple[Tensor, Tensor]:
        """Return clean latents and noise, (N, ...) each."""
        clean = self.clean[0][self.rows.to(self.clean[0].device)]
        noise = torch.stack([normal(tuple(clean.shape[1:]), *self.keys[number]) for number in self.numbers.tolist()])
        return clean, noise.to(clean.device)


class ForwardUpdater(Updater):
    """Trains `forward.levels` noise levels of each sampled image, by an objective of `customized_grpo.method`.

    Args:
        policy: Policy to train.
        optimizer: Optimizer of its weights.
        config: Settings of the run.
        processes: Processes that train together.
        **hooks: As for `Updater`.

    Raises:
        ConfigError: The objective is a function of the user's own that cannot be found or called.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        config: Config,
        processes: Processes = ALONE,
        **hooks: Callable[[], None],
    ) -> None:
        super().__init__(policy, optimizer, config, processes, **hooks)
        self.forward, self._method = config.forward, config.method
        self._objective, self._names = _objective_of(config)
        self._average: MovingAverage | None = None
        if self.forward.pull > 0 or "velocity_old" in self._names:
            self._average = MovingAverage(policy, self.forward.old_decay, "old.")
        self._keys: list[tuple[int | str, ...]] = []

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callback that updates and stores the policy's moving average."""
        return [] if self._average is None else [_OldPolicy(self._average)]

    @property
    def measures(self) -> tuple[str, ...]:
        """The share of clipped advantages, the distance from the moving average if there is one, and the errors."""
        distance = () if self._average is None else ("old_distance",)
        return ("share/clipped_advantages", *distance, *_ERRORS)

    def trained(self, stochastic: range, seed: int, iteration: int, images: Sequence[tuple[str, int]]) -> Tensor:
        """Sample the places of each image's noise levels in the schedule, (images, levels) in rising order.

        Each is uniform inside a step of its own, among all but the last step. They depend on (seed, iteration, image)
        only.
        """
        rows = []
        for image in images:
            random = generator(seed, "noise levels", iteration, *image)
            steps = torch.randperm(self.rollout.steps - 1, generator=random)[: self.forward.levels].sort().values
            rows.append(steps + torch.rand(len(steps), generator=random))
        self._keys = [
            (seed, "level noise", iteration, *image, level) for image in images for level in range(self.forward.levels)
        ]
        return torch.stack(rows)

    def items(self, batch: Trajectories, images: set[int], trained: Tensor, advantages: Tensor) -> NoisedItems:
        """Return the noise levels of the batch's images among `images`.

        `trained` (images, levels) and `advantages`, as many, are those of all images of the iteration.
        """
        rows = torch.tensor([i for i, image in enumerate(batch.images.tolist()) if image in images], dtype=torch.long)
        which = batch.images[rows]
        levels = trained.shape[1]
        return self._items(
            batch,
            rows.repeat_interleave(levels),
            trained[which].flatten(),
            (which[:, None] * levels + torch.arange(levels)).flatten(),
            advantages[which].flatten(),
        )

    def idle(self, batches: Sequence[Trajectories]) -> NoisedItems:
        """Return an item with advantage 0, of a finite image if there is any."""
        batch, rows, _ = finite_images(batches)
        zero = torch.zeros(1)
        return self._items(batch, rows[:1], zero, zero.long(), zero)

    def example(self, condition: Conditions, sigmas: Tensor) -> NoisedItems:
        """Return an item of zeros with this conditioning, to measure what one needs."""
        device, first = self.policy.device, torch.zeros(1, dtype=torch.long)
        clean = torch.zeros(1, *self.policy.latent_shape, device=device)
        zero = torch.zeros(1, device=device)
        return NoisedItems(zero, first, sigmas[:1], zero, first, first, (clean,), [("",)], condition)

    def _items(
        self, batch: Trajectories, rows: Tensor, places: Tensor, numbers: Tensor, advantages: Tensor
    ) -> NoisedItems:
        device = batch.clean.device
        return NoisedItems(
            advantages.to(device),
            rows,
            at_places(batch.sigmas, places.to(device)),
            (places / (self.rollout.steps - 1)).to(device),
            numbers,
            batch.condition_rows[rows],
            (batch.clean,),
            self._keys,
            batch.conditions,
        )

    def losses(self, items: NoisedItems) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective's loss of items, with the pull and the KL term, and measure it; see `Updater.losses`."""
        clean, noise = items.latents_and_noise()
        latents, target = noised(clean, noise, items.sigma), noise - clean
        conditions = items.conditions.select(items.condition_rows)
        old = None
        if self._average is not None:
            with torch.no_grad(), self._average.applied():
                old = self.policy.velocity(latents, items.sigma, conditions)
        velocity = self.policy.velocity(latents, items.sigma, conditions)
        arguments = {
            "velocity": velocity,
            "target": target,
            "velocity_old": old,
            "sigma": items.sigma,
            "advantages": items.advantages / self._method.advantage_clip,
            "scale": self.forward.scale,
            "beta": self.forward.beta,
        }
        losses = self._objective(**{name: arguments[name] for name in self._names}, **self.forward.options)
        if not isinstance(losses, Tensor) or losses.shape != items.sigma.shape:
            found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            name = self._method.objective
            raise ConfigError(f"method.objective: {name} returned {found}; return one loss per item, (N,)")
        distance = []
        if old is not None:
            apart = velocity_distance(velocity, old)
            losses = losses + self.forward.pull * apart
            distance = [_sum_and_count(apart.detach() / old.square().flatten(1).mean(1))]
        if self.config.kl_weight > 0:
            with torch.no_grad(), self.policy.reference():
                reference = self.policy.velocity(latents, items.sigma, conditions)
            losses = losses + self.config.kl_weight * velocity_distance(velocity, reference)
        clipped = (items.advantages.abs() >= self._method.advantage_clip).to(losses.dtype)
        error = matching_error(velocity.detach(), target, items.sigma)
        third = (items.places * len(_ERRORS)).long().clamp(max=len(_ERRORS) - 1)
        errors = [_sum_and_count(error[third == part]) for part in range(len(_ERRORS))]
        measured = torch.stack([_sum_and_count(clipped), *distance, *errors])
        return losses.sum()[None], measured, error.new_zeros(())

    @torch.no_grad()
    def probe(self, batches: Sequence[Trajectories], trained: Tensor) -> tuple[dict[str, float], int]:
        """Estimate the velocity's drift from the reference policy at one noise level of a few finite images.

        Returns `drift` as `Updater.probe` does, and the number of images.
        """
        batch, rows, count = finite_images(batches)
        which = batch.images[rows]
        items = self._items(batch, rows, trained[which, 0], which * trained.shape[1], torch.zeros(len(rows)))
        clean, noise = items.latents_and_noise()
        given = noised(clean, noise, items.sigma), items.sigma, items.conditions.select(items.condition_rows)
        velocity = self.policy.velocity(*given)
        with self.policy.reference():
            reference = self.policy.velocity(*given)
        if not count:
            return {"drift": 0.0}, 0
        change, length = (x.double().square().mean() for x in (velocity - reference, reference))
        return {"drift": float(change / length)}, count


class _OldPolicy(TrainerCallback):
    """Updates the policy's moving average after each iteration, and stores it in checkpoints."""

    def __init__(self, average: MovingAverage) -> None:
        self._average = average

    def on_step_end(self, trainer: Any, metrics: Mapping[str, float]) -> None:
        self._average.update()

    def state(self) -> dict[str, Tensor]:
        return self._average.tensors


def _objective_of(config: Config) -> tuple[Objective, list[str]]:
    """Return the configured objective, and the arguments that it takes from the trainer."""
    name, options = config.method.objective, config.forward.options
    try:
        objective: Objective = OBJECTIVES[name] if name in OBJECTIVES else find(name)
    except NamedError as error:
        raise ConfigError(f"method.objective: {error}") from error
    known = ("velocity", "target", "velocity_old", "sigma", "advantages", "scale", "beta")
    parameters = inspect.signature(objective).parameters.values()
    names = [one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    missing = [one.name for one in parameters if one.name in names and one.default is one.empty]
    if lacking := [one for one in missing if one not in (*known, *options)]:
        raise ConfigError(
            f"method.objective: {name} needs {lacking[0]!r}; give it in forward.options, or take some of "
            f"{', '.join(known)}"
        )
    takes_all = any(one.kind == one.VAR_KEYWORD for one in parameters)
    if not takes_all and (extra := [one for one in options if one not in names]):
        raise ConfigError(f"forward.options: {name} has no argument {extra[0]!r}; remove it")
    return objective, [one for one in names if one in known and one not in options]


def _sum_and_count(values: Tensor) -> Tensor:
    return torch.stack([values.sum(), torch.tensor(float(len(values)), device=values.device)])
