"""Sampling: stochastic trajectories of groups that can be replayed, and deterministic images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from customized_grpo.config import ConfigError, RolloutConfig
from customized_grpo.method import SAMPLERS, StepFunction, flow_sigmas
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.memory import BatchSize, Result
from customized_grpo.utils.noise import normal


@dataclass(frozen=True)
class Trajectories:
    """Trajectories of B images, enough to replay their stored steps. Deterministic steps carry no policy gradient.

    `sigmas` (T + 1,) are the noise levels for this size of images. `steps` (B, S) are the stored stochastic steps of
    each image, in rising order, with their `log_density` (B, S) and, if stored, `mean` (B, S, ...). `latents` (B, K,
    ...) float32 are the states before and after them, each once: that before the j-th is at `places[:, j]` (B, S), that
    after it follows. Images of equal `starts` (B,), numbers below B, have one state and conditioning before the first
    stochastic step, `first`. `condition_rows` (B,) is each image's row of `conditions`, which its group shares; `clean`
    (B, ...) are its clean latents, `images` (B,) its number.
    """

    images: Tensor
    sigmas: Tensor
    first: int
    starts: Tensor
    steps: Tensor
    places: Tensor
    latents: Tensor
    mean: Tensor | None
    log_density: Tensor
    clean: Tensor
    conditions: Conditions
    condition_rows: Tensor

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def nbytes(self) -> int:
        """Bytes that are stored for the replay."""
        stored = (self.latents, self.log_density, *(() if self.mean is None else (self.mean,)))
        return sum(tensor.nbytes for tensor in stored)


def noise_levels(policy: Policy, steps: int, shift: float | None, conditions: Conditions | None = None) -> Tensor:
    """Return a rollout's sigmas (steps + 1,): the model's own, or shifted ones if a shift is given.

    The model's own may depend on the size of images: that of `conditions`, or the largest.

    Raises:
        ConfigError: Two of them are the same number.
    """
    levels = own_noise_levels(policy, steps, conditions) if shift is None else flow_sigmas(steps, shift)
    if not bool((levels.diff() < 0).all()):
        value = "the model's own" if shift is None else f"{shift:g}"
        raise ConfigError(
            f"rollout.shift: {value} makes two of {steps} noise levels the same; give one nearer to 1, "
            "or fewer rollout.steps"
        )
    return levels.to(policy.device)


def own_noise_levels(policy: Policy, steps: int, conditions: Conditions | None) -> Tensor:
    """Return the model's own sigmas (steps + 1,) for the conditions' size of images, or the largest; on its device."""
    shape = None if conditions is None else conditions.latent_shape
    return (policy.sigmas(steps) if shape is None else policy.sigmas(steps, shape)).to(policy.device)


def image_noise(policy: Policy, count: int, *key: int | str, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return `count` latents of standard normal noise for the image that `key` identifies, (count, *shape).

    `shape` is `Conditions.latent_shape`; None: the policy's.
    """
    return normal((count, *(shape or policy.latent_shape)), *key)


def batches(conditions: Sequence[Conditions], size: int) -> list[list[int]]:
    """Return the indices of one-row conditions in batches of at most `size` of equal shapes, in order.

    The shapes are those of embeddings, references and image: a batch has one bucket.
    """
    shapes: dict[object, list[int]] = {}
    for index, condition in enumerate(conditions):
        shapes.setdefault(condition.signature, []).append(index)
    return [rows[i : i + size] for rows in shapes.values() for i in range(0, len(rows), size)]


def in_batches(
    conditions: Sequence[Conditions],
    size: BatchSize,
    rounds: Callable[[int], int],
    sample: Callable[[Sequence[int]], Result],
) -> Iterator[tuple[Sequence[int], Result]]:
    """Yield indices and result of `draw` for batches of at most `size`, smaller ones if memory runs out.

    `rounds` maps this process's number of batches to that of all. The excess repeats the first batch and is dropped; it
    keeps processes in step that share a sharded model.
    """
    together = batches(conditions, size.size)
    ahead = rounds(len(together)) - len(together)
    for rows in together:
        yield from size.run(len(rows), lambda part, rows=rows: (rows[part], sample(rows[part])))  # type: ignore[misc]
    for _ in range(ahead):
        sample(together[0])


@contextmanager
def _sampling(policy: Policy) -> Iterator[None]:
    """Sample without gradients; a policy that has a context `sampling` reuses what does not change between steps."""
    with torch.no_grad(), getattr(policy, "sampling", nullcontext)():
        yield


def sample_groups(
    policy: Policy,
    conditions: Sequence[Conditions],
    keys: Sequence[tuple[str, int]],
    config: RolloutConfig,
    stochastic: range,
    *,
    seed: int,
    iteration: int,
    trained: Tensor | None = None,
    means: bool = False,
    size: BatchSize | None = None,
    rounds: Callable[[int], int] = lambda own: own,
) -> Iterator[Trajectories]:
    """Sample an iteration's images in batches.

    A group that shares its initial noise is one image up to the stochastic steps.

    Args:
        policy: Policy to sample from.
        conditions: Conditioning of each image, one row.
        keys: Pair key and number in the group of each image, which determine its noise with `seed` and `iteration`.
        config: Settings of the sampler and the noise levels.
        stochastic: Numbers of the stochastic steps; all others are deterministic.
        seed: Seed of the run.
        iteration: Number of the iteration.
        trained: Steps to store, (images, S); all stochastic ones if None.
        means: Whether to store the mean of each step.
        size: Batch size, which shrinks if memory runs out; that of `config` if not given.
        rounds: See `in_batches`.
    """
    size = size or BatchSize("rollout.batch_size", config.batch_size)

    def sample(images: Sequence[int]) -> Trajectories:
        own = [(pair, "group" if config.shared_noise else number) for pair, number in (keys[i] for i in images)]
        starts = list(dict.fromkeys(own))  # each initial noise of the batch once
        rows = [starts.index(start) for start in own]
        one = conditions[images[0]]  # a batch has one size of images
        sigmas = noise_levels(policy, config.steps, config.shift, one)
        noise = partial(image_noise, policy, shape=one.latent_shape)
        initial = torch.cat([noise(1, seed, "initial", iteration, *start) for start in starts])
        steps = [noise(config.steps - 1 if stochastic else 0, seed, "steps", iteration, *keys[i]) for i in images]
        alone = Conditions.join([conditions[images[own.index(start)]] for start in starts])
        before = euler(policy, alone, initial.to(policy.device).float(), sigmas[: stochastic.start + 1])
        shared = {id(conditions[i]): conditions[i] for i in images}  # one row for all images of a pair
        return sample_trajectories(
            policy,
            torch.tensor(images),
            Conditions.join(list(shared.values())),
            before[rows],
            torch.stack(steps)[:, stochastic.start : stochastic.stop],
            sigmas,
            stochastic.start,
            SAMPLERS[config.sampler],
            config.eta,
            steps=None if trained is None else trained[torch.tensor(images)],
            means=means,
            starts=torch.tensor(rows),
            condition_rows=torch.tensor([list(shared).index(id(conditions[i])) for i in images]),
        )

    yield from (part for _, part in in_batches(conditions, size, rounds, sample))


def sample_trajectories(
    policy: Policy,
    images: Tensor,
    conditions: Conditions,
    latents: Tensor,
    step_noise: Tensor,
    sigmas: Tensor,
    first: int,
    step: StepFunction,
    eta: float,
    *,
    steps: Tensor | None = None,
    means: bool = False,
    starts: Tensor | None = None,
    condition_rows: Tensor | None = None,
) -> Trajectories:
    """Sample B images by W stochastic steps from step `first` on, then by deterministic ones.

    `latents` (B, ...) are those before step `first`, `step_noise` is (B, W, ...), `sigmas` (T + 1,) run from 1 to 0. Of
    the steps, `steps` (B, S) are stored (all if None), and with `means` the mean of each. Rows of equal `starts` (B,),
    numbers below B, have equal latents and conditioning, and share their first velocity.
    """
    latents = latents.to(policy.device).float()
    stop = first + step_noise.shape[1]
    own = torch.arange(len(latents))
    condition_rows, starts = (own if given is None else given for given in (condition_rows, starts))
    each = conditions.select(condition_rows)
    steps = torch.arange(first, stop).expand(len(latents), -1) if steps is None else steps
    chosen = (steps[:, None] == torch.arange(first, stop)[None, :, None]).any(2)  # (B, W)
    none = chosen.new_zeros(len(chosen), 1)
    states = _Stored(torch.cat([chosen, none], 1) | torch.cat([none, chosen], 1), latents)
    densities = _Stored(chosen, latents.new_zeros(len(latents)))
    averages = _Stored(chosen, latents) if means else None
    states.add(latents)
    with _sampling(policy):
        for t in range(first, stop):
            now, after = (sigmas[i].expand(len(latents)) for i in (t, t + 1))
            velocity = velocity_once(policy, latents, now, each, starts if t == first else own)
            noise = step_noise[:, t - first].to(latents.device)
            taken = step(latents, velocity, now, after, eta=eta, noise=noise, sigma_max=sigmas[1])
            latents = taken.next_sample
            states.add(latents)
            densities.add(taken.log_density)
            if averages is not None:
                averages.add(taken.mean)
        clean = euler(policy, each, latents, sigmas[stop:])
    return Trajectories(
        images=images,
        sigmas=sigmas,
        first=first,
        starts=starts,
        steps=steps,
        places=states.places.gather(1, steps - first),
        latents=states.values,
        mean=None if averages is None else averages.values,
        log_density=densities.values,
        clean=clean,
        conditions=conditions,
        condition_rows=condition_rows,
    )


def velocity_once(policy: Policy, latents: Tensor, sigma: Tensor, conditions: Conditions, same: Tensor) -> Tensor:
    """Return `Policy.velocity` (B, ...), computed once for all rows of equal numbers in `same` (B,).

    Such rows must have equal arguments. A group that starts from one noise has as many of them as images.
    """
    numbers, place = torch.unique(same, return_inverse=True)
    if len(numbers) == len(same):
        return policy.velocity(latents, sigma, conditions)
    rows = torch.full_like(numbers, len(same)).scatter_reduce(0, place, torch.arange(len(same)), "amin")
    here = rows.to(latents.device)
    return policy.velocity(latents[here], sigma[here], conditions.select(rows))[place.to(latents.device)]


class _Stored:
    """Stores some of the tensors (B, ...) that are added: of row b those that `wanted` (B, additions) marks.

    `values` (B, K, ...) holds them; `places` (B, additions) is the place of an addition in it, for rows that want it.
    """

    def __init__(self, wanted: Tensor, like: Tensor) -> None:
        self.places = wanted.cumsum(1) - 1
        self._wanted, self._added = wanted, 0
        self.values = like.new_zeros(len(like), int(wanted.sum(1).max()), *like.shape[1:])

    def add(self, values: Tensor) -> None:
        rows = self._wanted[:, self._added].nonzero().flatten()
        places = self.places[rows, self._added]
        self._added += 1
        self.values[rows.to(values.device), places.to(values.device)] = values[rows.to(values.device)]


def euler(policy: Policy, conditions: Conditions, latents: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate latents (B, ...) from the first to the last of `sigmas` by deterministic steps."""
    with _sampling(policy):
        for sigma, sigma_next in itertools.pairwise(sigmas):
            velocity = policy.velocity(latents, sigma.expand(len(latents)), conditions)
            latents = latents + (sigma_next - sigma) * velocity
    return latents


def sample_each(
    policy: Policy,
    conditions: Sequence[Conditions],
    keys: Sequence[tuple[int | str, ...]],
    levels: Callable[[Conditions], Tensor],
    size: BatchSize,
    rounds: Callable[[int], int],
) -> list[Tensor]:
    """Sample one image (3, H, W) in [0, 1] for each one-row conditioning, by deterministic steps from its key's noise.

    `levels` returns the sigmas for a batch's conditioning; `size` and `rounds` are as for `in_batches`.
    """

    def sample(rows: Sequence[int]) -> Tensor:
        together = Conditions.join([conditions[row] for row in rows])
        noise = [image_noise(policy, 1, *keys[row], shape=together.latent_shape) for row in rows]
        return sample_images(policy, together, torch.cat(noise), levels(together))

    images = {
        row: image
        for rows, part in in_batches(conditions, size, rounds, sample)
        for row, image in zip(rows, part, strict=True)
    }
    return [images[row] for row in range(len(conditions))]


def sample_images(policy: Policy, conditions: Conditions, initial: Tensor, sigmas: Tensor) -> Tensor:
    """Sample images (B, 3, H, W) in [0, 1] by deterministic Euler steps from `initial` (B, ...)."""
    return policy.decode(euler(policy, conditions, initial.to(policy.device).float(), sigmas))
