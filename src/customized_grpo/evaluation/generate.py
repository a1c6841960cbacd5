"""Images of a subject for one prompt, as `cgrpo generate` and the demo generate them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.rollout import image_noise, own_noise_levels, sample_images
from customized_grpo.utils.pixels import to_image


def generate(
    policy: Policy,
    prompt: str,
    references: Sequence[Image.Image],
    *,
    steps: int,
    seed: int,
    images: int,
) -> list[Image.Image]:
    """Generate images of the subject of `references` that follow the prompt, by deterministic sampling."""
    conditions = Conditions.join([policy.encode(prompt, references)] * images)
    shape = conditions.latent_shape
    noise = torch.cat([image_noise(policy, 1, seed, "generate", i, shape=shape) for i in range(images)])
    sigmas = own_noise_levels(policy, steps, conditions)
    return [to_image(image) for image in sample_images(policy, conditions, noise, sigmas)]
