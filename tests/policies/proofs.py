"""Parts of proofs that hold for every policy of a diffusers pipeline, on any device.

Images have 32x24 pixels and are sampled in `STEPS` steps, in float32 on the CPU unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from embedded import embedded
from PIL import Image
from torch import Tensor, nn

from customized_grpo.config import LoraConfig, PolicyConfig, RewardConfig
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.protocols import Conditions, Pair, Policy
from customized_grpo.trainer.grpo import Items, replay
from customized_grpo.trainer.rollout import Trajectories
from customized_grpo.utils.hub import ModelError

PROMPT = "a red bird in the snow"
STEPS = 4
HEIGHT, WIDTH = 32, 24
LORA = LoraConfig(rank=4, alpha=6)
FILE = "pytorch_lora_weights.safetensors"

#: Runs a test for both ways of tuning.
lora_and_full = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])

#: Runs a test for both schemes of quantisation, given the package that it needs.
schemes = pytest.mark.parametrize(("scheme", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
#: How near velocities of rounded weights come to those of the weights as they are, as a correlation.
NEAR = {"int8": 0.99, "nf4": 0.9}

P = TypeVar("P", bound=Policy)


def red(images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """How red images are."""
    return images[:, 0].mean((1, 2))


def upper(images: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """How light the upper half of images is."""
    return images[:, :, : images.shape[2] // 2].mean((1, 2, 3))


#: What a policy can be trained by.
REWARDS = [
    RewardConfig(kind="proofs:red", role="identity", name="red"),
    RewardConfig(kind="proofs:upper", role="prompt", name="upper"),
]


def built(policy_class: type[P], folder: Path, **settings: Any) -> P:
    """The policy of the pipeline in `folder`, with these settings of PolicyConfig over the common ones."""
    common: dict[str, Any] = {"device": "cpu", "height": HEIGHT, "width": WIDTH, "lora": LORA}
    policy = build_policy(embedded(PolicyConfig, path=str(folder), **{**common, **settings}))
    assert isinstance(policy, policy_class)
    return policy


def kontext(folder: Path, **changes: Any) -> PipelinePolicy:
    """The policy of a FluxKontextPipeline, with a reference of 16x24 pixels."""
    return built(PipelinePolicy, folder, **{"reference_sizes": [(16, 24)], **changes})  # type: ignore[type-abstract]


def stock(folder: Path, **parts: Any) -> Any:
    """The diffusers pipeline in `folder`, of the class that the folder names, with these parts in place of its own."""
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_image(height: int, width: int, seed: int) -> Image.Image:
    """An RGB image of uniform noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def noise(policy: Policy, batch: int = 1, seed: int = 0) -> Tensor:
    """Gaussian latents of so many images, the same numbers on each device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *policy.latent_shape, generator=generator).to(policy.device)


def half_way(policy: Policy, conditions: Conditions) -> Tensor:
    """The velocity of one image's noise at noise level 0.5."""
    return policy.velocity(noise(policy), torch.tensor([0.5]), conditions)


def learned(policy: PipelinePolicy, conditions: Conditions) -> list[Tensor]:
    """The velocity of the tuned policy, and the gradients of a number made of it, of parameters that have one."""
    tune(policy)
    velocity = half_way(policy, conditions)
    gradients = torch.autograd.grad(velocity.square().mean(), list(policy.trainable().values()), allow_unused=True)
    return [velocity.detach(), *(gradient for gradient in gradients if gradient is not None)]


@torch.no_grad()
def euler(policy: Policy, latents: Tensor, conditions: Conditions) -> Tensor:
    """The images of an Euler rollout through the policy, from these latents."""
    sigmas = policy.sigmas(STEPS)
    for now, after in pairwise(sigmas):
        velocity = policy.velocity(latents, now.expand(len(latents)), conditions)
        latents = latents + (after - now) * velocity
    return policy.decode(latents)


@torch.no_grad()
def flux_velocity(pipeline: Any, tokens: Sequence[Tensor], ids: Tensor, sigma: float) -> Tensor:
    """Velocity that the transformer of a FLUX.1 pipeline gives for the first of these tokens, from ids of all."""
    embeds, pooled, text_ids = pipeline.encode_prompt(PROMPT, max_sequence_length=24)
    velocity: Tensor = pipeline.transformer(
        hidden_states=torch.cat(list(tokens), 1),
        timestep=torch.tensor([sigma]),
        guidance=torch.tensor([2.5]),
        pooled_projections=pooled,
        encoder_hidden_states=embeds,
        txt_ids=text_ids,
        img_ids=ids,
        return_dict=False,
    )[0]
    return velocity[:, : tokens[0].shape[1]]


def tune(policy: Policy, scale: float = 0.1) -> None:
    """Change all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(scale * step.to(parameter))


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two finite tensors of one shape, on any device."""
    assert one.shape == other.shape and one.isfinite().all() and other.isfinite().all()
    return (one.cpu() - other.cpu()).abs().max().item()


def likeness(one: Tensor, other: Tensor) -> float:
    """The correlation of the numbers of two tensors."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).float())[0, 1])


def near_in_bfloat16(found: Tensor, expected: Tensor) -> None:
    """Check that results are as near as two computations in half precision."""
    assert float((found - expected).norm() / expected.norm()) < 0.02


def refused(action: Callable[[], object], *words: str) -> None:
    """The action raises a ModelError of one line that has all these words."""
    with pytest.raises(ModelError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def frozen_row(conditions: Conditions) -> None:
    """The conditioning is of one pair and carries no gradient."""
    assert len(conditions) == 1
    assert not any(row.requires_grad for row in conditions.rows.values())


def ratios_are_one(policy: Policy, batch: Trajectories, sampler: str, eta: float) -> None:
    """A replay with gradients of each stochastic step has the very log-density of the rollout."""
    rows = torch.arange(len(batch))
    for t in range(STEPS - 1):
        items = Items.of(batch, rows, torch.full((len(batch),), t), torch.zeros(len(batch)))
        _, _, density = replay(policy, items, SAMPLERS[sampler], eta)
        assert density.requires_grad
        assert torch.equal((density - items.log_density).exp(), torch.ones_like(density))


def only_the_lora_is_trainable(policy: PipelinePolicy) -> None:
    """Check that only the policy's parameters require a gradient, and that these are a LoRA's."""
    named = policy.trainable()
    assert named and all(".lora_" in name and p.requires_grad for name, p in named.items())
    trainable = {id(parameter) for parameter in named.values()}
    for part in policy._pipeline.components.values():
        for name, parameter in part.named_parameters() if isinstance(part, nn.Module) else ():
            assert parameter.requires_grad == (id(parameter) in trainable), name


def without_gradient(policy: Policy, conditions: Conditions) -> set[str]:
    """The trainable parameters that the velocity of the tuned policy does not depend on."""
    tune(policy)
    half_way(policy, conditions).square().mean().backward()
    return {name for name, p in policy.trainable().items() if p.grad is None or not p.grad.abs().sum() > 0}


def checkpointing_changes_no_gradient(build: Callable[[bool], Any], encode: Callable[[Any], Conditions]) -> None:
    """`build` makes the policy with gradient checkpointing and without it."""
    found = []
    for checkpointing in (False, True):
        policy = build(checkpointing)
        assert policy._transformer.is_gradient_checkpointing is checkpointing
        found.append(learned(policy, encode(policy)))
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


def reference_is_untuned(policy: Policy, conditions: Conditions) -> None:
    """Inside `reference()`, nested or not, is the untuned model without gradients; after it the tuned one."""
    untuned = half_way(policy, conditions).detach()
    tune(policy)
    tuned = half_way(policy, conditions)
    assert apart(tuned, untuned) > 1e-3
    with policy.reference():
        with policy.reference():
            pass
        inside = half_way(policy, conditions)
    assert torch.equal(inside, untuned)
    assert not inside.requires_grad
    assert torch.equal(half_way(policy, conditions), tuned)
    with pytest.raises(RuntimeError, match="inside"), policy.reference():
        raise RuntimeError("inside")
    again = half_way(policy, conditions)
    assert torch.equal(again, tuned)
    # A graph that was built before stays valid.
    weights = [p for p in policy.trainable().values() if p.requires_grad]
    one, other = (torch.autograd.grad(v.square().mean(), weights, allow_unused=True) for v in (tuned, again))
    assert any(gradient is not None for gradient in one)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


def loading_gives_back_every_bit(policy: Policy, other: Policy, folder: Path) -> None:
    """What the one saves after tuning, the other loads into the parameters that it has."""
    tune(policy)
    policy.save(folder)
    before = other.trainable()
    other.load(folder)
    after = other.trainable()
    assert after.keys() == policy.trainable().keys()
    for name, parameter in policy.trainable().items():
        assert torch.equal(after[name], parameter), name
        assert after[name].dtype == parameter.dtype and after[name].requires_grad
        assert after[name] is before[name]  # an optimizer may hold it
