"""The policy against diffusers' own FluxKontextPipeline, of the same tiny random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import proofs
import pytest
import tiny
import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from PIL import Image
from proofs import FILE, PROMPT, STEPS, apart, euler, lora_and_full, noise, refused, stock, tune
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.config import LoraConfig
from customized_grpo.policies.flux_kontext import FluxKontextPolicy, nearest_size
from customized_grpo.policies.shortcuts import libraries_own
from customized_grpo.protocols import Conditions


def policy_of(folder: Path, **changes: Any) -> FluxKontextPolicy:
    return proofs.built(FluxKontextPolicy, folder, **{"reference_sizes": [(16, 24)], **changes})


def picture(height: int = 16, width: int = 24, seed: int = 0) -> Image.Image:
    return proofs.random_picture(height, width, seed)


def pipeline_picture(
    pipeline: FluxKontextPipeline, latents: Tensor, image: Image.Image | None, **options: Any
) -> Tensor:
    """What the pipeline itself draws from these latents with the policy's default settings."""
    defaults = {
        "_auto_resize": False,
        "guidance_scale": 2.5,
        "num_inference_steps": STEPS,
        "output_type": "pt",
    }
    return pipeline(
        image=image,
        prompt=PROMPT,
        height=32,
        width=24,
        max_area=32 * 24,
        latents=latents,
        max_sequence_length=24,
        **{**defaults, **options},
    ).images


# Rollouts


@pytest.mark.parametrize("which", ["folder", "dynamic_folder"])
def test_euler_rollout_is_the_pipelines_picture(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    policy = policy_of(folder)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, [picture()]))
    expected = pipeline_picture(stock(folder), noise(policy), picture())
    proofs.same_pictures(drawn, expected, spread=0.05)


def test_dynamic_shifting_changes_the_noise_levels(folder: Path, dynamic_folder: Path) -> None:
    static, dynamic = (policy_of(f).sigmas(STEPS) for f in (folder, dynamic_folder))
    assert static.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert static.dtype == torch.float32
    assert dynamic[0] == 1 and dynamic[-1] == 0
    assert (static - dynamic)[1:-1].abs().min() > 0.05
    with pytest.raises(ValueError, match="steps"):
        policy_of(folder).sigmas(0)


def test_every_input_reaches_the_velocity(folder: Path) -> None:
    policy = policy_of(folder)
    x, half = noise(policy), torch.tensor([0.5])
    base = policy.velocity(x, half, policy.encode(PROMPT, [picture()]))
    others = {
        "sigma": policy.velocity(x, torch.tensor([0.5004]), policy.encode(PROMPT, [picture()])),
        "prompt": policy.velocity(x, half, policy.encode("a blue cat", [picture()])),
        "reference": policy.velocity(x, half, policy.encode(PROMPT, [picture(seed=1)])),
        "guidance": policy_of(folder, guidance=4.0).velocity(x, half, policy.encode(PROMPT, [picture()])),
    }
    for name, other in others.items():
        assert apart(other, base) > 1e-4, name


def test_without_references_it_is_the_pipeline_without_image(folder: Path) -> None:
    policy = policy_of(folder)
    drawn = euler(policy, noise(policy), policy.encode(PROMPT, []))
    expected = pipeline_picture(stock(folder), noise(policy), None)
    assert apart(drawn, expected) < 1e-4


def test_true_cfg_is_the_pipelines(folder: Path) -> None:
    policy = policy_of(folder, true_cfg=3.0, negative_prompt="a blue cat")
    conditions = policy.encode(PROMPT, [picture()])
    assert sorted(conditions.rows) == [
        "negative_pooled", "negative_prompt_embeds", "pooled", "prompt_embeds", "reference_1",
    ]  # fmt: skip
    drawn = euler(policy, noise(policy), conditions)
    pipeline = stock(folder)
    expected = pipeline_picture(pipeline, noise(policy), picture(), true_cfg_scale=3.0, negative_prompt="a blue cat")
    assert apart(drawn, expected) < 1e-4
    assert apart(drawn, pipeline_picture(pipeline, noise(policy), picture())) > 1e-2


def test_with_true_cfg_the_proofs_hold(folder: Path) -> None:
    policy = policy_of(folder, true_cfg=3.0)
    pairs = [("a red bird", 0), ("a blue cat on the snow", 1), ("the dog", 2)]
    conditions = [policy.encode(prompt, [picture(seed=seed)]) for prompt, seed in pairs]
    proofs.batch_equals_samples(policy, conditions, torch.tensor([1.0, 0.6, 0.1]), within=5e-5)
    joined, x, sigma = Conditions.join(conditions), noise(policy, 3), torch.tensor([1.0, 0.6, 0.1])
    with torch.no_grad():
        rollout = policy.velocity(x, sigma, joined)
    assert torch.equal(policy.velocity(x, sigma, joined), rollout)
    assert proofs.without_gradient(policy, conditions[0]) == set()


def test_references_are_resized_as_the_pipeline_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(24, 16), (16, 16), (20, 36)]  # (width, height), and no multiples of a token
    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", sizes)
    policy = policy_of(folder, reference_sizes=None)
    image = picture(90, 50)
    conditions = policy.encode(PROMPT, [image])
    assert conditions.rows["reference_1"].shape[1:3] == (4, 2)
    drawn = euler(policy, noise(policy), conditions)
    expected = pipeline_picture(stock(folder), noise(policy), image, _auto_resize=True)
    assert apart(drawn, expected) < 1e-4


def test_kontexts_own_sizes_are_the_default_of_the_model() -> None:
    sizes = [(h, w) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS]
    assert nearest_size(500, 500, sizes) == (1024, 1024)
    assert nearest_size(672, 1568, sizes) == (672, 1568)
    assert nearest_size(3000, 1000, sizes) == (1568, 672)


def test_several_references_have_ids_and_tokens_of_their_own(folder: Path) -> None:
    policy = policy_of(folder, reference_sizes=[(16, 24), (24, 16)])
    pictures = [picture(16, 24, 1), picture(24, 16, 2)]
    conditions = policy.encode(PROMPT, pictures)
    x, sigma = noise(policy), torch.tensor([0.7])
    drawn = policy.velocity(x, sigma, conditions)

    pipeline = stock(folder)
    embeds, pooled, text_ids = pipeline.encode_prompt(PROMPT, max_sequence_length=24)
    tokens, ids = [x], [pipeline._prepare_latent_image_ids(1, 4, 3, "cpu", torch.float32)]
    for k, image in enumerate(pictures, 1):
        pixels = pipeline.image_processor.preprocess(image)
        _, packed, _, image_ids = pipeline.prepare_latents(pixels, 1, 4, 32, 24, torch.float32, "cpu", None, x)
        image_ids[:, 0] = k
        tokens.append(packed)
        ids.append(image_ids)
    with torch.no_grad():
        expected = pipeline.transformer(
            hidden_states=torch.cat(tokens, 1),
            timestep=sigma,
            guidance=torch.tensor([2.5]),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=torch.cat(ids),
            return_dict=False,
        )[0][:, : x.shape[1]]
    assert apart(drawn, expected) < 1e-4
    swapped = policy.velocity(x, sigma, policy.encode(PROMPT, pictures[::-1]))
    assert apart(drawn, swapped) > 1e-4
    # As many tokens in another arrangement are no company for a batch.
    with pytest.raises(ValueError, match="different shapes"):
        Conditions.join([conditions, policy.encode(PROMPT, pictures[::-1])])


def test_a_batch_equals_its_samples(folder: Path) -> None:
    policy = policy_of(folder)
    pairs = [("a red bird", 0), ("a blue cat on the snow", 1), ("the dog", 2)]
    conditions = [policy.encode(prompt, [picture(seed=seed)]) for prompt, seed in pairs]
    proofs.batch_equals_samples(policy, conditions, torch.tensor([1.0, 0.6, 0.1]))


def test_conditions_are_encoded_once_and_frozen(folder: Path) -> None:
    policy = policy_of(folder)
    calls: list[str] = []
    for name, part in policy._pipeline.components.items():
        if name in {"text_encoder", "text_encoder_2"}:
            part.register_forward_hook(lambda *_, name=name: calls.append(name))
    conditions = policy.encode(PROMPT, [picture()])
    assert sorted(calls) == ["text_encoder", "text_encoder_2"]
    proofs.frozen_row(conditions)
    euler(policy, noise(policy), conditions)
    assert len(calls) == 2


def test_a_replay_with_gradients_has_the_bits_of_the_rollout(folder: Path) -> None:
    policy = policy_of(folder)
    tune(policy)
    conditions = policy.encode(PROMPT, [picture()]).select(torch.zeros(4, dtype=torch.long))
    x, sigma = noise(policy, 4), torch.tensor([1.0, 0.6, 0.3, 0.1])
    with torch.no_grad():
        rollout = policy.velocity(x, sigma, conditions)
    assert torch.equal(policy.velocity(x, sigma, conditions), rollout)


def test_shapes_that_do_not_fit_are_refused(folder: Path) -> None:
    policy = policy_of(folder)
    proofs.other_shapes_are_refused(policy, policy.encode(PROMPT, [picture()]))


# What is trained


def test_only_the_lora_is_trainable_and_gets_gradients(folder: Path) -> None:
    policy = policy_of(folder)
    proofs.only_the_lora_is_trainable(policy)
    named = policy.trainable()
    assert any(name.startswith("single_transformer_blocks.0.proj_out") for name in named)
    assert not any(name.startswith("proj_out") for name in named)
    assert proofs.without_gradient(policy, policy.encode(PROMPT, [picture()])) == set()


def test_the_lora_starts_the_same_everywhere_and_leaves_the_random_state(folder: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = policy_of(folder).trainable()
    torch.manual_seed(2)
    second = policy_of(folder).trainable()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(parameter.std() > 0 for name, parameter in first.items() if "lora_A" in name)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    policy_of(folder)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_changes_no_gradient(folder: Path, dtype: str) -> None:
    proofs.checkpointing_changes_no_gradient(
        lambda checkpointing: policy_of(folder, gradient_checkpointing=checkpointing, dtype=dtype),
        lambda policy: policy.encode(PROMPT, [picture()]),
    )


@lora_and_full
def test_reference_is_the_untuned_model(folder: Path, lora: LoraConfig | None) -> None:
    policy = policy_of(folder, lora=lora)
    conditions = policy.encode(PROMPT, [picture()])
    tuned = proofs.reference_is_untuned(policy, conditions)
    assert all(p.requires_grad for p in policy.trainable().values())
    # A graph that was built before is none the worse for it.
    tuned.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in policy.trainable().items() if p.grad is not None}
    policy._transformer.zero_grad()
    proofs.half_way(policy, conditions).square().mean().backward()
    assert gradients
    for name, gradient in gradients.items():
        assert torch.equal(policy.trainable()[name].grad, gradient), name
    with pytest.raises(RuntimeError, match="inside"), policy.reference():
        raise RuntimeError("inside")
    assert torch.equal(proofs.half_way(policy, conditions), tuned)


def test_full_tuning_moves_the_whole_transformer(folder: Path) -> None:
    policy = policy_of(folder, lora=None)
    assert policy.trainable().keys() == dict(policy._transformer.named_parameters()).keys()
    assert all(parameter.requires_grad for parameter in policy.trainable().values())
    assert not any(parameter.requires_grad for parameter in policy._pipeline.vae.parameters())


def test_lora_stays_float32_on_a_bfloat16_model(folder: Path) -> None:
    policy = policy_of(folder, dtype="bfloat16")
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    assert policy._transformer.x_embedder.weight.dtype == torch.bfloat16
    conditions = policy.encode(PROMPT, [picture()])
    assert {row.dtype for row in conditions.rows.values()} == {torch.bfloat16}
    # One step, by the pipeline's own layers: the model must meet the same bits, and with ours be near.
    pipeline = stock(folder, dtype=torch.bfloat16)
    expected = pipeline_picture(pipeline, noise(policy), picture(), num_inference_steps=1, output_type="latent")
    with libraries_own():
        velocity = policy.velocity(noise(policy), torch.ones(1), conditions)
    assert velocity.dtype == torch.float32
    start = noise(policy).to(torch.bfloat16).float()
    assert torch.equal((start - velocity.detach()).to(torch.bfloat16), expected)
    proofs.near_in_bfloat16(policy.velocity(noise(policy), torch.ones(1), conditions), velocity)
    tune(policy)
    policy.velocity(noise(policy), torch.ones(1), conditions).mean().backward()
    gradients = [p.grad for p in policy.trainable().values() if p.grad is not None]
    assert gradients and all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    pictures = policy.decode(start)
    assert pictures.dtype == torch.float32 and pictures.isfinite().all()


def test_weights_stored_in_half_precision_are_loaded_in_full(folder: Path, tmp_path: Path) -> None:
    stock(folder).to(torch.float16).save_pretrained(tmp_path)
    policy = policy_of(tmp_path)
    parts = [p for p in policy._pipeline.components.values() if isinstance(p, torch.nn.Module)]
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


# Saving and loading


def test_a_saved_lora_draws_the_same_in_the_stock_pipeline(folder: Path, tmp_path: Path) -> None:
    policy = policy_of(folder)
    conditions = policy.encode(PROMPT, [picture()])
    proofs.saved_lora_is_the_stock_pipelines(
        policy, conditions, folder, tmp_path, lambda pipeline: pipeline_picture(pipeline, noise(policy), picture())
    )


def test_saved_full_weights_draw_the_same_in_the_stock_pipeline(folder: Path, tmp_path: Path) -> None:
    policy = policy_of(folder, lora=None)

    def draw(pipeline: Any) -> Tensor:
        return pipeline_picture(pipeline, noise(policy), picture())

    conditions = policy.encode(PROMPT, [picture()])
    proofs.saved_weights_are_the_stock_pipelines(policy, conditions, folder, tmp_path, draw, change=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@lora_and_full
def test_loading_gives_back_every_bit(folder: Path, tmp_path: Path, lora: LoraConfig | None, dtype: str) -> None:
    policy, other = (policy_of(folder, lora=lora, dtype=dtype) for _ in range(2))
    proofs.loading_gives_back_every_bit(policy, other, tmp_path)


def test_another_models_lora_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    policy = policy_of(folder)
    before = {name: parameter.clone() for name, parameter in policy.trainable().items()}
    folders = {name: tmp_path / name for name in ("wider", "deeper", "rank", "alpha", "targets", "full")}
    wider = tiny.save_flux_kontext(tmp_path / "wide", width=48)
    policy_of(wider).save(folders["wider"])
    deeper = tiny.save_flux_kontext(tmp_path / "deep", layers=2)
    policy_of(deeper).save(folders["deeper"])
    policy_of(folder, lora=LoraConfig(rank=2, alpha=6)).save(folders["rank"])
    policy_of(folder, lora=LoraConfig(rank=4, alpha=5)).save(folders["alpha"])
    policy_of(folder, lora=LoraConfig(rank=4, alpha=6, targets=["to_q"])).save(folders["targets"])
    refused(lambda: policy.load(folders["wider"]), FILE, "another model", "policy.path")
    refused(lambda: policy.load(folders["deeper"]), FILE, "policy lacks transformer.")
    refused(lambda: policy.load(folders["rank"]), FILE, "policy.lora.rank")
    refused(lambda: policy.load(folders["alpha"]), FILE, "policy.lora.alpha to 5")
    refused(lambda: policy.load(folders["targets"]), FILE, "file lacks", "policy.lora.targets")
    refused(lambda: policy.load(tmp_path / "nowhere"), FILE, "no such file")
    (tmp_path / FILE).write_bytes(b"not a file of weights")
    refused(lambda: policy.load(tmp_path), FILE, "not a LoRA")
    for name, parameter in policy.trainable().items():
        assert torch.equal(parameter, before[name])
    full = policy_of(folder, lora=None)
    refused(lambda: full.load(folders["rank"]), "no saved transformer")
    refused(lambda: full.load(wider), "another model", "policy.path")
    full.save(folders["full"])
    weights = folders["full"] / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["proj_out.bias"]
    save_file(state, weights, metadata={"format": "pt"})
    refused(lambda: full.load(folders["full"]), "lacks proj_out.bias")


# Bad input


def test_what_is_no_kontext_pipeline_is_refused(folder: Path, tmp_path: Path) -> None:
    refused(lambda: policy_of(tmp_path / "nowhere"), "policy.path", "no such folder")
    refused(lambda: policy_of(Path("embedded/nothing")), "policy.path", "embedded/nothing")
    refused(lambda: policy_of(tmp_path), "policy.path", "FluxKontextPipeline")
    other = proofs.renamed(folder, tmp_path / "other", "FluxPipeline")
    refused(lambda: policy_of(other), "is a FluxPipeline", "FluxKontextPipeline")


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    for part, name in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        pickled = tmp_path / part
        shutil.copytree(folder, pickled)
        weights = pickled / part / f"{name}.safetensors"
        state = torch.nn.Linear(1, 1).state_dict()
        binary = "pytorch_model.bin" if part == "text_encoder" else f"{name}.bin"
        torch.save(state, weights.with_name(binary))
        weights.unlink()
        refused(lambda path=pickled: policy_of(path), "policy.path", "safetensors")


def test_lora_targets_that_are_not_there_are_refused(folder: Path) -> None:
    for targets, word in ((["to_q", "to_z"], "'to_z'"), ([], "empty"), (["norm_q"], "'norm_q'")):
        lora = LoraConfig(rank=4, targets=targets)
        refused(lambda lora=lora: policy_of(folder, lora=lora), "policy.lora.targets", word)
    named = policy_of(folder, lora=LoraConfig(rank=4, targets=["to_q"])).trainable()
    assert len(named) == 4


def test_sizes_below_one_token_are_refused(folder: Path) -> None:
    refused(lambda: policy_of(folder, reference_sizes=[(7, 64)]), "policy.reference_sizes", "8x8")
