"""What every policy of a diffusers pipeline must prove, whichever model it is.

The pictures have 32x24 pixels and are drawn in `STEPS` steps, in float32 on the CPU unless said otherwise. Every proof
holds for a policy on any device.
"""

from __future__ import annotations

import json
import shutil
import warnings
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

from customized_grpo.config import LoraConfig, PolicyConfig
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.policies.pipelines import PipelinePolicy
from customized_grpo.protocols import Conditions, Policy
from customized_grpo.trainer.rollout import Trajectories
from customized_grpo.trainer.update import Items, replay
from customized_grpo.utils.hub import ModelError

PROMPT = "a red bird in the snow"
STEPS = 4
HEIGHT, WIDTH = 32, 24
LORA = LoraConfig(rank=4, alpha=6)
FILE = "pytorch_lora_weights.safetensors"

#: Runs a test for both ways of tuning.
lora_and_full = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])

P = TypeVar("P", bound=Policy)

# Parts of a proof


def built(policy_class: type[P], folder: Path, **settings: Any) -> P:
    """The policy of the pipeline in `folder`, with these settings of PolicyConfig over the common ones."""
    common: dict[str, Any] = {"device": "cpu", "height": HEIGHT, "width": WIDTH, "lora": LORA}
    policy = build_policy(embedded(PolicyConfig, path=str(folder), **{**common, **settings}))
    assert isinstance(policy, policy_class)
    return policy


def stock(folder: Path, **parts: Any) -> Any:
    """The diffusers pipeline in `folder`, of the class that the folder names, with these parts in place of its own."""
    pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_picture(height: int, width: int, seed: int) -> Image.Image:
    """An RGB picture of uniform noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def noise(policy: Policy, batch: int = 1, seed: int = 0) -> Tensor:
    """Gaussian latents of so many images, the same numbers on each device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *policy.latent_shape, generator=generator).to(policy.device)


def half_way(policy: Policy, conditions: Conditions) -> Tensor:
    """The velocity of one image's noise at noise level 0.5."""
    return policy.velocity(noise(policy), torch.tensor([0.5]), conditions)


@torch.no_grad()
def euler(policy: Policy, latents: Tensor, conditions: Conditions) -> Tensor:
    """The pictures of an Euler rollout through the policy, from these latents."""
    sigmas = policy.sigmas(STEPS)
    for now, after in pairwise(sigmas):
        velocity = policy.velocity(latents, now.expand(len(latents)), conditions)
        latents = latents + (after - now) * velocity
    return policy.decode(latents)


def tune(policy: Policy, scale: float = 0.1) -> None:
    """Move all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(scale * step.to(parameter))


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two finite tensors of one shape, on any device."""
    assert one.shape == other.shape and one.isfinite().all() and other.isfinite().all()
    return (one.cpu() - other.cpu()).abs().max().item()


def refused(action: Callable[[], object], *words: str) -> None:
    """The action raises a ModelError of one line that has all these words."""
    with pytest.raises(ModelError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def renamed(folder: Path, copy: Path, pipeline_class: str) -> Path:
    """A copy of the pipeline in `folder` that says it is of another class."""
    shutil.copytree(folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline_class}))
    return copy


# Rollouts


def same_pictures(drawn: Tensor, expected: Tensor, *, spread: float) -> None:
    """The policy has drawn one proper picture, of at least this standard deviation, and the pipeline the same."""
    assert drawn.shape == (1, 3, HEIGHT, WIDTH) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > spread
    assert apart(drawn, expected) < 1e-4


@torch.no_grad()
def batch_equals_samples(policy: Policy, conditions: Sequence[Conditions], sigma: Tensor, within: float = 1e-5) -> None:
    """A tuned policy predicts and decodes a batch, one noise level for each of its images, as one by one."""
    tune(policy)
    x = noise(policy, len(conditions))
    batch = policy.velocity(x, sigma, Conditions.join(conditions))
    for i, row in enumerate(conditions):
        single = policy.velocity(x[i : i + 1], sigma[i : i + 1], row)
        assert apart(batch[i], single[0]) < within
    pictures = policy.decode(x)
    for i in range(len(x)):
        assert apart(pictures[i], policy.decode(x[i : i + 1])[0]) < 1e-5


def frozen_row(conditions: Conditions) -> None:
    """The conditions are those of one pair, and carry no gradient."""
    assert len(conditions) == 1
    assert not any(row.requires_grad for row in conditions.rows.values())


def ratios_are_one(policy: Policy, batch: Trajectories, sampler: str, eta: float, sigmas: Tensor) -> None:
    """A replay with gradients of each stochastic step has the very log-density of the rollout."""
    rows = torch.arange(len(batch))
    for t in range(STEPS - 1):
        items = Items.of(batch, rows, torch.full((len(batch),), t), torch.zeros(len(batch)), sigmas)
        _, _, density = replay(policy, items, SAMPLERS[sampler], eta, sigmas[1])
        assert density.requires_grad
        assert torch.equal((density - items.log_density).exp(), torch.ones_like(density))


def other_shapes_are_refused(policy: Policy, conditions: Conditions) -> None:
    """Neither two images of one row of conditions, nor an image that lacks a token, are predicted."""
    with pytest.raises(ValueError, match="do not fit"):
        policy.velocity(noise(policy, 2), torch.ones(2), conditions)
    with pytest.raises(ValueError, match="do not fit"):
        policy.velocity(noise(policy)[:, 1:], torch.ones(1), conditions)


# What is trained


def only_the_lora_is_trainable(policy: PipelinePolicy) -> None:
    """Of all parts of the pipeline, the policy's parameters require a gradient, and these are LoRA's."""
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
    gradients = []
    for checkpointing in (False, True):
        policy = build(checkpointing)
        tune(policy)
        assert policy._transformer.is_gradient_checkpointing is checkpointing
        half_way(policy, encode(policy)).square().mean().backward()
        gradients.append({n: p.grad for n, p in policy.trainable().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def reference_is_untuned(policy: Policy, conditions: Conditions) -> Tensor:
    """Inside `reference()`, nested or not, stands the untuned model without gradients; after it the tuned one.

    Returns the tuned velocity, whose graph was built before `reference()` was entered.
    """
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
    return tuned


# Saving and loading


def saved_lora_is_the_stock_pipelines(
    policy: Policy, conditions: Conditions, model: Path, folder: Path, draw: Callable[[Any], Tensor]
) -> None:
    """A LoRA saved to the empty `folder` is one file; with it the pipeline in `model` draws as the tuned policy.

    `draw` makes that pipeline's picture from `noise(policy)`, and the prompt and pictures of `conditions`.
    """
    tune(policy)
    policy.save(folder)
    assert [path.name for path in folder.iterdir()] == [FILE]
    drawn = euler(policy, noise(policy), conditions)
    pipeline = stock(model)
    untuned = draw(pipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.load_lora_weights(folder)
    tuned = draw(pipeline)
    assert apart(drawn, tuned) < 1e-4
    assert apart(drawn, untuned) > 1e-2


def saved_weights_are_the_stock_pipelines(
    policy: Policy,
    conditions: Conditions,
    model: Path,
    folder: Path,
    draw: Callable[[Any], Tensor],
    *,
    change: float,
) -> None:
    """All weights saved to `folder` draw the same in the pipeline in `model`, and move a pixel by `change` or more.

    `draw` is as for a LoRA.
    """
    tune(policy, 0.02)
    policy.save(folder)
    drawn = euler(policy, noise(policy), conditions)
    untuned = stock(model)
    transformer = type(untuned.transformer).from_pretrained(folder / "transformer")
    assert apart(drawn, draw(stock(model, transformer=transformer))) < 1e-4
    assert apart(drawn, draw(untuned)) > change


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
        assert after[name] is before[name]  # an optimiser may hold it


def near_in_bfloat16(found: Tensor, expected: Tensor) -> None:
    """As near as two ways of computing in half precision are."""
    difference = float((found - expected).norm() / expected.norm())
    assert difference < 0.02, difference
