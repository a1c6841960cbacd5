"""Images in the size nearest to the reference's aspect ratio, and references cropped to one of several sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from embedded import embedded
from proofs import HEIGHT, PROMPT, STEPS, WIDTH, apart, noise, random_image
from tiny_models import Model

from customized_grpo.config import RolloutConfig
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.trainer.grpo import Items
from customized_grpo.trainer.rollout import image_noise, sample_groups

SIZES = [(HEIGHT, WIDTH), (24, 40), (32, 32)]
pipelines = pytest.mark.parametrize("model", ["flux-kontext", "flux2-klein", "qwen-image-edit"], indirect=True)


@pipelines
def test_a_rollout_of_the_nearest_size_is_the_pipelines(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(24, 16), (16, 16)])  # (width, height)
    policy, photo = model.policy(sizes=SIZES, reference_sizes=None), random_image(75, 120, 3)
    conditions = policy.encode(PROMPT, [photo])
    channels = policy.latent_shape[-1]
    assert conditions.latent_shape == (3, 5, channels)
    assert policy.latent_shape == (4, 4, channels), "the largest"
    config = embedded(RolloutConfig, steps=STEPS, shift=None)
    (batch,) = sample_groups(policy, [conditions], [("a", 0)], config, range(0), seed=0, iteration=0)
    found = policy.decode(batch.clean)
    latents = image_noise(policy, 1, 0, "initial", 0, "a", "group", shape=conditions.latent_shape)
    call: dict[str, Any] = {"height": 24, "width": 40, "image": photo, "latents": latents.flatten(1, 2)}
    if model.name == "flux-kontext":
        call |= {"max_area": 24 * 40, "_auto_resize": True}
    if model.name == "flux2-klein":
        call |= {"latents": latents.permute(0, 3, 1, 2)}
    shared = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "pt"}
    usual = model.source.arguments(noise(model.policy()), [photo])
    expected = model.stock(policy)(**{**shared, **usual, **call}).images
    assert found.shape[2:] == (24, 40) and apart(found, expected) < 1e-4


@pytest.mark.parametrize("model", ["flux2-klein", "qwen-image-edit"], indirect=True)
def test_a_rollout_and_its_update_have_the_noise_levels_of_each_size(model: Model) -> None:
    policy = model.policy(sizes=SIZES)
    wide, square = (policy.encode(PROMPT, [random_image(*size, 3)]) for size in ((75, 120), (64, 64)))
    config = embedded(RolloutConfig, sampler="flow", steps=STEPS, shift=None)
    keys = [("wide", 0), ("square", 0)]
    every = sample_groups(policy, [wide, square], keys, config, range(STEPS - 1), seed=0, iteration=0)
    levels = []
    for batch, conditions in zip(every, (wide, square), strict=True):
        proofs.ratios_are_one(policy, batch, "flow", config.eta)
        items = Items.of(batch, torch.zeros(2, dtype=torch.long), torch.tensor([1, 2]), torch.zeros(2))
        levels.append(policy.sigmas(STEPS, conditions.latent_shape))
        assert torch.equal(
            torch.stack([items.sigma, items.sigma_next]), torch.stack([levels[-1][1:3], levels[-1][2:4]])
        )
        assert torch.equal(items.sigma_max, levels[-1][[1, 1]])
    assert not torch.equal(*levels)


@pipelines
def test_a_single_size_changes_nothing(model: Model) -> None:
    fixed, one = model.policy(), model.policy(sizes=[(HEIGHT, WIDTH)])
    assert fixed.latent_shape == one.latent_shape == (math.prod((4, 3)), fixed.latent_shape[-1])
    images = [proofs.euler(policy, noise(policy), model.encode(policy)) for policy in (fixed, one)]
    assert torch.equal(*images) and model.encode(one).latent_shape is None


def test_without_references_the_size_is_height_and_width(folder: Path) -> None:
    policy = proofs.built(FluxKontextPolicy, folder, sizes=SIZES)
    conditions = policy.encode(PROMPT, [])
    assert conditions.latent_shape == (4, 3, policy.latent_shape[-1])
    with pytest.raises(ValueError, match=r"conditions do not fit; latents are \(B, 4, 3, 16\)"):
        policy.velocity(torch.zeros(1, 4, 4, 16), torch.ones(1), conditions)


@pytest.mark.parametrize("model", ["uno", "flux2-klein", "qwen-image-edit"], indirect=True)
def test_a_reference_is_cropped_to_the_nearest_of_several_sizes_and_not_stretched(model: Model) -> None:
    several, single = [(64, 96), (96, 64)], [(64, 96)]
    photo = random_image(64, 128, 0)
    middle = photo.crop((16, 0, 112, 64))
    cropped, expected = (model.policy(reference_sizes=several).encode(PROMPT, [one]) for one in (photo, middle))
    stretched = model.policy(reference_sizes=single).encode(PROMPT, [photo])
    tokens = [one.rows["reference_1"] for one in (cropped, expected, stretched)]
    assert tokens[0].shape[1:3] == (8, 12)
    assert torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])
