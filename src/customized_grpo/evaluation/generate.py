"""Images of a subject for one prompt, as `cgrpo generate` and the demo generate them."""

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.memory import BatchSize, measure_sampling
from customized_grpo.trainer.prompts import cut_prompts
from customized_grpo.trainer.rollout import image_noise, own_noise_levels, sample_images
from customized_grpo.utils.pixels import to_image

_LOG = logging.getLogger(__name__)


def generate(
    policy: Policy,
    prompt: str,
    references: Sequence[Image.Image],
    *,
    steps: int,
    seed: int,
    images: int,
    batch_size: int | Literal["auto"] = 8,
) -> list[Image.Image]:
    """Generate images of the subject of `references` that follow the prompt, by deterministic sampling."""
    return list(generated(policy, prompt, references, steps=steps, seed=seed, images=images, batch_size=batch_size))


def generated(
    policy: Policy,
    prompt: str,
    references: Sequence[Image.Image],
    *,
    steps: int,
    seed: int,
    images: int,
    batch_size: int | Literal["auto"],
) -> Iterator[Image.Image]:
    """Yield the images of `generate` as their batches are done; a batch is halved if memory runs out."""
    if line := cut_prompts([prompt], "the policy's text encoder", policy):
        _LOG.warning("%s", line)
    condition = policy.encode(prompt, references)
    sigmas = own_noise_levels(policy, steps, condition)
    shape = condition.latent_shape
    size = BatchSize("rollout.batch_size", batch_size)
    measure_sampling(size, policy, condition, images, lambda own: own)

    def sample(part: slice) -> Tensor:
        numbers = range(images)[part]
        noise = torch.cat([image_noise(policy, 1, seed, "generate", i, shape=shape) for i in numbers])
        return sample_images(policy, Conditions.join([condition] * len(numbers)), noise, sigmas)

    for batch in size.run(images, sample):
        yield from map(to_image, batch)
