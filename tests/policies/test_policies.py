"""Every model against diffusers' own pipeline, of the same tiny random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proofs
import pytest
import torch
from embedded import embedded
from PIL import Image
from proofs import FILE, LORA, PROMPT, apart, euler, half_way, noise, refused, tune
from tiny_models import SOURCES, Model
from torch import nn

from customized_grpo.config import Config, DataConfig, LoraConfig, RolloutConfig, TrainConfig
from customized_grpo.data import open_dataset
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions
from customized_grpo.trainer.assembly import reward_terms
from customized_grpo.trainer.rollout import sample_groups
from customized_grpo.trainer.trainer import CustomizedGRPOTrainer
from customized_grpo.utils.records import read_records

#: Models whose transformer is computed by the code of another one here: their training is checked by `make test-slow`.
VARIANTS = ("flux2-dev", "qwen-image-edit-2511")


def marked(name: str, *more: Any) -> Any:
    return pytest.param(name, *more, marks=[pytest.mark.slow] if name in VARIANTS else [])


def each(*without: str) -> Any:
    return pytest.mark.parametrize("model", [name for name in SOURCES if name not in without], indirect=True)


each_in_training = pytest.mark.parametrize("model", [marked(name) for name in SOURCES], indirect=True)


# Sampling


@each()
def test_an_euler_rollout_is_the_pipelines_image(model: Model) -> None:
    policy, conditions = model.stock_policy()
    sampled = euler(policy, noise(policy), conditions)
    assert sampled.shape == (1, 3, 32, 24) and sampled.dtype == torch.float32
    assert sampled.min() >= 0 and sampled.max() <= 1 and sampled.std() > 0.02
    pipeline = model.stock(policy)
    assert apart(sampled, model.draw(pipeline, noise(policy))) < 1e-4
    levels = policy.sigmas(proofs.STEPS)
    assert torch.equal(levels, pipeline.scheduler.sigmas) and levels.dtype == torch.float32
    with pytest.raises(ValueError, match="steps"):
        policy.sigmas(1 if pipeline.scheduler.config.get("shift_terminal") else 0)


CROPPED = [proofs.random_image(70, 67, 3), proofs.random_image(64, 95, 4)]  # no multiples of a token
TWO = list(SOURCES["qwen-image-edit"].references)


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ("flux2-klein", [[], CROPPED]),
        ("flux2-klein-kv", [[]]),
        ("flux2-dev", [[], CROPPED]),
        ("qwen-image-edit", [TWO[:1], TWO[::-1]]),
        ("qwen-image-edit-2511", [TWO[:1], TWO[::-1]]),
        ("joyimage-edit-plus", [[], TWO[:1], TWO[::-1]]),
    ],
    indirect=["model"],
)
def test_other_references_or_none_are_the_pipelines(model: Model, choices: list[list[Image.Image]]) -> None:
    policy = model.policy()
    pipeline = model.stock(policy)
    for images in choices:
        sampled = euler(policy, noise(policy), policy.encode(PROMPT, images))
        assert apart(sampled, model.draw(pipeline, noise(policy), images)) < 1e-4


@each(*(name for name, source in SOURCES.items() if not source.scale))
def test_classifier_free_guidance_is_the_pipelines(model: Model) -> None:
    policy = model.policy(true_cfg=3.0, negative_prompt="a blue cat")
    conditions = model.encode(policy)
    sampled, pipeline = euler(policy, noise(policy), conditions), model.stock(policy)
    guided = model.draw(pipeline, noise(policy), **{model.source.scale: 3.0}, negative_prompt="a blue cat")
    assert apart(sampled, guided) < 1e-4
    assert apart(sampled, model.draw(pipeline, noise(policy))) > 1e-3
    with torch.no_grad():
        rollout = half_way(policy, conditions)
    assert torch.equal(half_way(policy, conditions), rollout)


@each()
def test_every_input_reaches_the_velocity(model: Model) -> None:
    policy, references = model.policy(), list(model.source.references)
    conditions = model.encode(policy)
    base = half_way(policy, conditions)
    changed = proofs.random_image(*references[0].size[::-1], 9)
    others = {
        "latents": policy.velocity(noise(policy, seed=1), torch.tensor([0.5]), conditions),
        "sigma": policy.velocity(noise(policy), torch.tensor([0.501]), conditions),
        "prompt": half_way(policy, model.encode(policy, "a blue cat")),
        "reference": half_way(policy, policy.encode(PROMPT, [changed, *references[1:]])),
    }
    if model.name in ("flux-kontext", "uno", "flux2-dev"):
        others["guidance"] = half_way(model.policy(guidance=4.0), conditions)
    if len(references) > 1:
        swapped = policy.encode(PROMPT, references[::-1])
        others["order"] = half_way(policy, swapped)
        with pytest.raises(ValueError, match="different shapes"):
            Conditions.join([conditions, swapped])
    for name, other in others.items():
        assert apart(other, base) > 1e-4, name


@each()
def test_conditioning_is_encoded_once_and_frozen(model: Model) -> None:
    policy = model.policy()
    policy.encode("", model.source.references)  # FLUX.2's first prompt is compared with an empty one
    model.encode(policy)
    calls: list[str] = []
    for name, part in policy._pipeline.components.items():
        if name.startswith("text_encoder"):
            part.register_forward_hook(lambda *_, name=name: calls.append(name))
    state = torch.get_rng_state()
    conditions = model.encode(policy)
    proofs.frozen_row(conditions)
    encoders = sorted(set(calls))
    assert sorted(calls) == encoders and encoders
    euler(policy, noise(policy), conditions)
    assert sorted(calls) == encoders
    # Images of another mode are read as RGB, and encoding uses no random numbers.
    again = policy.encode(PROMPT, [image.convert("RGBA") for image in model.source.references])
    assert all(torch.equal(again.rows[name], row) for name, row in conditions.rows.items())
    assert torch.equal(torch.get_rng_state(), state)


@each()
@torch.no_grad()
def test_a_batch_equals_its_samples_and_other_shapes_are_refused(model: Model) -> None:
    policy = model.policy()
    tune(policy)
    prompts = ("a red bird", "a blue cat", "some water")  # of one length, so that Qwen's can stand in one batch
    conditions = [model.encode(policy, prompt) for prompt in prompts]
    sigma, x = torch.tensor([1.0, 0.6, 0.1]), noise(policy, 3)
    batch, images = policy.velocity(x, sigma, Conditions.join(conditions)), policy.decode(x)
    for i, row in enumerate(conditions):
        assert apart(batch[i], policy.velocity(x[i : i + 1], sigma[i : i + 1], row)[0]) < 1e-5
        assert apart(images[i], policy.decode(x[i : i + 1])[0]) < 1e-5
    for latents, levels in ((noise(policy, 2), torch.ones(2)), (noise(policy)[:, 1:], torch.ones(1))):
        with pytest.raises(ValueError, match="do not fit"):
            policy.velocity(latents, levels, conditions[0])


CASES = [marked(name, "dance", False) for name in SOURCES]
CASES += [(name, "dance", True) for name in ("flux-kontext", "flux2-klein", "flux2-klein-kv", "qwen-image-edit")]
CASES += [("flux-kontext", "flow", False), ("flux-kontext", "cps", True)]


@pytest.mark.parametrize(("model", "sampler", "checkpointing"), CASES, indirect=["model"])
def test_on_policy_ratios_are_exactly_one(model: Model, sampler: Any, checkpointing: bool) -> None:
    policy = model.policy(gradient_checkpointing=checkpointing)
    tune(policy)
    config = embedded(RolloutConfig, sampler=sampler, steps=proofs.STEPS, batch_size=4, shift=None)
    keys = [(prompt, number) for prompt in ("a red bird", "a big bird") for number in range(3)]
    encoded = {prompt: model.encode(policy, prompt) for prompt, _ in keys}
    conditions = [encoded[prompt] for prompt, _ in keys]
    batches = list(sample_groups(policy, conditions, keys, config, range(config.steps - 1), seed=0, iteration=0))
    assert sum(len(batch) for batch in batches) == 6
    for batch in batches:
        proofs.ratios_are_one(policy, batch, sampler, config.eta)


# Training


@each_in_training
def test_only_the_lora_is_trainable_and_gets_gradients(model: Model) -> None:
    policy = model.policy()
    proofs.only_the_lora_is_trainable(policy)
    named = policy.trainable()
    assert not any(name.startswith("proj_out") for name in named)
    unused = set()
    if model.name.startswith(("qwen", "joyimage")):  # layers that only change the text tokens of the last block
        ends = (".add_q_proj.", ".to_add_out.", ".txt_attn_proj.", ".txt_mlp.net.0.proj.", ".txt_mlp.net.2.")
        unused = {n for n in named if "_blocks.1." in n and any(end in n for end in ends)}
    assert proofs.without_gradient(policy, model.encode(policy)) == unused


@pytest.mark.parametrize(
    ("model", "dtype"),
    [*(marked(name, "float32") for name in SOURCES), ("flux-kontext", "bfloat16")],
    indirect=["model"],
)
def test_gradient_checkpointing_changes_no_gradient(model: Model, dtype: str) -> None:
    proofs.checkpointing_changes_no_gradient(
        lambda checkpointing: model.policy(gradient_checkpointing=checkpointing, dtype=dtype), model.encode
    )


@pytest.mark.parametrize(
    ("model", "lora"), [*(marked(name, LORA) for name in SOURCES), ("flux-kontext", None)], indirect=["model"]
)
def test_reference_is_the_untuned_model(model: Model, lora: LoraConfig | None) -> None:
    policy = model.policy(lora=lora)
    proofs.reference_is_untuned(policy, model.encode(policy))


@each()
def test_bfloat16_has_the_bits_of_the_pipelines_first_step(model: Model) -> None:
    """By the libraries' own layers; near them with kernels. A LoRA stays in float32."""
    policy, conditions = model.stock_policy(dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    fine = (".lora_", *(policy._transformer._keep_in_fp32_modules or ()))
    weights = policy._transformer.named_parameters()
    assert {p.dtype for n, p in weights if not any(part in n for part in fine)} == {torch.bfloat16}
    assert {row.dtype for row in conditions.rows.values()} == {torch.bfloat16}
    pipeline, seen = model.stock(policy, torch.bfloat16), []
    pipeline.transformer.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    latents = noise(policy)
    image = model.draw(pipeline, latents.to(torch.bfloat16), num_inference_steps=1 if "qwen" not in model.name else 2)
    expected = seen[0][:, : latents.shape[1]].flatten(2).float()
    with torch.no_grad():
        with libraries_own():
            assert torch.equal(policy.velocity(latents, torch.ones(1), conditions), expected)
        proofs.near_in_bfloat16(policy.velocity(latents, torch.ones(1), conditions), expected)
    if "qwen" not in model.name:  # one step: latents minus velocity
        decoded = policy.decode((latents.to(torch.bfloat16).float() - expected).to(torch.bfloat16).float())
        assert decoded.dtype == torch.float32 and torch.equal(decoded, image.float())
    tune(policy)
    half_way(policy, conditions).mean().backward()
    gradients = [p.grad for p in policy.trainable().values() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


# Saving and loading


@each()
def test_a_trained_lora_does_the_same_in_the_stock_pipeline(model: Model, tmp_path: Path) -> None:
    """Trained by the loop; UNO's from its released LoRA, so that what is saved stands alone."""
    changes: dict[str, Any] = {"adapter_as": "start", "lora": LoraConfig(rank=6)} if model.name == "uno" else {}
    policy = model.policy(**changes)
    config = embedded(
        Config,
        policy=policy.config,
        data=embedded(DataConfig, size=2),
        rewards=proofs.REWARDS,
        rollout=embedded(RolloutConfig, steps=3, group_size=3, pairs=1),
        train=embedded(
            TrainConfig, iterations=2, updates=1, learning_rate=3e-2, kl_weight=0.01, trackers=[], max_drift=None
        ),
    )
    terms, data = reward_terms(config.rewards, policy.device), open_dataset(config.data)
    CustomizedGRPOTrainer(policy, terms, data, None, config, tmp_path / "run").train()
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    # On policy, in the first update of an iteration, no ratio is clipped: all are 1.
    assert len(records) == 2 and all(one["gradient_norm"] > 0 and one["clip_fraction"] == 0 for one in records)
    policy.save(tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == [FILE]
    references = model.source.references if model.source.stock_references else []
    pipeline, conditions = model.stock(policy), policy.encode(PROMPT, references)
    untuned, sampled = model.draw(pipeline, noise(policy)), euler(policy, noise(policy), conditions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(policy.example_load, {"pipeline": pipeline, "LORA": str(tmp_path / "lora")})  # as in a model card
    assert apart(sampled, model.draw(pipeline, noise(policy))) < 1e-4
    assert apart(sampled, untuned) > 1e-3


@each("qwen-image-edit-2511", "flux2-dev", "longcat-image-edit")
def test_saved_full_weights_do_the_same_in_the_stock_pipeline(model: Model, tmp_path: Path) -> None:
    policy, conditions = model.stock_policy(lora=None)
    assert policy.trainable().keys() == dict(policy._transformer.named_parameters()).keys()
    tune(policy, 0.02)
    policy.save(tmp_path)
    sampled, untuned = euler(policy, noise(policy), conditions), model.stock(policy)
    transformer = type(untuned.transformer).from_pretrained(tmp_path / "transformer")
    tuned = model.stock(policy, transformer=transformer)
    assert apart(sampled, model.draw(tuned, noise(policy))) < 1e-4
    assert apart(sampled, model.draw(untuned, noise(policy))) > 1e-3


@pytest.mark.parametrize(
    ("model", "lora", "dtype"),
    [
        *(marked(name, LORA, "float32") for name in SOURCES),
        ("flux-kontext", None, "float32"),
        ("flux-kontext", LORA, "bfloat16"),
        ("flux-kontext", None, "bfloat16"),
    ],
    indirect=["model"],
)
def test_loading_gives_back_every_bit(model: Model, tmp_path: Path, lora: LoraConfig | None, dtype: str) -> None:
    policy, other = (model.policy(lora=lora, dtype=dtype) for _ in range(2))
    proofs.loading_gives_back_every_bit(policy, other, tmp_path)


# Bad input


@each("qwen-image-edit-2511", "longcat-image-edit")
def test_another_pipeline_and_sizes_below_one_token_are_refused(model: Model, models: Callable[[str], Model]) -> None:
    other = models("uno" if model.name != "uno" else "flux2-dev").folder
    refused(lambda: proofs.built(nn.Module, other, **model.source.settings), "is a Flux")  # type: ignore[type-var]
    refused(lambda: model.policy(reference_sizes=[(7, 64)]), "policy.reference_sizes", "8x8")
