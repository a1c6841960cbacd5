"""Drawing images with the policy: stochastic groups that can be replayed, their scores, and deterministic pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.config import RolloutConfig
from customized_grpo.method import SAMPLERS, StepFunction, flow_sigmas, x0_estimate
from customized_grpo.noise import normal
from customized_grpo.protocols import Conditions, Pair, Policy, Reward
from customized_grpo.rewards import score


@dataclass(frozen=True)
class Trajectories:
    """What B images went through on their way: enough to take every stochastic step again.

    `latents` (B, T, ...) float32 before each step t and `log_density` (B, T - 1) of the step taken
    from there; the last step, to the clean image, is deterministic and carries no policy gradient.
    `conditions` has B rows, `clean` (B, ...) is what `Policy.decode` takes, and `images` (B,) says which
    images of the iteration these are.
    """

    images: Tensor
    latents: Tensor
    log_density: Tensor
    clean: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.clean)


def noise_levels(policy: Policy, steps: int, shift: float | None) -> Tensor:
    """The rollout's sigmas (steps + 1,): the model's own, or the shifted ones where a shift is given."""
    levels = policy.sigmas(steps) if shift is None else flow_sigmas(steps, shift)
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
    *,
    seed: int,
    iteration: int,
) -> list[Trajectories]:
    """Draw an iteration's images in batches of at most `config.batch_size`.

    `conditions[i]` (one row) and `keys[i]` (its pair's key, its number in the group) belong to image i.
    Each image has its own noise of every step; a group may share the noise that it starts from.
    """
    drawn = []
    for images in batches(conditions, config.batch_size):
        initial, steps = [], []
        for pair, number in (keys[i] for i in images):
            start: int | str = "group" if config.shared_noise else number
            initial.append(image_noise(policy, 1, seed, "initial", iteration, pair, start))
            steps.append(image_noise(policy, config.steps - 1, seed, "steps", iteration, pair, number))
        joined = Conditions.join([conditions[i] for i in images])
        noise = torch.cat(initial), torch.stack(steps)
        step = SAMPLERS[config.sampler]
        drawn.append(sample_trajectories(policy, torch.tensor(images), joined, *noise, sigmas, step, config.eta))
    return drawn


@torch.no_grad()
def sample_trajectories(
    policy: Policy,
    images: Tensor,
    conditions: Conditions,
    initial: Tensor,
    step_noise: Tensor,
    sigmas: Tensor,
    step: StepFunction,
    eta: float,
) -> Trajectories:
    """Draw B images by T - 1 stochastic steps and one last deterministic one.

    `initial` is (B, ...) noise, `step_noise` (B, T - 1, ...), `sigmas` (T + 1,) from 1 to 0; `images` (B,)
    is passed on.
    """
    steps = len(sigmas) - 1
    latents, visited, densities = initial.to(policy.device).float(), [], []
    for t in range(steps):
        visited.append(latents)
        sigma = sigmas[t].expand(len(latents))
        velocity = policy.velocity(latents, sigma, conditions)
        if t == steps - 1:
            clean = x0_estimate(latents, velocity, sigma)
            break
        noise = step_noise[:, t].to(policy.device)
        taken = step(
            latents,
            velocity,
            sigma,
            sigmas[t + 1].expand(len(latents)),
            eta=eta,
            noise=noise,
            sigma_max=sigmas[1],
        )
        latents = taken.next_sample
        densities.append(taken.log_density)
    return Trajectories(images, torch.stack(visited, 1), torch.stack(densities, 1), clean, conditions)


def decode_images(policy: Policy, drawn: Sequence[Trajectories]) -> Tensor:
    """Pictures (images, 3, H, W) in [0, 1] of what `draw_images` drew, in the order of the images."""
    pictures = torch.cat([policy.decode(batch.clean) for batch in drawn])
    return pictures[torch.cat([batch.images for batch in drawn]).argsort().to(pictures.device)]


def score_groups(
    pictures: Tensor, rewards: Sequence[Reward], pairs: Sequence[Pair], group_size: int
) -> dict[str, Tensor]:
    """Scores (groups, G) by the rewards' names, of the pictures (groups * G, 3, H, W) drawn for `pairs`."""
    scores = score(rewards, pictures, [pair for pair in pairs for _ in range(group_size)])
    return {name: values.view(len(pairs), group_size) for name, values in scores.items()}


@torch.no_grad()
def sample_pictures(policy: Policy, conditions: Conditions, initial: Tensor, sigmas: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] by deterministic Euler steps from `initial` (B, ...)."""
    latents = initial.to(policy.device).float()
    for sigma, sigma_next in itertools.pairwise(sigmas):
        velocity = policy.velocity(latents, sigma.expand(len(latents)), conditions)
        latents = latents + (sigma_next - sigma) * velocity
    return policy.decode(latents)
