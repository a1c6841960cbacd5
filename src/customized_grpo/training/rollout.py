"""Drawing images with the policy: stochastic groups that can be replayed, and deterministic pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.config import ConfigError, RolloutConfig
from customized_grpo.method import SAMPLERS, StepFunction, flow_sigmas
from customized_grpo.noise import normal
from customized_grpo.protocols import Conditions, Policy


@dataclass(frozen=True)
class Trajectories:
    """What B images went through on their way: enough to take every stochastic step again.

    These are the W steps from `first` on. `latents` (B, W + 1, ...) float32 before each of them and after the
    last, `mean` (B, W, ...) and `log_density` (B, W) of each. Steps outside them are deterministic and carry no
    policy gradient, as is the last one, to the clean image. `conditions` has B rows, `clean` (B, ...) is what
    `Policy.decode` takes, and `images` (B,) says which images of the iteration these are.
    """

    images: Tensor
    first: int
    latents: Tensor
    mean: Tensor
    log_density: Tensor
    clean: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.clean)


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
) -> Iterator[Trajectories]:
    """Draw an iteration's images in batches of at most `config.batch_size`, one after another.

    `conditions[i]` (one row) and `keys[i]` (its pair's key, its number in the group) belong to image i; the steps
    `stochastic` are. Each image has its own noise of every step; a group may share the noise that it starts from,
    and then takes the steps before the stochastic ones as one image.
    """
    for images in batches(conditions, config.batch_size):
        starts: dict[tuple[int | str, ...], int] = {}  # each initial noise of the batch, and an image that has it
        rows = []
        for i in images:
            pair, number = keys[i]
            start = (pair, "group" if config.shared_noise else number)
            starts.setdefault(start, i)
            rows.append(list(starts).index(start))
        initial = torch.cat([image_noise(policy, 1, seed, "initial", iteration, *start) for start in starts])
        steps = [image_noise(policy, config.steps - 1, seed, "steps", iteration, *keys[i]) for i in images]
        noise = torch.stack(steps)[:, stochastic.start : stochastic.stop]
        alone = Conditions.join([conditions[i] for i in starts.values()])
        before = euler(policy, alone, initial.to(policy.device).float(), sigmas[: stochastic.start + 1])
        joined = Conditions.join([conditions[i] for i in images])
        step = SAMPLERS[config.sampler]
        yield sample_trajectories(
            policy, torch.tensor(images), joined, before[rows], noise, sigmas, stochastic.start, step, config.eta
        )


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
) -> Trajectories:
    """Draw B images by W stochastic steps from step `first` on, and deterministic ones to the clean image.

    `latents` (B, ...) are those before step `first`, `step_noise` is (B, W, ...), `sigmas` (T + 1,) run from 1 to 0;
    `images` (B,) is passed on.
    """
    latents = latents.to(policy.device).float()
    visited, means, densities = [latents], [], []
    for t in range(first, first + step_noise.shape[1]):
        sigma = sigmas[t].expand(len(latents))
        taken = step(
            latents,
            policy.velocity(latents, sigma, conditions),
            sigma,
            sigmas[t + 1].expand(len(latents)),
            eta=eta,
            noise=step_noise[:, t - first].to(policy.device),
            sigma_max=sigmas[1],
        )
        latents = taken.next_sample
        visited.append(latents)
        means.append(taken.mean)
        densities.append(taken.log_density)
    clean = euler(policy, conditions, latents, sigmas[first + len(densities) :])
    x, mean, log_density = (torch.stack(part, 1) for part in (visited, means, densities))
    return Trajectories(images, first, x, mean, log_density, clean, conditions)


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
