"""The policy against diffusers' own QwenImageEditPlusPipeline, of the same tiny random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import proofs
import pytest
import tiny_qwen
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from embedded import embedded
from PIL import Image
from proofs import PROMPT, STEPS, apart, euler, lora_and_full, noise, refused, stock, tune
from torch import Tensor

from customized_grpo.config import LoraConfig, RolloutConfig
from customized_grpo.policies.qwen_image_edit import QwenImageEditPolicy
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions
from customized_grpo.trainer.rollout import Trajectories, draw_images, noise_levels


@pytest.fixture(scope="module", autouse=True)
def _no_torchvision() -> Iterator[None]:
    with tiny_qwen.without_video():
        yield


@pytest.fixture(autouse=True)
def _small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's own sizes, at a 256th of their area and less."""
    monkeypatch.setattr(plus, "VAE_IMAGE_SIZE", 64 * 64)
    monkeypatch.setattr(plus, "CONDITION_IMAGE_SIZE", 96 * 96)


@pytest.fixture(scope="module")
def folder_2509(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen.save_qwen_image_edit(tmp_path_factory.mktemp("2509"))


@pytest.fixture(scope="module")
def folder_2511(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the 2511 model: references are modulated as at time 0. Its noise levels have a fixed shift."""
    path = tmp_path_factory.mktemp("2511")
    return tiny_qwen.save_qwen_image_edit(path, zero_cond_t=True, dynamic_shifting=False)


@pytest.fixture(params=["folder_2509", "folder_2511"])
def either(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def policy_of(folder: Path, **changes: Any) -> QwenImageEditPolicy:
    defaults = {"kind": "qwen-image-edit", "reference_sizes": None}
    return proofs.built(QwenImageEditPolicy, folder, **{**defaults, **changes})


def picture(height: int = 40, width: int = 50, seed: int = 0) -> Image.Image:
    return proofs.random_picture(height, width, seed)


#: At the pipeline's own sizes, here: 64x64 and 96x32 pixels.
TWO = [picture(), picture(90, 30, seed=1)]


def pipeline_picture(
    pipeline: QwenImageEditPlusPipeline, latents: Tensor, images: list[Image.Image], **options: Any
) -> Tensor:
    """What the pipeline itself draws from these latents, without true classifier-free guidance unless told so."""
    defaults = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "pt", "true_cfg_scale": 1.0}
    return pipeline(
        image=images,
        height=32,
        width=24,
        latents=latents,
        **{**defaults, **options},
    ).images


# Rollouts


@pytest.mark.parametrize("images", [TWO[:1], TWO, TWO[::-1]], ids=["one", "two", "two swapped"])
def test_euler_rollout_is_the_pipelines_picture(either: Path, images: list[Image.Image]) -> None:
    policy = policy_of(either)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, images))
    expected = pipeline_picture(stock(either), noise(policy), images)
    proofs.same_pictures(drawn, expected, spread=0.02)


def test_true_cfg_is_the_pipelines(either: Path) -> None:
    policy = policy_of(either, true_cfg=4.0, negative_prompt=" ")
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, TWO))
    pipeline = stock(either)
    expected = pipeline_picture(pipeline, noise(policy), TWO, true_cfg_scale=4.0, negative_prompt=" ")
    assert apart(drawn, expected) < 1e-4
    assert apart(drawn, pipeline_picture(pipeline, noise(policy), TWO)) > 1e-3


def test_sizes_that_are_given_replace_the_pipelines(folder_2509: Path) -> None:
    policy = policy_of(folder_2509, reference_sizes=[(65, 71), (96, 32)])  # no multiples of a token
    conditions = policy.encode(PROMPT, TWO)
    assert conditions.rows["reference_1"].shape == (1, 8, 8, 16)
    assert conditions.rows["reference_2"].shape == (1, 12, 4, 16)
    expected = pipeline_picture(stock(folder_2509), noise(policy), TWO)
    assert apart(euler(policy, noise(policy), conditions), expected) < 1e-4
    other = policy_of(folder_2509, reference_sizes=[(16, 24)]).encode(PROMPT, TWO)
    assert {tuple(row.shape) for name, row in other.rows.items() if "reference" in name} == {(1, 2, 3, 16)}
    assert torch.equal(other.rows["prompt_embeds"], conditions.rows["prompt_embeds"])


def test_noise_levels_are_the_schedulers(folder_2509: Path, folder_2511: Path) -> None:
    dynamic, static = (policy_of(f).sigmas(STEPS) for f in (folder_2509, folder_2511))
    assert static.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert dynamic[0] == 1 and dynamic[-2] == pytest.approx(0.02) and dynamic[-1] == 0
    assert dynamic.dtype == static.dtype == torch.float32
    pipeline = stock(folder_2509)
    pipeline_picture(pipeline, noise(policy_of(folder_2509)), TWO[:1])
    assert torch.equal(dynamic, pipeline.scheduler.sigmas)
    assert policy_of(folder_2511).sigmas(1).tolist() == [1, 0]
    for path, steps in ((folder_2511, 0), (folder_2509, 0), (folder_2509, 1)):
        with pytest.raises(ValueError, match="steps"):
            policy_of(path).sigmas(steps)


def test_every_input_reaches_the_velocity(either: Path) -> None:
    policy = policy_of(either)
    x, half = noise(policy), torch.tensor([0.5])
    conditions = policy.encode(PROMPT, TWO)
    seen = policy.encode(PROMPT, [picture(seed=2), TWO[1]])
    base = policy.velocity(x, half, conditions)
    others = {
        "latents": policy.velocity(noise(policy, seed=1), half, conditions),
        "sigma": policy.velocity(x, torch.tensor([0.51]), conditions),
        "prompt": policy.velocity(x, half, policy.encode("a blue cat", TWO)),
        "order": policy.velocity(x, half, policy.encode(PROMPT, TWO[::-1])),
        "what the text encoder sees": policy.velocity(
            x, half, Conditions({**conditions.rows, "prompt_embeds": seen.rows["prompt_embeds"]})
        ),
        "tokens": policy.velocity(
            x, half, Conditions({**seen.rows, "prompt_embeds": conditions.rows["prompt_embeds"]})
        ),
    }
    for name, other in others.items():
        assert apart(base, other) > 1e-4, name


def test_conditions_are_encoded_once_and_frozen(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    calls: list[object] = []
    policy._pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(None))
    conditions = policy.encode(PROMPT, TWO)
    proofs.frozen_row(conditions)
    assert conditions.rows.keys() == {"prompt_embeds", "reference_1", "reference_2"}
    euler(policy, noise(policy), conditions)
    assert len(calls) == 1
    # A picture of another mode is read as RGB, and encoding draws no random numbers.
    again = policy.encode(PROMPT, [TWO[0].convert("RGBA"), TWO[1]])
    assert all(torch.equal(again.rows[name], row) for name, row in conditions.rows.items())


def test_a_batch_equals_its_samples(either: Path) -> None:
    policy = policy_of(either)
    pairs = [("a red bird in the snow", 0), ("a blue cat in the hats", 1), ("the dogs on a big hill", 2)]
    conditions = [policy.encode(prompt, [picture(seed=seed), TWO[1]]) for prompt, seed in pairs]
    proofs.batch_equals_samples(policy, conditions, torch.tensor([1.0, 0.6, 0.1]))


def test_prompts_of_other_lengths_and_other_grids_are_no_company(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    one = policy.encode(PROMPT, TWO)
    for other in (policy.encode(PROMPT + "y", TWO), policy.encode(PROMPT, [TWO[0], picture(30, 90)])):
        with pytest.raises(ValueError, match="different shapes"):
            Conditions.join([one, other])


@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_on_policy_ratios_are_exactly_one(either: Path, sampler: Any) -> None:
    policy = policy_of(either)
    tune(policy)
    config = embedded(RolloutConfig, sampler=sampler, steps=STEPS, batch_size=4, shift=None)
    sigmas = noise_levels(policy, config.steps, config.shift)
    prompts = ["a red bird", "a blue cat on the snow"]
    conditions = [policy.encode(prompt, TWO) for prompt in prompts for _ in range(3)]
    keys = [(prompt, number) for prompt in prompts for number in range(3)]
    batches = draw_images(policy, conditions, keys, config, sigmas, range(STEPS - 1), seed=0, iteration=0)
    drawn: list[Trajectories] = list(batches)
    assert [batch.images.tolist() for batch in drawn] == [[0, 1, 2], [3, 4, 5]]
    for batch in drawn:
        proofs.ratios_are_one(policy, batch, sampler, config.eta, sigmas)


def test_shapes_that_do_not_fit_are_refused(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    proofs.other_shapes_are_refused(policy, policy.encode(PROMPT, TWO[:1]))


# What is trained


def test_only_the_lora_is_trainable_and_gets_gradients(folder_2509: Path) -> None:
    policy = policy_of(folder_2509)
    proofs.only_the_lora_is_trainable(policy)
    named = policy.trainable()
    assert len({id(parameter) for parameter in named.values()}) == 2 * 12 * 2  # blocks, layers of each, A and B
    still = proofs.without_gradient(policy, policy.encode(PROMPT, TWO))
    # What only moves the text tokens that leave the last block.
    ends = (".attn.add_q_proj.", ".attn.to_add_out.", ".txt_mlp.net.0.proj.", ".txt_mlp.net.2.")
    assert still == {n for n in named if "transformer_blocks.1." in n and any(end in n for end in ends)}


def test_gradient_checkpointing_changes_no_gradient(folder_2511: Path) -> None:
    proofs.checkpointing_changes_no_gradient(
        lambda checkpointing: policy_of(folder_2511, gradient_checkpointing=checkpointing),
        lambda policy: policy.encode(PROMPT, TWO),
    )


@lora_and_full
def test_reference_is_the_untuned_model(folder_2509: Path, lora: LoraConfig | None) -> None:
    policy = policy_of(folder_2509, lora=lora)
    proofs.reference_is_untuned(policy, policy.encode(PROMPT, TWO))


def test_bfloat16_meets_the_pipelines_very_bits(either: Path) -> None:
    policy = policy_of(either, dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    assert policy._transformer.img_in.weight.dtype == torch.bfloat16
    conditions = policy.encode(PROMPT, TWO)
    assert {row.dtype for row in conditions.rows.values()} == {torch.bfloat16}
    pipeline = stock(either, dtype=torch.bfloat16)
    expected = pipeline_picture(pipeline, noise(policy), TWO, output_type="latent")
    pictures = pipeline_picture(pipeline, noise(policy), TWO)
    latents = noise(policy).to(torch.bfloat16)
    for now, after in pairwise(policy.sigmas(STEPS)):  # rounded where the pipeline rounds
        with torch.no_grad():
            with libraries_own():  # by the pipeline's own layers, the very bits; with ours, near
                velocity = policy.velocity(latents.float(), now.expand(1), conditions)
            proofs.near_in_bfloat16(policy.velocity(latents.float(), now.expand(1), conditions), velocity)
        assert velocity.dtype == torch.float32
        latents = (latents.float() + (after - now) * velocity.to(torch.bfloat16)).to(torch.bfloat16)
    assert latents.isfinite().all() and torch.equal(latents, expected)
    drawn = policy.decode(latents.float())
    assert drawn.dtype == torch.float32 and torch.equal(drawn, pictures.float())


# Saving and loading


def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(either: Path, tmp_path: Path) -> None:
    policy = policy_of(either)
    conditions = policy.encode(PROMPT, TWO)
    proofs.saved_lora_is_the_stock_pipelines(
        policy, conditions, either, tmp_path, lambda pipeline: pipeline_picture(pipeline, noise(policy), TWO)
    )


def test_saved_full_weights_draw_the_same_in_the_stock_pipeline(folder_2509: Path, tmp_path: Path) -> None:
    policy = policy_of(folder_2509, lora=None)

    def draw(pipeline: Any) -> Tensor:
        return pipeline_picture(pipeline, noise(policy), TWO)

    conditions = policy.encode(PROMPT, TWO)
    proofs.saved_weights_are_the_stock_pipelines(policy, conditions, folder_2509, tmp_path, draw, change=1e-3)


@lora_and_full
def test_loading_gives_back_every_bit(folder_2509: Path, tmp_path: Path, lora: LoraConfig | None) -> None:
    policy, other = (policy_of(folder_2509, lora=lora) for _ in range(2))
    proofs.loading_gives_back_every_bit(policy, other, tmp_path)


# Bad input


def test_what_is_no_qwen_image_edit_plus_pipeline_is_refused(folder_2509: Path, tmp_path: Path) -> None:
    refused(lambda: policy_of(tmp_path / "nowhere"), "policy.path", "no such folder")
    other = proofs.renamed(folder_2509, tmp_path / "other", "QwenImageEditPipeline")
    refused(lambda: policy_of(other), "is a QwenImageEditPipeline", "QwenImageEditPlusPipeline")


def test_a_guidance_distilled_model_is_refused(folder_2509: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_2509, tmp_path / "distilled")
    path = tmp_path / "distilled" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_embeds": True}))
    refused(lambda: policy_of(tmp_path / "distilled"), "policy.path", "guidance-distilled")


def test_no_reference_is_refused(folder_2509: Path) -> None:
    refused(lambda: policy_of(folder_2509).encode("two\nlines", []), "needs a reference image", "two\\nlines")


def test_sizes_below_one_token_are_refused(folder_2509: Path) -> None:
    refused(lambda: policy_of(folder_2509, reference_sizes=[(7, 64)]), "policy.reference_sizes", "8x8")


def test_lora_targets_that_are_not_there_are_refused(folder_2509: Path) -> None:
    lora = LoraConfig(rank=4, targets=["to_q", "to_z"])
    refused(lambda: policy_of(folder_2509, lora=lora), "policy.lora.targets", "'to_z'")
