"""A quantised base with a LoRA on top. What needs the extra packages runs where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import proofs
import pytest
import torch
from diffusers import FluxTransformer2DModel, TorchAoConfig
from embedded import embedded
from proofs import LORA, PROMPT, noise, refused
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.config import PolicyConfig
from customized_grpo.config.loading import load_config
from customized_grpo.method import SAMPLERS
from customized_grpo.trainer.rollout import noise_levels, sample_trajectories

HALF = torch.tensor([0.5])


@pytest.mark.parametrize("key", ["quantise", "quantise_text_encoders"])
@pytest.mark.parametrize(("scheme", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_package_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, scheme: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    refused(lambda: proofs.kontext(folder, **{key: scheme}), f"policy.{key}: {scheme}", f"pip install {package}")


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"quantised weights cannot be trained; set policy\.lora"):
        embedded(PolicyConfig, lora=None, quantise="int8")
    with pytest.raises(ValueError, match=r"policy\.quantise"):
        load_config(None, ["policy.quantise=int3"])


#: How near velocities of rounded weights come to those of the weights as they are, as a correlation.
NEAR = {"int8": 0.99, "nf4": 0.9}
schemes = pytest.mark.parametrize(("scheme", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])


def likeness(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).float())[0, 1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@schemes
def test_a_lora_on_quantised_weights_learns_and_replays_its_own_bits(
    folder: Path, tmp_path: Path, dtype: str, scheme: str, package: str
) -> None:
    pytest.importorskip(package)
    policy, plain = (proofs.kontext(folder, dtype=dtype, quantise=one) for one in (scheme, None))
    conditions = policy.encode(PROMPT, [proofs.random_image(16, 24, 0)])
    proofs.only_the_lora_is_trainable(policy)
    weight = policy._transformer.transformer_blocks[0].attn.to_q.base_layer.weight
    assert type(weight).__name__ == {"int8": "Int8Tensor", "nf4": "Params4bit"}[scheme]
    one, other = (p.velocity(noise(p), HALF, conditions).detach() for p in (policy, plain))
    assert not torch.equal(one, other)
    assert likeness(one, other) > NEAR[scheme]
    proofs.tune(policy)
    sigmas = noise_levels(policy, 4, None)
    two = conditions.select(torch.zeros(2, dtype=torch.long))
    steps = torch.randn(2, 3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    step = SAMPLERS["dance"]
    sampled = sample_trajectories(policy, torch.arange(2), two, noise(policy, 2), steps, sigmas, 0, step, 0.4)
    proofs.ratios_are_one(policy, sampled, "dance", 0.4)
    policy._transformer.zero_grad()
    assert proofs.without_gradient(policy, conditions) == set()
    policy.save(tmp_path)
    plain.load(tmp_path)
    assert all(torch.equal(w, plain.trainable()[n]) for n, w in policy.trainable().items())


@schemes
def test_the_untuned_model_is_the_quantised_one(folder: Path, scheme: str, package: str) -> None:
    pytest.importorskip(package)
    policy = proofs.kontext(folder, quantise=scheme, gradient_checkpointing=True)
    proofs.reference_is_untuned(policy, policy.encode(PROMPT, [proofs.random_image(16, 24, 0)]))


@schemes
def test_quantised_text_encoders_encode_nearly_alike(folder: Path, scheme: str, package: str) -> None:
    pytest.importorskip(package)
    prompts = [proofs.kontext(folder, quantise_text_encoders=one).encode(PROMPT, []) for one in (scheme, None)]
    one, other = (conditions.rows["prompt_embeds"] for conditions in prompts)
    assert not torch.equal(one, other)
    assert likeness(one, other) > NEAR[scheme]


@schemes
def test_offloaded_parts_work_quantised(folder: Path, tmp_path: Path, scheme: str, package: str) -> None:
    """As on 24 GB: all is quantised, sent to and fro, and text encoders are forgotten."""
    pytest.importorskip(package)
    both = {"quantise": scheme, "quantise_text_encoders": scheme}
    there = proofs.kontext(folder, **both)
    moved = proofs.kontext(folder, **both, offload=True, conditions=tmp_path)
    velocities = []
    for policy in (there, moved):
        conditions = policy.encode(PROMPT, [proofs.random_image(16, 24, 0)])
        velocities.append(policy.velocity(noise(policy), HALF, conditions))
        assert policy.decode(noise(policy)).isfinite().all()
    assert torch.equal(*velocities)


def test_eight_bits_are_those_of_diffusers(folder: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    policy = proofs.kontext(folder, quantise="int8", dtype="bfloat16")
    scheme = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    stock = FluxTransformer2DModel.from_pretrained(
        folder, subfolder="transformer", dtype=torch.bfloat16, quantization_config=scheme
    )
    ours = {name.replace(".base_layer", ""): weight for name, weight in policy._transformer.named_parameters()}
    compared = 0
    for name, weight in stock.named_parameters():
        assert type(weight) is type(ours[name]), name
        if hasattr(weight, "qdata"):
            compared += 1
            assert torch.equal(weight.qdata, ours[name].qdata) and torch.equal(weight.scale, ours[name].scale), name
    assert compared > 10


def test_four_bits_are_nf4_of_blocks_of_64(folder: Path) -> None:
    """By definition (arXiv 2305.14314): of 64 weights the absolute maximum, and the nearest of 16 quantiles."""
    functional = pytest.importorskip("bitsandbytes.functional")
    policy, plain = (proofs.kontext(folder, quantise=scheme, lora=LORA) for scheme in ("nf4", None))
    name = "transformer_blocks.0.ff.net.0.proj"
    ours, exact = (p._transformer.get_submodule(name).base_layer.weight for p in (policy, plain))
    blocks = exact.detach().reshape(-1, 64)
    levels = functional.get_4bit_type("nf4", device="cpu")
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = levels[(scaled[..., None] - levels).abs().argmin(-1)] * blocks.abs().amax(1, keepdim=True)
    found = functional.dequantize_4bit(ours.data, ours.quant_state)
    # The maxima are quantised once more, to 8 bits.
    assert proofs.apart(found, nearest) < 0.05 * blocks.abs().max().item()
    assert likeness(found, nearest) > 0.999
