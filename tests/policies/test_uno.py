"""The policy against diffusers' own FluxPipeline, of the same tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import proofs
import pytest
import torch
from embedded import embedded
from PIL import Image
from proofs import PROMPT, STEPS, apart, half_way, noise, refused, stock, tune
from tiny_uno import euler, picture, policy_of, stock_picture
from torch import Tensor

from customized_grpo.config import LoraConfig, RolloutConfig
from customized_grpo.method import SAMPLERS
from customized_grpo.policies.uno import position_ids
from customized_grpo.protocols import Conditions
from customized_grpo.trainer.rollout import draw_images, noise_levels
from customized_grpo.trainer.update import Items, replay

# Rollouts


def test_without_references_it_is_the_pipelines_picture(flux_folder: Path) -> None:
    policy = policy_of(flux_folder)
    drawn, expected = euler(policy), stock_picture(stock(flux_folder), policy)
    assert drawn.shape == (1, 3, 32, 24) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 0.05
    assert apart(drawn, expected) < 1e-4


def test_every_input_reaches_the_velocity(flux_folder: Path) -> None:
    policy = policy_of(flux_folder)
    base = half_way(policy, policy.encode(PROMPT, [picture()]))
    others = {
        "prompt": half_way(policy, policy.encode("a blue cat", [picture()])),
        "reference": half_way(policy, policy.encode(PROMPT, [picture(seed=1)])),
        "no reference": half_way(policy, policy.encode(PROMPT, [])),
        "guidance": half_way(policy_of(flux_folder, guidance=4.0), policy.encode(PROMPT, [picture()])),
        "sigma": policy.velocity(noise(policy), torch.tensor([0.6]), policy.encode(PROMPT, [picture()])),
    }
    for name, other in others.items():
        assert apart(other, base) > 1e-4, name


def test_a_batch_equals_its_samples(flux_folder: Path, uno_adapter: Path) -> None:
    policy = policy_of(flux_folder, adapter=str(uno_adapter))
    tune(policy)
    texts = ["a red bird", "a blue cat on the snow", "the dog"]
    conditions = [policy.encode(text, [picture(seed=k), picture(24, 16, 9 + k)]) for k, text in enumerate(texts)]
    x, sigma = noise(policy, 3), torch.tensor([1.0, 0.6, 0.1])
    with torch.no_grad():
        batch = policy.velocity(x, sigma, Conditions.join(conditions))
        for i, row in enumerate(conditions):
            single = policy.velocity(x[i : i + 1], sigma[i : i + 1], row)
            assert apart(batch[i], single[0]) < 1e-5


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_on_policy_ratios_are_exactly_one(flux_folder: Path, uno_adapter: Path, sampler: Any) -> None:
    policy = policy_of(flux_folder, adapter=str(uno_adapter))
    tune(policy)
    config = embedded(RolloutConfig, sampler=sampler, steps=STEPS, batch_size=4, shift=None)
    sigmas = noise_levels(policy, config.steps, config.shift)
    conditions = [policy.encode(PROMPT, [picture(), picture(24, 16, 1)])] * 3
    keys = [(PROMPT, number) for number in range(3)]
    for batch in draw_images(policy, conditions, keys, config, sigmas, range(STEPS - 1), seed=0, iteration=0):
        for t in range(config.steps - 1):
            rows = torch.arange(len(batch))
            items = Items.of(batch, rows, torch.full((len(batch),), t), torch.zeros(len(batch)), sigmas)
            _, _, density = replay(policy, items, SAMPLERS[sampler], config.eta, sigmas[1])
            assert density.requires_grad
            assert torch.equal((density - items.log_density).exp(), torch.ones(len(batch)))


# References


def test_position_ids_stand_on_a_diagonal() -> None:
    one = position_ids([(2, 3), (1, 2)])
    picture_ids = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert one.tolist() == [*picture_ids, [0, 2, 3], [0, 2, 4]]
    two = position_ids([(2, 3), (1, 2), (2, 1)])
    assert two.tolist() == [*picture_ids, [0, 2, 3], [0, 2, 4], [0, 3, 5], [0, 4, 5]]
    assert one.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2])
def test_references_are_appended_with_their_ids(flux_folder: Path, count: int) -> None:
    policy = policy_of(flux_folder)
    pictures = [picture(16, 24, 1), picture(24, 16, 2)][:count]
    drawn = half_way(policy, policy.encode(PROMPT, pictures))
    # The picture has 4x3 tokens, the references 2x3 and 3x2.
    ids = [[0, r, c] for r in range(4) for c in range(3)]
    ids += [[0, r, c] for r in (4, 5) for c in (3, 4, 5)]
    ids += [[0, r, c] for r in (6, 7, 8) for c in (6, 7)] if count == 2 else []

    pipeline, tokens = stock(flux_folder), [noise(policy)]
    embeds, pooled, text_ids = pipeline.encode_prompt(PROMPT, max_sequence_length=24)
    for image in pictures:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            z = pipeline.vae.encode(pixels).latent_dist.mean
        z = ((z - 0.1) * 0.7).unfold(2, 2, 2).unfold(3, 2, 2)  # (1, channels, rows, columns, 2, 2)
        tokens.append(z.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))

    @torch.no_grad()
    def velocity(ids: Tensor) -> Tensor:
        return pipeline.transformer(
            hidden_states=torch.cat(tokens, 1),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([2.5]),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0][:, :12]

    right = torch.tensor(ids, dtype=torch.float32)
    assert apart(drawn, velocity(right)) < 1e-4
    moved, permuted = right.clone(), right.clone()
    moved[12:, 1:] += 1
    permuted[12:] = right[12:].flip(0)
    for wrong in (moved, permuted):
        assert apart(drawn, velocity(wrong)) > 1e-3
    if count == 2:
        swapped = half_way(policy, policy.encode(PROMPT, pictures[::-1]))
        assert apart(drawn, swapped) > 1e-3
        with pytest.raises(ValueError, match="different shapes"):
            Conditions.join([policy.encode(PROMPT, pictures), policy.encode(PROMPT, pictures[::-1])])


@pytest.mark.parametrize(("count", "sides"), [(1, (512, 297, 296)), (2, (320, 185, 184))])
def test_unos_own_sizes(flux_folder: Path, count: int, sides: tuple[int, int, int]) -> None:
    policy = policy_of(flux_folder, reference_sizes=None)
    image = picture(131, 76)
    width, shorter, cropped = sides
    rows = policy.encode(PROMPT, [image.transpose(Image.Transpose.ROTATE_90)] * count).rows
    given = image.transpose(Image.Transpose.ROTATE_90).resize((width, shorter), Image.Resampling.LANCZOS)
    given = given.crop((0, 0, width, cropped))
    expected = policy_of(flux_folder, reference_sizes=[(cropped, width)]).encode(PROMPT, [given] * count).rows
    assert rows.keys() == expected.keys() and f"reference_{count}" in rows
    for name, row in expected.items():
        assert torch.equal(rows[name], row), name
    upright = policy.encode(PROMPT, [image] * count).rows["reference_1"]
    assert upright.shape[1:3] == (width // 8, cropped // 8)
    square = policy.encode(PROMPT, [picture(49, 49)] * count).rows["reference_1"]
    assert square.shape[1:3] == (width // 8, width // 8)


def test_sizes_below_one_token_are_refused(flux_folder: Path) -> None:
    refused(lambda: policy_of(flux_folder, reference_sizes=[(7, 64)]), "policy.reference_sizes", "8x8")
    policy = policy_of(flux_folder, reference_sizes=None)
    refused(lambda: policy.encode(PROMPT, [picture(4, 400)]), "policy.reference_sizes", "8x8")


# What is trained


def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(flux_folder: Path, tmp_path: Path) -> None:
    policy = policy_of(flux_folder)
    tune(policy)
    policy.save(tmp_path)
    pipeline = stock(flux_folder)
    untuned = stock_picture(pipeline, policy)
    pipeline.load_lora_weights(tmp_path)
    tuned = stock_picture(pipeline, policy)
    assert apart(euler(policy), tuned) < 1e-4
    assert apart(tuned, untuned) > 1e-2
    other = policy_of(flux_folder)
    other.load(tmp_path)
    assert torch.equal(euler(other), euler(policy))


def test_only_the_lora_is_trainable_and_gets_gradients(flux_folder: Path, uno_adapter: Path) -> None:
    policy = policy_of(flux_folder, adapter=str(uno_adapter))
    tune(policy)
    named = policy.trainable()
    assert named and all(".lora_" in name and p.requires_grad for name, p in named.items())
    assert not any(name.startswith("proj_out") for name in named)
    policy.velocity(noise(policy), torch.tensor([0.5]), policy.encode(PROMPT, [picture()])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in named.values())


def test_gradient_checkpointing_changes_no_gradient(flux_folder: Path) -> None:
    proofs.checkpointing_changes_no_gradient(
        lambda checkpointing: policy_of(flux_folder, gradient_checkpointing=checkpointing),
        lambda policy: policy.encode(PROMPT, [picture()]),
    )


@proofs.lora_and_full
def test_reference_is_the_untuned_model(flux_folder: Path, uno_adapter: Path, lora: LoraConfig | None) -> None:
    policy = policy_of(flux_folder, adapter=str(uno_adapter), lora=lora)
    proofs.reference_is_untuned(policy, policy.encode(PROMPT, [picture(), picture(24, 16, 1)]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@proofs.lora_and_full
def test_loading_gives_back_every_bit(flux_folder: Path, tmp_path: Path, lora: LoraConfig | None, dtype: str) -> None:
    policy, other = (policy_of(flux_folder, lora=lora, dtype=dtype) for _ in range(2))
    proofs.loading_gives_back_every_bit(policy, other, tmp_path)
