"""The policy against diffusers' own Flux2KleinPipeline and Flux2Pipeline, of the same tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import proofs
import pytest
import tiny
import tiny_flux2
import torch
from diffusers import Flux2Pipeline
from embedded import embedded
from PIL import Image
from proofs import FILE, PROMPT, STEPS, apart, euler, lora_and_full, noise, refused, stock, tune
from torch import Tensor

from customized_grpo.config import LoraConfig, PolicyConfig
from customized_grpo.method import SAMPLERS
from customized_grpo.policies import build_policy
from customized_grpo.policies.flux2 import Flux2Policy
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions
from customized_grpo.trainer.rollout import sample_trajectories

TOKENS = 208  # dev's system message alone has 169 letters, and the tiny tokenizer spells


@pytest.fixture(scope="session")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2.save(tiny_flux2.klein(), tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2.save(tiny_flux2.dev(), tmp_path_factory.mktemp("dev"))


@pytest.fixture(params=["klein", "dev"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two pipelines."""
    path: Path = request.getfixturevalue(request.param)
    return path


def policy_of(folder: Path, **changes: Any) -> Flux2Policy:
    defaults = {"kind": "flux2", "reference_sizes": None, "max_sequence_length": TOKENS}
    return proofs.built(Flux2Policy, folder, **{**defaults, **changes})


def picture(height: int = 64, width: int = 72, seed: int = 0) -> Image.Image:
    return proofs.random_picture(height, width, seed)


def pipeline_picture(pipeline: Any, latents: Tensor, images: list[Image.Image], **options: Any) -> Tensor:
    """What the pipeline itself draws from these packed latents with the policy's default settings."""
    defaults = {
        "image": images or None,
        "guidance_scale": 2.5,
        "num_inference_steps": STEPS,
        "output_type": "pt",
    }
    unpacked = latents.transpose(1, 2).unflatten(2, (4, 3))
    return pipeline(
        prompt=PROMPT, height=32, width=24, latents=unpacked, max_sequence_length=TOKENS, **{**defaults, **options}
    ).images


# Rollouts

REFERENCES = {
    "none": [],
    "one": [picture()],
    "two": [picture(64, 72, 1), picture(80, 64, 2)],
    "cropped": [picture(70, 67, 3), picture(64, 95, 4)],
}


@pytest.mark.parametrize("which", REFERENCES)
def test_euler_rollout_is_the_pipelines_picture(folder: Path, which: str) -> None:
    images = REFERENCES[which]
    policy = policy_of(folder)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, images))
    expected = pipeline_picture(stock(folder), noise(policy), images)
    proofs.same_pictures(drawn, expected, spread=0.05)


def test_references_are_resized_and_then_go_the_pipelines_way(folder: Path) -> None:
    policy = policy_of(folder, reference_sizes=[(64, 72), (70, 64)])
    images = [picture(90, 101, 1), picture(200, 180, 2)]
    conditions = policy.encode(PROMPT, images)
    assert [conditions.rows[f"reference_{k}"].shape[1:3] for k in (1, 2)] == [(8, 9), (8, 8)]
    resize = policy._pipeline.image_processor.resize
    resized = [resize(images[0], 64, 72), resize(images[1], 70, 64)]
    expected = pipeline_picture(stock(folder), noise(policy), resized)
    assert apart(euler(policy, noise(policy), conditions), expected) < 1e-4


def test_large_references_are_shrunk_as_the_pipeline_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    def spy(image: Tensor, generator: object) -> Tensor:
        seen.append(image)
        raise SeenError

    seen: list[Tensor] = []
    policy, pipeline = policy_of(folder), stock(folder)
    monkeypatch.setattr(policy._pipeline, "_encode_vae_image", spy)
    monkeypatch.setattr(pipeline, "_encode_vae_image", spy)
    with pytest.raises(SeenError):
        policy.encode(PROMPT, [picture(1101, 1003)])
    with pytest.raises(SeenError):
        pipeline_picture(pipeline, noise(policy), [picture(1101, 1003)])
    assert seen[0].shape == (1, 3, 1072, 976)
    assert torch.equal(seen[0], seen[1])


def test_a_klein_base_model_is_drawn_without_cfg(tmp_path: Path) -> None:
    base = tiny_flux2.save(tiny_flux2.klein(distilled=False), tmp_path)
    policy = policy_of(base)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, [picture()]))
    pipeline = stock(base)
    assert apart(drawn, pipeline_picture(pipeline, noise(policy), [picture()], guidance_scale=1.0)) < 1e-4
    assert apart(drawn, pipeline_picture(pipeline, noise(policy), [picture()])) > 1e-3


def test_true_cfg_of_a_klein_base_model_is_the_pipelines(tmp_path: Path) -> None:
    base = tiny_flux2.save(tiny_flux2.klein(distilled=False), tmp_path)
    policy = policy_of(base, true_cfg=4.0)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, [picture()]))
    assert apart(drawn, pipeline_picture(stock(base), noise(policy), [picture()], guidance_scale=4.0)) < 1e-4


def test_distilled_models_refuse_true_cfg(klein: Path, dev: Path) -> None:
    refused(lambda: policy_of(klein, true_cfg=4.0), "policy.true_cfg", "distilled", "klein-base")
    refused(lambda: policy_of(dev, true_cfg=4.0), "policy.true_cfg", "policy.guidance")


def test_noise_levels_follow_size_and_number_of_steps(klein: Path, tmp_path: Path) -> None:
    dynamic, larger = policy_of(klein), policy_of(klein, height=256, width=256)
    fixed = tiny_flux2.save(tiny_flux2.klein(dynamic_shifting=False), tmp_path)
    static = policy_of(fixed)
    assert static.sigmas(STEPS).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    for policy in (dynamic, larger):
        levels = policy.sigmas(STEPS)
        assert levels.dtype == torch.float32 and levels.shape == (STEPS + 1,)
        assert levels[0] == 1 and levels[-1] == 0 and (levels.diff() < 0).all()
        assert (static.sigmas(STEPS) - levels)[1:-1].abs().min() > 0.01
    assert (larger.sigmas(STEPS) - dynamic.sigmas(STEPS))[1:-1].abs().min() > 1e-3
    # The shift depends on the number of steps too: half as many are not every second.
    assert apart(dynamic.sigmas(8)[::2], dynamic.sigmas(4)) > 1e-4
    with pytest.raises(ValueError, match="steps"):
        dynamic.sigmas(0)
    drawn = euler(static, noise(static), static.encode(PROMPT, []))
    assert apart(drawn, pipeline_picture(stock(fixed), noise(static), [])) < 1e-4


def test_every_input_reaches_the_velocity(folder: Path) -> None:
    policy = policy_of(folder)
    x, half = noise(policy), torch.tensor([0.5])
    images = REFERENCES["two"]
    base = policy.velocity(x, half, policy.encode(PROMPT, images))
    others = {
        "sigma": policy.velocity(x, torch.tensor([0.5004]), policy.encode(PROMPT, images)),
        "prompt": policy.velocity(x, half, policy.encode("a blue cat", images)),
        "first reference": policy.velocity(x, half, policy.encode(PROMPT, [picture(seed=5), images[1]])),
        "second reference": policy.velocity(x, half, policy.encode(PROMPT, [images[0], picture(80, 64, 5)])),
        "order": policy.velocity(x, half, policy.encode(PROMPT, images[::-1])),
    }
    for name, other in others.items():
        assert apart(other, base) > 1e-4, name
    guided = policy_of(folder, guidance=4.0).velocity(x, half, policy.encode(PROMPT, images))
    if isinstance(policy._pipeline, Flux2Pipeline):
        assert apart(guided, base) > 1e-4
    else:
        assert torch.equal(guided, base)
    # As many tokens in another arrangement are no company for a batch.
    with pytest.raises(ValueError, match="different shapes"):
        Conditions.join([policy.encode(PROMPT, images), policy.encode(PROMPT, images[::-1])])


def test_a_batch_equals_its_samples(folder: Path) -> None:
    policy = policy_of(folder)
    pairs = [("a red bird", 0), ("a red bird", 0), ("a blue cat on snow", 1), ("the dog", 2)]
    conditions = [policy.encode(prompt, [picture(seed=seed), picture(80, 64)]) for prompt, seed in pairs]
    proofs.batch_equals_samples(policy, conditions, torch.tensor([1.0, 1.0, 0.6, 0.1]))


def test_conditions_are_encoded_once_and_frozen(folder: Path) -> None:
    policy = policy_of(folder)
    policy.encode(PROMPT, [])  # the first one checks that prompts fit
    calls: list[str] = []
    policy._pipeline.text_encoder.register_forward_hook(lambda *_: calls.append("text"))
    conditions = policy.encode(PROMPT, [picture()])
    proofs.frozen_row(conditions)
    euler(policy, noise(policy), conditions)
    assert calls == ["text"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sampler", ["dance", "flow", "cps"])
def test_on_policy_ratios_are_exactly_one(folder: Path, sampler: str, checkpointing: bool) -> None:
    policy = policy_of(folder, gradient_checkpointing=checkpointing)
    tune(policy)
    pairs = [("a red bird", 0), ("a red bird", 0), ("a blue cat", 1)]
    conditions = Conditions.join([policy.encode(prompt, [picture(seed=seed)]) for prompt, seed in pairs])
    sigmas, step, everyone = policy.sigmas(STEPS), SAMPLERS[sampler], torch.arange(3)
    steps = noise(policy, 3 * (STEPS - 1), seed=1).unflatten(0, (3, STEPS - 1))
    batch = sample_trajectories(policy, everyone, conditions, noise(policy, 3), steps, sigmas, 0, step, 0.3)
    proofs.ratios_are_one(policy, batch, sampler, 0.3, sigmas)


def test_shapes_that_do_not_fit_are_refused(klein: Path) -> None:
    policy = policy_of(klein)
    proofs.other_shapes_are_refused(policy, policy.encode(PROMPT, [picture()]))


# What is trained


def test_only_the_lora_is_trainable_and_gets_gradients(folder: Path) -> None:
    policy = policy_of(folder)
    proofs.only_the_lora_is_trainable(policy)
    blocks = [n for n, m in policy._transformer.named_modules() if isinstance(m, torch.nn.Linear) and "blocks" in n]
    adapted = {name.split(".lora_")[0] for name in policy.trainable()}
    assert adapted == {n.removesuffix(".base_layer") for n in blocks if ".lora_" not in n}
    assert proofs.without_gradient(policy, policy.encode(PROMPT, [picture()])) == set()


@lora_and_full
def test_reference_is_the_untuned_model(folder: Path, lora: LoraConfig | None) -> None:
    policy = policy_of(folder, lora=lora)
    proofs.reference_is_untuned(policy, policy.encode(PROMPT, [picture()]))


def test_bfloat16_meets_the_pipelines_own_bits(folder: Path) -> None:
    policy = policy_of(folder, dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    conditions = policy.encode(PROMPT, REFERENCES["two"])
    assert {row.dtype for row in conditions.rows.values()} == {torch.bfloat16}
    # One step, by the pipeline's own layers: the model must meet the same bits, and with ours be near.
    seen: list[Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(values["latents"])
        return values

    pipeline = stock(folder, dtype=torch.bfloat16)
    start = noise(policy).to(torch.bfloat16).float()
    expected = pipeline_picture(pipeline, start, REFERENCES["two"], num_inference_steps=1, callback_on_step_end=keep)
    with libraries_own():
        velocity = policy.velocity(start, torch.ones(1), conditions).detach()
    assert velocity.dtype == torch.float32
    proofs.near_in_bfloat16(policy.velocity(start, torch.ones(1), conditions), velocity)
    assert torch.equal((start - velocity).to(torch.bfloat16), seen[0])
    pictures = policy.decode(seen[0].float())
    assert pictures.dtype == torch.float32
    assert torch.equal(pictures, expected.float())


# Saving and loading


def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(folder: Path, tmp_path: Path) -> None:
    policy, images = policy_of(folder), REFERENCES["two"]
    conditions = policy.encode(PROMPT, images)
    proofs.saved_lora_is_the_stock_pipelines(
        policy, conditions, folder, tmp_path, lambda pipeline: pipeline_picture(pipeline, noise(policy), images)
    )


def test_saved_full_weights_draw_the_same_in_the_stock_pipeline(folder: Path, tmp_path: Path) -> None:
    policy, images = policy_of(folder, lora=None), [picture()]

    def draw(pipeline: Any) -> Tensor:
        return pipeline_picture(pipeline, noise(policy), images)

    conditions = policy.encode(PROMPT, images)
    proofs.saved_weights_are_the_stock_pipelines(policy, conditions, folder, tmp_path, draw, change=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@lora_and_full
def test_loading_gives_back_every_bit(folder: Path, tmp_path: Path, lora: LoraConfig | None, dtype: str) -> None:
    policy, other = (policy_of(folder, lora=lora, dtype=dtype) for _ in range(2))
    proofs.loading_gives_back_every_bit(policy, other, tmp_path)


def test_another_models_lora_is_refused(klein: Path, tmp_path: Path) -> None:
    deeper = tiny_flux2.save(tiny_flux2.klein(layers=2), tmp_path / "deep")
    policy_of(deeper).save(tmp_path / "lora")
    refused(lambda: policy_of(klein).load(tmp_path / "lora"), FILE, "policy lacks transformer.")


# Bad input


def test_what_is_neither_pipeline_is_refused(klein: Path, tmp_path: Path) -> None:
    both = "Flux2KleinPipeline or Flux2Pipeline"
    refused(lambda: policy_of(tmp_path / "nowhere"), "policy.path", "no such folder")
    refused(lambda: policy_of(tmp_path), "policy.path", both)
    other = proofs.renamed(klein, tmp_path / "other", "Flux2KleinKVPipeline")
    refused(lambda: policy_of(other), "is a Flux2KleinKVPipeline", both)
    kontext = tiny.save_flux_kontext(tmp_path / "kontext")
    refused(lambda: policy_of(kontext), "is a FluxKontextPipeline", both)
    config = embedded(PolicyConfig, kind="flux-kontext", path=str(klein), device="cpu")
    refused(lambda: build_policy(config), "is a Flux2KleinPipeline", "a diffusers FluxKontextPipeline")


def test_lengths_that_hold_no_prompt_are_refused(klein: Path, dev: Path) -> None:
    for path, tokens in ((klein, 6), (dev, 24)):
        policy = policy_of(path, max_sequence_length=tokens)
        policy.encode("", [])
        refused(lambda policy=policy: policy.encode(PROMPT, []), "policy.max_sequence_length", "give 512")


def test_sizes_below_one_token_are_refused(klein: Path) -> None:
    refused(lambda: policy_of(klein, reference_sizes=[(7, 64)]), "policy.reference_sizes", "8x8")


def test_references_that_the_pipeline_refuses_are_refused(klein: Path) -> None:
    policy = policy_of(klein)
    for height, width in ((63, 80), (64, 520)):
        refused(lambda h=height, w=width: policy.encode(PROMPT, [picture(h, w)]), "policy.reference_sizes")
