"""Drawing images with the policy: stochastic groups that can be replayed, and deterministic pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.config import ConfigError, RolloutConfig
from customized_grpo.method import SAMPLERS, Step, StepFunction, flow_sigmas
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.memory import BatchSize
from customized_grpo.utils.noise import normal


@dataclass(frozen=True)
class Trajectories:
    """What B images went through on their way: enough to take every stochastic step again.

    Those are the S `steps` (B, S) of each image, in rising order: its stochastic ones, or those of them that will be
    trained. `latents` (B, K, ...) float32 holds an image's states before and after them, each once; the state before
    the j-th is at `places` (B, S) [:, j], the state after it follows. `log_density` (B, S) and, where it is kept,
    `mean` (B, S, ...) are those of each step. Other steps need no replay: deterministic ones carry no policy gradient.
    Images of equal `starts` (B,), numbers below B, have one state and one condition before the first stochastic step,
    `first`. An image's conditions are the row `condition_rows` (B,) of `conditions`, which its group shares;
    `clean` (B, ...) is what `Policy.decode` takes, and `images` (B,) says which images of the iteration these are.
    """

    images: Tensor
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
        """Of the states and numbers that are kept for the replay."""
        kept = (self.latents, self.log_density, *(() if self.mean is None else (self.mean,)))
        return sum(tensor.nbytes for tensor in kept)


def noise_levels(policy: Policy, steps: int, shift: float | None) -> Tensor:
    """The rollout's sigmas (steps + 1,): the model's own, or the shifted ones where a shift is given.

    Raises ConfigError where two of them are the same number: a step between them would have no length.
    """
    levels = policy.sigmas(steps) if shift is None else flow_sigmas(steps, shift)
    if not bool((levels.diff() < 0).all()):
        told = (
            f"{shift:g} makes two of {steps} noise levels the same" if shift is not None else "the model's own is none"
        )
        raise ConfigError(f"rollout.shift: {told}; give one nearer to 1, or fewer rollout.steps")
    return levels.to(policy.device)


def image_noise(policy: Policy, count: int, *key: int | str) -> Tensor:
    """`count` latents of standard normal noise for the image that `key` names, (count, ...)."""
    return normal((count, *policy.latent_shape), *key)


def batches(conditions: Sequence[Conditions], size: int) -> list[list[int]]:
    """Indices of one-row conditions in batches of at most `size`, equal shapes together, in order."""
    shapes: dict[object, list[int]] = {}
    for index, condition in enumerate(conditions):
        shapes.setdefault(condition.signature, []).append(index)
    return [rows[i : i + size] for rows in shapes.values() for i in range(0, len(rows), size)]


def draw_images(
    policy: Policy,
    conditions: Sequence[Conditions],
    keys: Sequence[tuple[str, int]],
    config: RolloutConfig,
    sigmas: Tensor,
    stochastic: range,
    *,
    seed: int,
    iteration: int,
    trained: Tensor | None = None,
    means: bool = False,
    size: BatchSize | None = None,
    rounds: Callable[[int], int] = lambda own: own,
) -> Iterator[Trajectories]:
    """Draw an iteration's images in batches of at most `config.batch_size`, one after another.

    `conditions[i]` (one row) and `keys[i]` (its pair's key, its number in the group) belong to image i; the steps
    `stochastic` are. Each image has its own noise of every step; a group may share the noise that it starts from,
    and then takes the steps before the stochastic ones as one image.

    Kept are the steps `trained` (images, S), all stochastic ones where it is None, and with `means` the mean of each.
    Batches shrink with `size` where memory runs out. `rounds` tells how often to draw for so many batches; what is
    drawn beyond them, the first once more, keeps this process in step with others and is dropped.
    """
    size = size or BatchSize("rollout.batch_size", config.batch_size)

    def draw(images: Sequence[int]) -> Trajectories:
        starts, rows = _starts(images, keys, shared=config.shared_noise)
        initial = torch.cat([image_noise(policy, 1, seed, "initial", iteration, *start) for start in starts])
        steps = [image_noise(policy, config.steps - 1, seed, "steps", iteration, *keys[i]) for i in images]
        noise = torch.stack(steps)[:, stochastic.start : stochastic.stop]
        alone = Conditions.join([conditions[i] for i in starts.values()])
        before = euler(policy, alone, initial.to(policy.device).float(), sigmas[: stochastic.start + 1])
        shared = {id(conditions[i]): conditions[i] for i in images}  # one for all images of a pair
        shown = [list(shared).index(id(conditions[i])) for i in images]
        step, which = SAMPLERS[config.sampler], torch.tensor(images)
        return sample_trajectories(
            policy,
            which,
            Conditions.join(list(shared.values())),
            before[rows],
            noise,
            sigmas,
            stochastic.start,
            step,
            config.eta,
            steps=None if trained is None else trained[which],
            means=means,
            starts=torch.tensor(rows),
            condition_rows=torch.tensor(shown),
        )

    together = batches(conditions, size.size)
    ahead = rounds(len(together)) - len(together)
    for images in together:
        yield from size.run(len(images), lambda part, images=images: draw(images[part]))  # type: ignore[misc]
    for _ in range(ahead):
        draw(together[0])


def _starts(
    images: Sequence[int], keys: Sequence[tuple[str, int]], *, shared: bool
) -> tuple[dict[tuple[int | str, ...], int], list[int]]:
    """Each initial noise of a batch with an image that has it, and the number of each image's noise among them."""
    starts: dict[tuple[int | str, ...], int] = {}
    rows = []
    for i in images:
        pair, number = keys[i]
        start = (pair, "group" if shared else number)
        starts.setdefault(start, i)
        rows.append(list(starts).index(start))
    return starts, rows


@torch.no_grad()
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
    """Draw B images by W stochastic steps from step `first` on, and deterministic ones to the clean image.

    `latents` (B, ...) are those before step `first`, `step_noise` is (B, W, ...), `sigmas` (T + 1,) run from 1 to 0;
    `images` (B,) is passed on. Of these steps `steps` (B, S) are kept, all where it is None, and with `means` the mean
    of each. `conditions` has a row for each image, or one for all whose `condition_rows` (B,) name it. Rows of equal
    `starts` (B,), numbers below B, have equal latents and conditions, and take their first
    velocity together; where it is None, each its own.
    """
    latents = latents.to(policy.device).float()
    stop = first + step_noise.shape[1]
    own = torch.arange(len(latents))
    condition_rows, starts = (own if given is None else given for given in (condition_rows, starts))
    each = conditions.select(condition_rows)
    steps = torch.arange(first, stop).expand(len(latents), -1) if steps is None else steps
    chosen = _chosen(steps, first, stop)
    visited, densities = _Kept(_states(chosen), latents), _Kept(chosen, latents.new_zeros(len(latents)))
    averages = _Kept(chosen, latents) if means else None
    visited.add(latents)
    for t in range(first, stop):
        velocity = velocity_once(policy, latents, sigmas[t].expand(len(latents)), each, starts if t == first else own)
        taken = _take(step, latents, velocity, sigmas, t, eta, step_noise[:, t - first])
        latents = taken.next_sample
        visited.add(latents)
        densities.add(taken.log_density)
        if averages is not None:
            averages.add(taken.mean)
    clean = euler(policy, each, latents, sigmas[stop:])
    return Trajectories(
        images=images,
        first=first,
        starts=starts,
        steps=steps,
        places=visited.places.gather(1, steps - first),
        latents=visited.values,
        mean=None if averages is None else averages.values,
        log_density=densities.values,
        clean=clean,
        conditions=conditions,
        condition_rows=condition_rows,
    )


def _take(
    step: StepFunction, latents: Tensor, velocity: Tensor, sigmas: Tensor, t: int, eta: float, noise: Tensor
) -> Step:
    """The stochastic step t of latents (B, ...), by noise of their shape."""
    now, after = (sigma.expand(len(latents)) for sigma in (sigmas[t], sigmas[t + 1]))
    return step(latents, velocity, now, after, eta=eta, noise=noise.to(latents.device), sigma_max=sigmas[1])


def velocity_once(policy: Policy, latents: Tensor, sigma: Tensor, conditions: Conditions, same: Tensor) -> Tensor:
    """`Policy.velocity` (B, ...), with one row of the model's batch for all rows of equal numbers in `same` (B,).

    Such rows must have the same arguments. A group that starts from one noise has as many of them as images.
    """
    numbers, place = torch.unique(same, return_inverse=True)
    if len(numbers) == len(same):
        return policy.velocity(latents, sigma, conditions)
    rows = torch.full_like(numbers, len(same)).scatter_reduce(0, place, torch.arange(len(same)), "amin")
    here = rows.to(latents.device)
    return policy.velocity(latents[here], sigma[here], conditions.select(rows))[place.to(latents.device)]


class _Kept:
    """Some of what is added, of each row only what `wanted` (B, number of additions), bool, says: `values` (B, K, ...).

    An addition's place in `values` is `places` (B, additions), for the rows that want it. `like` (B, ...) is one.
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


def _chosen(steps: Tensor, first: int, stop: int) -> Tensor:
    """Which of the steps from `first` to before `stop` are among an image's `steps` (B, S), (B, stop - first)."""
    return (steps[:, None] == torch.arange(first, stop)[None, :, None]).any(2)


def _states(chosen: Tensor) -> Tensor:
    """Which of the states before, between and after steps lie before or after a `chosen` one, (B, steps + 1)."""
    none = chosen.new_zeros(len(chosen), 1)
    return torch.cat([chosen, none], 1) | torch.cat([none, chosen], 1)


@torch.no_grad()
def euler(policy: Policy, conditions: Conditions, latents: Tensor, sigmas: Tensor) -> Tensor:
    """Latents (B, ...) at the last of `sigmas`, from those at the first, by deterministic steps."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        velocity = policy.velocity(latents, sigma.expand(len(latents)), conditions)
        latents = latents + (sigma_next - sigma) * velocity
    return latents


def sample_pictures(policy: Policy, conditions: Conditions, initial: Tensor, sigmas: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] by deterministic Euler steps from `initial` (B, ...)."""
    return policy.decode(euler(policy, conditions, initial.to(policy.device).float(), sigmas))
